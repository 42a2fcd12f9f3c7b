// Depthwise causal convolution, its input float32 or int8, its output through Write: (b, t, c, value).
#pragma once

#include "native.h"

// Four rows of inputs at once for the width that all published models have; any width in turns.
template <class In, class Write>
static void convolve(const In x, const In history, const float* weight, const float* bias, int64_t batch,
                     int64_t length, int64_t channels, int64_t width, bool activate, int threads, Write write) {
    const int64_t block = 16;  // positions of one piece of work
    const int64_t blocks = (length + block - 1) / block;
#pragma omp parallel num_threads(threads) if (batch * length * channels > 16384)
    {
        std::unique_ptr<float[]> sum(new float[channels]);
        float* const y = sum.get();
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < batch * blocks; ++piece) {
            const int64_t b = piece / blocks, from = piece % blocks * block, to = smaller(from + block, length);
            for (int64_t t = from; t < to; ++t) {
                const auto row = [&](int64_t k) {
                    const int64_t at = t - (width - 1) + k;
                    return at < 0 ? history.row(b, at + width - 1) : x.row(b, at);
                };
                if (width == 4) {
                    const auto x0 = row(0), x1 = row(1), x2 = row(2), x3 = row(3);
                    const float *w0 = weight, *w1 = w0 + channels, *w2 = w1 + channels, *w3 = w2 + channels;
#pragma omp simd
                    for (int64_t c = 0; c < channels; ++c)
                        y[c] = ((x0[c] * w0[c] + x1[c] * w1[c]) + x2[c] * w2[c]) + x3[c] * w3[c];
                } else {
                    for (int64_t c = 0; c < channels; ++c) y[c] = 0;
                    for (int64_t k = 0; k < width; ++k) {
                        const auto xk = row(k);
                        const float* w = weight + k * channels;
#pragma omp simd
                        for (int64_t c = 0; c < channels; ++c) y[c] += xk[c] * w[c];
                    }
                }
                if (bias)
#pragma omp simd
                    for (int64_t c = 0; c < channels; ++c) y[c] += bias[c];
                if (activate)
#pragma omp simd
                    for (int64_t c = 0; c < channels; ++c) y[c] = silu(y[c]);
                write(b, t, y);
            }
        }
    }
}
