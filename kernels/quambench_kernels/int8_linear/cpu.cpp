#include "native.h"

// What follows the integer product: sums (rows, n) int32 times scale (n) plus bias (n) or null, then as float32, or on
// the grid of out_scale, one or one a column. Compiled without fused multiply-add: equal to the reference bit for bit.
EXPORT void finish(const int32_t* sums, const float* scale, const float* bias, const float* out_scale,
                   int64_t out_per_column, float q_max, int8_t* q, float* y, int64_t rows, int64_t n, int threads) {
#pragma omp parallel num_threads(threads) if (rows * n > 32768)
    {
        constexpr int64_t SLICE = 512;
        float v[SLICE];
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t from = 0; from < n; from += SLICE) {
                const int64_t here = smaller(SLICE, n - from);
                const int32_t* const in = sums + r * n + from;
                const float *const s = scale + from, *const b = bias + from;
                float* const to = out_scale ? v : y + r * n + from;
                if (bias)
#pragma omp simd
                    for (int64_t i = 0; i < here; ++i) to[i] = float(in[i]) * s[i] + b[i];
                else
#pragma omp simd
                    for (int64_t i = 0; i < here; ++i) to[i] = float(in[i]) * s[i];
                if (!out_scale) continue;
                int8_t* const out = q + r * n + from;
                if (out_per_column) {
                    const float* const step = out_scale + from;
#pragma omp simd
                    for (int64_t i = 0; i < here; ++i) out[i] = quantized(v[i], step[i], q_max);
                } else {
                    const float step = *out_scale;
#pragma omp simd
                    for (int64_t i = 0; i < here; ++i) out[i] = quantized(v[i], step, q_max);
                }
            }
    }
}
