#include "native.h"

// What follows an integer product, of `here` columns: times scale plus bias (or null), then as float32, or on the grid
// of out_scale, one or one a column. Compiled without fused multiply-add: equal to the reference bit for bit.
struct Finish {
    const float *scale, *bias, *out_scale;
    int64_t out_per_column;
    float q_max;
    int8_t* q;  // where there is an out_scale
    float* y;   // else

    static constexpr int64_t SLICE = 512;  // the most columns at a time

    void operator()(const int32_t* in, int64_t at, int64_t column, int64_t here) const {
        float v[SLICE];
        const float* const s = scale + column;
        float* const to = out_scale ? v : y + at;
        if (bias) {
            const float* const b = bias + column;
#pragma omp simd
            for (int64_t i = 0; i < here; ++i) to[i] = float(in[i]) * s[i] + b[i];
        } else {
#pragma omp simd
            for (int64_t i = 0; i < here; ++i) to[i] = float(in[i]) * s[i];
        }
        if (!out_scale) return;
        int8_t* const out = q + at;
        const float top = q_max;
        if (out_per_column) {
            const float* const step = out_scale + column;
#pragma omp simd
            for (int64_t i = 0; i < here; ++i) out[i] = quantized(v[i], step[i], top);
        } else {
            const float step = *out_scale;
#pragma omp simd
            for (int64_t i = 0; i < here; ++i) out[i] = quantized(v[i], step, top);
        }
    }
};

// sums (rows, n).
EXPORT void finish(const int32_t* sums, const float* scale, const float* bias, const float* out_scale,
                   int64_t out_per_column, float q_max, int8_t* q, float* y, int64_t rows, int64_t n, int threads) {
    const Finish finished{scale, bias, out_scale, out_per_column, q_max, q, y};
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * n > 32768)
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t from = 0; from < n; from += Finish::SLICE)
            finished(sums + r * n + from, r * n + from, from, smaller(Finish::SLICE, n - from));
}

// Sums over k of x w, exact. Written so that a compiler sees products of int16 that are added in pairs into int32: one
// instruction wherever there is vector code. (Under `omp simd` it does not see it.)
static int32_t one(const int16_t* __restrict x, const int8_t* __restrict w, int64_t k) {
    int32_t a = 0;
    for (int64_t i = 0; i < k; ++i) a += x[i] * int16_t(w[i]);
    return a;
}

// Of four rows of w.
static void four(const int16_t* __restrict x, const int8_t* __restrict w, int64_t k, int32_t* to) {
    const int8_t *const w1 = w + k, *const w2 = w1 + k, *const w3 = w2 + k;
    int32_t a = 0, b = 0, c = 0, d = 0;
    for (int64_t i = 0; i < k; ++i) {
        a += x[i] * int16_t(w[i]);
        b += x[i] * int16_t(w1[i]);
        c += x[i] * int16_t(w2[i]);
        d += x[i] * int16_t(w3[i]);
    }
    to[0] = a, to[1] = b, to[2] = c, to[3] = d;
}

// x (rows, k) and w (n, k) dense; what follows as above, or sums (rows, n) alone where scale is null. The weight is
// read once, a few of its rows at a time, for all rows of x: made for few of these.
EXPORT void few_rows(const int8_t* x, const int8_t* w, int32_t* sums, const float* scale, const float* bias,
                     const float* out_scale, int64_t out_per_column, float q_max, int8_t* q, float* y, int64_t rows,
                     int64_t n, int64_t k, int threads) {
    constexpr int64_t COLUMNS = 16;
    const Finish finished{scale, bias, out_scale, out_per_column, q_max, q, y};
    std::unique_ptr<int16_t[]> memory(new int16_t[rows * k]);
    int16_t* const wide = memory.get();
#pragma omp simd
    for (int64_t i = 0; i < rows * k; ++i) wide[i] = x[i];
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * n * k > 400000)
    for (int64_t block = 0; block < (n + COLUMNS - 1) / COLUMNS; ++block) {
        const int64_t first = block * COLUMNS, here = smaller(COLUMNS, n - first);
        for (int64_t r = 0; r < rows; ++r) {
            int32_t found[COLUMNS];
            int64_t i = 0;
            for (; i + 4 <= here; i += 4) four(wide + r * k, w + (first + i) * k, k, found + i);
            for (; i < here; ++i) found[i] = one(wide + r * k, w + (first + i) * k, k);
            if (scale)
                finished(found, r * n + first, first, here);
            else
                std::memcpy(sums + r * n + first, found, here * sizeof *found);
        }
    }
}
