#include "conv.h"

// x (batch, length, channels) by its strides; weight (channels, width), history (batch, width - 1, channels) and
// y (batch, length, channels) dense; bias may be null.
EXPORT void causal_conv1d(const float* x, int64_t sb, int64_t st, const float* history, const float* weight,
                          const float* bias, float* y, int64_t batch, int64_t length, int64_t channels,
                          int64_t width, int activate, int threads) {
    const Float in{x, sb, st}, past{history, (width - 1) * channels, channels};
    convolve(in, past, weight, bias, batch, length, channels, width, activate, threads,
             [=](int64_t b, int64_t t, int64_t first, int64_t n, const float* row) {
                 std::memcpy(y + (b * length + t) * channels + first, row, n * sizeof(float));
             });
}
