// Mamba2's recurrence, a head at a time: h = exp(dt A) h + (dt x) B^T, y = h C + D x.
//
// Inside, a head's state lies as (d_state, head_dim): the channels of the head are the lanes, so that neither the
// update nor y needs a sum across lanes. BLOCK positions are worked off in each pass over the state, which is read
// and written once for all of them. A short call (a decoding step) goes over the state as the caller has it.
#pragma once

#include "native.h"

namespace duality {

constexpr int64_t BLOCK = 4;

struct Sizes {
    int64_t batch, length, heads, head_dim, groups, d_state;
};

struct Steps {
    const float *dt_bias, *A, *D;  // dt_bias may be null: dt is then the step itself; D too: nothing is added
    int64_t d_per_channel;
    float low, high;  // limits of the step
};

// S (d_state, padded head_dim); a, and rows of dx, B, C for BLOCK positions; adds to rows of y. PARTS vectors of
// channels at once.
template <int PARTS>
static void block_of(float* S, int64_t padded, int64_t d_state, int64_t p, const float* a, const float* dx,
                     const float* B, const float* C, float* y) {
    vec x[BLOCK][PARTS], sum[BLOCK][PARTS];
    for (int64_t j = 0; j < BLOCK; ++j)
        for (int i = 0; i < PARTS; ++i) {
            x[j][i] = load(dx + j * padded + p + i * LANES);
            sum[j][i] = load(y + j * padded + p + i * LANES);
        }
    for (int64_t n = 0; n < d_state; ++n) {
        float* const row = S + n * padded + p;
        vec h[PARTS];
        for (int i = 0; i < PARTS; ++i) h[i] = load(row + i * LANES);
        for (int64_t j = 0; j < BLOCK; ++j) {
            const float b = B[j * d_state + n], c = C[j * d_state + n];
            for (int i = 0; i < PARTS; ++i) {
                h[i] = a[j] * h[i] + b * x[j][i];
                sum[j][i] += c * h[i];
            }
        }
        for (int i = 0; i < PARTS; ++i) store(row + i * LANES, h[i]);
    }
    for (int64_t j = 0; j < BLOCK; ++j)
        for (int i = 0; i < PARTS; ++i) store(y + j * padded + p + i * LANES, sum[j][i]);
}

static inline float step_of(float dt, const Steps& of, int64_t head) {
    float step = of.dt_bias ? softplus(dt + of.dt_bias[head]) : dt;
    step = step < of.low ? of.low : step;
    return step > of.high ? of.high : step;
}

// state (batch, heads, head_dim, d_state). x, dt, B, C by rows of (batch, length), their last axes
// (heads * head_dim), (heads), (groups * d_state). y (batch, length, heads * head_dim) dense.
template <class In, class State>
static void run(const In x, const In dt, const In B, const In C, Steps of, const State state, float* y, Sizes s,
                int threads) {
    const int64_t P = s.head_dim, N = s.d_state, padded = (P + LANES - 1) / LANES * LANES;
    const int64_t per_group = s.heads / s.groups;
    const bool many = s.batch * s.length * s.heads * P * N > 65536;
#pragma omp parallel num_threads(threads) if (many)
    {
        std::unique_ptr<float[]> memory(new float[N * padded + 2 * BLOCK * padded + (2 * BLOCK + 1) * N + P]());
        float *const S = memory.get(), *const dx = S + N * padded, *const sum = dx + BLOCK * padded;
        float *const Bs = sum + BLOCK * padded, *const Cs = Bs + BLOCK * N, *const row = Cs + BLOCK * N;
        float* const for_x = row + N;
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < s.batch * s.heads; ++piece) {
            const int64_t b = piece / s.heads, head = piece % s.heads, group = head / per_group * N;
            const float A = of.A[head];
            const float* const D = of.D ? of.D + (of.d_per_channel ? head * P : head) : nullptr;
            float a[BLOCK];
            const auto enter = [&](int64_t t, int64_t j) {  // position t as row j of the block
                const float* const xs = x.read(b, t, head * P, P, for_x);
                const float* const b_row = B.read(b, t, group, N, Bs + j * N);
                const float* const c_row = C.read(b, t, group, N, Cs + j * N);
                if (b_row != Bs + j * N) std::memcpy(Bs + j * N, b_row, N * sizeof *Bs);
                if (c_row != Cs + j * N) std::memcpy(Cs + j * N, c_row, N * sizeof *Cs);
                float for_dt;
                const float step = step_of(*dt.read(b, t, head, 1, &for_dt), of, head);
                a[j] = exp_(step * A);
                float *const driven = dx + j * padded, *const through = sum + j * padded;
#pragma omp simd
                for (int64_t p = 0; p < P; ++p) driven[p] = step * xs[p];
                if (D && of.d_per_channel)
#pragma omp simd
                    for (int64_t p = 0; p < P; ++p) through[p] = xs[p] * D[p];
                else {
                    const float d = D ? *D : 0.0f;
#pragma omp simd
                    for (int64_t p = 0; p < P; ++p) through[p] = xs[p] * d;
                }
            };
            const auto leave = [&](int64_t t, int64_t j) {
                std::memcpy(y + ((b * s.length + t) * s.heads + head) * P, sum + j * padded, P * sizeof(float));
            };
            if (s.length == 1) {
                enter(0, 0);
                for (int64_t p = 0; p < P; ++p) {
                    state.read(b, head, p, row);
                    float total = 0;
#pragma omp simd reduction(+ : total)
                    for (int64_t n = 0; n < N; ++n) {
                        row[n] = a[0] * row[n] + dx[p] * Bs[n];
                        total += row[n] * Cs[n];
                    }
                    sum[p] += total;
                    state.keep(b, head, p, row);
                }
                leave(0, 0);
                continue;
            }
            for (int64_t p = 0; p < P; ++p) {
                state.read(b, head, p, row);
                for (int64_t n = 0; n < N; ++n) S[n * padded + p] = row[n];
            }
            for (int64_t from = 0; from < s.length; from += BLOCK) {
                const int64_t here = smaller(BLOCK, s.length - from);
                for (int64_t j = 0; j < here; ++j) enter(from + j, j);
                for (int64_t j = here; j < BLOCK; ++j) {  // nothing decays and nothing comes in
                    a[j] = 1;
                    for (int64_t p = 0; p < padded; ++p) dx[j * padded + p] = sum[j * padded + p] = 0;
                }
                int64_t p = 0;
                for (; p + 2 * LANES <= padded; p += 2 * LANES) block_of<2>(S, padded, N, p, a, dx, Bs, Cs, sum);
                for (; p < padded; p += LANES) block_of<1>(S, padded, N, p, a, dx, Bs, Cs, sum);
                for (int64_t j = 0; j < here; ++j) leave(from + j, j);
            }
            for (int64_t p = 0; p < P; ++p) {
                for (int64_t n = 0; n < N; ++n) row[n] = S[n * padded + p];
                state.keep(b, head, p, row);
            }
        }
    }
}

}  // namespace duality
