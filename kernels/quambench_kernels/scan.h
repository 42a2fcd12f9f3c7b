// Mamba's recurrence over a tile of channels at a time: h = exp(dt A) h + dt u B, y = C h + D u, y SiLU(z).
#pragma once

#include "native.h"

constexpr int64_t TILE = 64;  // channels whose states, TILE * d_state floats, stay in the innermost cache

struct Sizes {
    int64_t batch, length, width, d_state;
};

// state (batch, width, d_state). dt_bias and z may be absent: dt is then the step itself, and y is not gated.
// y (batch, length, width) dense.
template <class In, class Gate, class State>
static void scan(const In u, const In dt, const float* dt_bias, const float* A, const In B, const In C,
                 const float* D, const Gate z, bool gated, const State state, float* y, Sizes of,
                 int threads) {
    const int64_t tiles = (of.width + TILE - 1) / TILE, N = of.d_state;
#pragma omp parallel num_threads(threads) if (of.batch * of.length * of.width * N > 32768)
    {
        std::unique_ptr<float[]> memory(new float[2 * N * TILE + 3 * N]());
        float *const a = memory.get(), *const h = a + N * TILE, *const b_row = h + N * TILE, *const c_row = b_row + N;
        float* const row = c_row + N;
        float step[TILE] = {}, drive[TILE] = {}, sum[TILE] = {};
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < of.batch * tiles; ++piece) {
            const int64_t b = piece / tiles, first = piece % tiles * TILE, n_here = smaller(TILE, of.width - first);
            for (int64_t e = 0; e < n_here; ++e) {
                state.read(b, first + e, row);
                for (int64_t n = 0; n < N; ++n) a[n * TILE + e] = A[(first + e) * N + n], h[n * TILE + e] = row[n];
            }
            for (int64_t t = 0; t < of.length; ++t) {
                const auto us = u.row(b, t), steps = dt.row(b, t), Bs = B.row(b, t), Cs = C.row(b, t);
                for (int64_t n = 0; n < N; ++n) b_row[n] = Bs[n], c_row[n] = Cs[n];
                if (dt_bias)
#pragma omp simd
                    for (int64_t e = 0; e < n_here; ++e) step[e] = softplus(steps[first + e] + dt_bias[first + e]);
                else
#pragma omp simd
                    for (int64_t e = 0; e < n_here; ++e) step[e] = steps[first + e];
#pragma omp simd
                for (int64_t e = 0; e < n_here; ++e) {
                    const float x = us[first + e];
                    drive[e] = step[e] * x;
                    sum[e] = D[first + e] * x;
                }
                for (int64_t n = 0; n < N; ++n) {
                    const float b_n = b_row[n], c_n = c_row[n];
                    const float* const a_n = a + n * TILE;
                    float* const h_n = h + n * TILE;
#pragma omp simd
                    for (int64_t e = 0; e < TILE; ++e) {
                        const float now = exp_(step[e] * a_n[e]) * h_n[e] + drive[e] * b_n;
                        h_n[e] = now;
                        sum[e] += c_n * now;
                    }
                }
                float* const out = y + (b * of.length + t) * of.width + first;
                if (gated) {
                    const auto gate = z.row(b, t);
#pragma omp simd
                    for (int64_t e = 0; e < n_here; ++e) out[e] = sum[e] * silu(gate[first + e]);
                } else {
#pragma omp simd
                    for (int64_t e = 0; e < n_here; ++e) out[e] = sum[e];
                }
            }
            for (int64_t e = 0; e < n_here; ++e) {
                for (int64_t n = 0; n < N; ++n) row[n] = h[n * TILE + e];
                state.keep(b, first + e, row);
            }
        }
    }
}
