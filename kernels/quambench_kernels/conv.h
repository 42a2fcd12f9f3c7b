// Depthwise causal convolution, its input float32 or int8, its output through Write: (b, t, first channel, n, values).
#pragma once

#include "native.h"

// A piece of work is POSITIONS of a sequence; in it CHANNELS are worked off at a time, so that their taps, the rows
// they read and what they make stay in the innermost cache. weight (channels, width) dense.
template <class In, class Write>
static void convolve(const In x, const In history, const float* weight, const float* bias, int64_t batch,
                     int64_t length, int64_t channels, int64_t width, bool activate, int threads, Write write) {
    constexpr int64_t POSITIONS = 16, CHANNELS = 512;
    const int64_t pieces = (length + POSITIONS - 1) / POSITIONS;
#pragma omp parallel num_threads(threads) if (batch * length * channels > 16384)
    {
        std::unique_ptr<float[]> memory(new float[(2 * width + 2) * CHANNELS]);
        float *const taps = memory.get(), *const kept = taps + width * CHANNELS;
        float *const y = kept + width * CHANNELS, *const added = y + CHANNELS;
        std::unique_ptr<const float*[]> rows(new const float*[width]);
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < batch * pieces; ++piece) {
            const int64_t b = piece / pieces, from = piece % pieces * POSITIONS, to = smaller(from + POSITIONS, length);
            for (int64_t first = 0; first < channels; first += CHANNELS) {
                const int64_t n = smaller(CHANNELS, channels - first);
                for (int64_t c = 0; c < n; ++c) {
                    added[c] = bias ? bias[first + c] : 0.0f;
                    for (int64_t k = 0; k < width; ++k) taps[k * CHANNELS + c] = weight[(first + c) * width + k];
                }
                const auto row = [&](int64_t t) {  // a row stays readable until width more are read
                    float* const scratch = kept + (t + width) % width * CHANNELS;
                    return t < 0 ? history.read(b, t + width - 1, first, n, scratch) : x.read(b, t, first, n, scratch);
                };
                for (int64_t k = 0; k < width - 1; ++k) rows[k] = row(from - (width - 1) + k);
                for (int64_t t = from; t < to; ++t) {
                    rows[width - 1] = row(t);
                    if (width == 4) {  // of all published models
                        const float *const x0 = rows[0], *const x1 = rows[1], *const x2 = rows[2], *const x3 = rows[3];
                        const float *const w0 = taps, *const w1 = w0 + CHANNELS, *const w2 = w1 + CHANNELS;
                        const float* const w3 = w2 + CHANNELS;
#pragma omp simd
                        for (int64_t c = 0; c < n; ++c)
                            y[c] = (((x0[c] * w0[c] + x1[c] * w1[c]) + x2[c] * w2[c]) + x3[c] * w3[c]) + added[c];
                    } else {
                        std::memcpy(y, added, n * sizeof *y);
                        for (int64_t k = 0; k < width; ++k) {
                            const float *const xk = rows[k], *const w = taps + k * CHANNELS;
#pragma omp simd
                            for (int64_t c = 0; c < n; ++c) y[c] += xk[c] * w[c];
                        }
                    }
                    if (activate)
#pragma omp simd
                        for (int64_t c = 0; c < n; ++c) y[c] = silu(y[c]);
                    write(b, t, first, n, y);
                    for (int64_t k = 0; k < width - 1; ++k) rows[k] = rows[k + 1];
                }
            }
        }
    }
}
