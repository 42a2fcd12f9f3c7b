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
        float *const a = memory.get(), *const h = a + N * TILE, *const for_b = h + N * TILE, *const for_c = for_b + N;
        float* const row = for_c + N;
        float step[TILE] = {}, drive[TILE] = {}, sum[TILE] = {}, for_u[TILE], for_dt[TILE], for_z[TILE];
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < of.batch * tiles; ++piece) {
            const int64_t b = piece / tiles, first = piece % tiles * TILE, n_here = smaller(TILE, of.width - first);
            // Everything of position t but the states: steps, what they drive in, and what D lets through.
            const float *b_row, *c_row;
            const auto enter = [&](int64_t t) {
                const float* const us = u.read(b, t, first, n_here, for_u);
                const float* const steps = dt.read(b, t, first, n_here, for_dt);
                b_row = B.read(b, t, 0, N, for_b), c_row = C.read(b, t, 0, N, for_c);
                if (dt_bias)
#pragma omp simd
                    for (int64_t e = 0; e < n_here; ++e) step[e] = softplus(steps[e] + dt_bias[first + e]);
                else
#pragma omp simd
                    for (int64_t e = 0; e < n_here; ++e) step[e] = steps[e];
#pragma omp simd
                for (int64_t e = 0; e < n_here; ++e) {
                    drive[e] = step[e] * us[e];
                    sum[e] = D[first + e] * us[e];
                }
            };
            const auto leave = [&](int64_t t) {
                float* const out = y + (b * of.length + t) * of.width + first;
                if (gated) {
                    const float* const gate = z.read(b, t, first, n_here, for_z);
#pragma omp simd
                    for (int64_t e = 0; e < n_here; ++e) out[e] = sum[e] * silu(gate[e]);
                } else {
                    std::memcpy(out, sum, n_here * sizeof *out);
                }
            };
            if (of.length == 1) {  // a decoding step: states as the caller has them, a channel's in one row
                enter(0);
                for (int64_t e = 0; e < n_here; ++e) {
                    state.read(b, first + e, 0, row);
                    const float* const A_row = A + (first + e) * N;
                    const float step_e = step[e], drive_e = drive[e];
                    float total = 0;
#pragma omp simd reduction(+ : total)
                    for (int64_t n = 0; n < N; ++n) {
                        row[n] = exp_(step_e * A_row[n]) * row[n] + drive_e * b_row[n];
                        total += c_row[n] * row[n];
                    }
                    sum[e] += total;
                    state.keep(b, first + e, 0, row);
                }
                leave(0);
                continue;
            }
            for (int64_t e = 0; e < n_here; ++e) {
                state.read(b, first + e, 0, row);
                for (int64_t n = 0; n < N; ++n) a[n * TILE + e] = A[(first + e) * N + n], h[n * TILE + e] = row[n];
            }
            for (int64_t t = 0; t < of.length; ++t) {
                enter(t);
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
                leave(t);
            }
            for (int64_t e = 0; e < n_here; ++e) {
                for (int64_t n = 0; n < N; ++n) row[n] = h[n * TILE + e];
                state.keep(b, first + e, 0, row);
            }
        }
    }
}
