// What the C++ kernels share: inputs of either kind, functions written so that loops over them become
// vector code, and the one rounding rule.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#include <omp.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

// The machine's own vector of float32. Loads and stores need no alignment.
#ifdef __AVX512F__
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif
typedef float vec __attribute__((vector_size(LANES * sizeof(float))));

static inline vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
static inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

// A float32 input: element (b, t, c), its last axis dense.
struct Float {
    const float* p;
    int64_t sb, st;
    // n elements of a row from c on; `scratch` holds n, and may be what is returned.
    const float* read(int64_t b, int64_t t, int64_t c, int64_t n, float* scratch) const { return p + b * sb + t * st + c; }
};

// An int8 input that stands for q * scale: one scale, or one for each c.
struct Int8 {
    const int8_t* p;
    int64_t sb, st;
    const float* scale;
    int64_t per_channel;
    const float* read(int64_t b, int64_t t, int64_t c, int64_t n, float* scratch) const {
        const int8_t* const q = p + b * sb + t * st + c;
        if (per_channel) {
            const float* const s = scale + c;
#pragma omp simd
            for (int64_t i = 0; i < n; ++i) scratch[i] = float(q[i]) * s[i];
        } else {
            const float s = *scale;
#pragma omp simd
            for (int64_t i = 0; i < n; ++i) scratch[i] = float(q[i]) * s;
        }
        return scratch;
    }
};

// e^x for x <= 88. x = n ln 2 + r with |r| <= ln 2 / 2; Taylor's polynomial of degree 7 is then off by at most
// 0.3466^8 / 8! = 5.2e-9, an eleventh of a float32 rounding. ln 2 is taken in two parts, so that r is exact to
// float32. Below -87 it stays at e^-87 = 1.6e-38. NaN stays NaN.
static inline float exp_(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float n = __builtin_rintf(x * 1.44269504088896341f);
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const int32_t bits = (int32_t(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

static inline float silu(float x) { return x / (1.0f + exp_(-x)); }

// log(1 + e^x) = max(x, 0) + log(1 + z), z = e^-|x| in (0, 1]; log(1 + z) = 2 atanh(s), s = z / (2 + z) <= 1/3,
// whose series is cut after s^13: the next term is at most 3^-14 / 15 = 1.4e-8 of the whole.
static inline float softplus(float x) {
    const float z = exp_(x < 0 ? x : -x);
    const float s = z / (2.0f + z);
    const float s2 = s * s;
    float p = 1.0f / 13;
    p = p * s2 + 1.0f / 11;
    p = p * s2 + 1.0f / 9;
    p = p * s2 + 1.0f / 7;
    p = p * s2 + 1.0f / 5;
    p = p * s2 + 1.0f / 3;
    p = p * s2 + 1.0f;
    return (x < 0 ? 0.0f : x) + 2.0f * s * p;
}

// The grid: ties to even, correctly rounded division, ends -q_max - 1 and q_max.
static inline float on_grid(float x, float scale, float q_max) {
    float q = __builtin_rintf(x / scale);
    q = q < -q_max - 1.0f ? -q_max - 1.0f : q;
    return q > q_max ? q_max : q;
}

static inline int8_t quantized(float x, float scale, float q_max) {
    return int8_t(int32_t(on_grid(x, scale, q_max)));
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// A state (batch, outer, inner, n) before and after, dense; a row of n is read into, or kept from, float32.
struct FloatState {
    const float* before;
    float* after;
    int64_t outer, inner, n;
    int64_t at(int64_t b, int64_t i, int64_t j) const { return ((b * outer + i) * inner + j) * n; }
    void read(int64_t b, int64_t i, int64_t j, float* to) const { std::memcpy(to, before + at(b, i, j), n * sizeof *to); }
    void keep(int64_t b, int64_t i, int64_t j, const float* from) const {
        std::memcpy(after + at(b, i, j), from, n * sizeof *from);
    }
};

// The same in int8; its scales lie outer_step, inner_step and n_step apart, 0 along an axis that shares one.
// Rows may be as short as 16: a vector of int8 would leave them to scalar code, hence simdlen.
struct Int8State {
    const int8_t* before;
    int8_t* after;
    int64_t outer, inner, n;
    const float* scale;
    int64_t outer_step, inner_step, n_step;
    float q_max;
    int64_t at(int64_t b, int64_t i, int64_t j) const { return ((b * outer + i) * inner + j) * n; }
    void read(int64_t b, int64_t i, int64_t j, float* to) const {
        const int8_t* const q = before + at(b, i, j);
        const float* const s = scale + i * outer_step + j * inner_step;
        const int64_t end = n;
        if (n_step) {
#pragma omp simd simdlen(LANES)
            for (int64_t k = 0; k < end; ++k) to[k] = float(q[k]) * s[k];
        } else {
            const float step = *s;
#pragma omp simd simdlen(LANES)
            for (int64_t k = 0; k < end; ++k) to[k] = float(q[k]) * step;
        }
    }
    void keep(int64_t b, int64_t i, int64_t j, const float* from) const {
        int8_t* const q = after + at(b, i, j);
        const float* const s = scale + i * outer_step + j * inner_step;
        const int64_t end = n;
        const float top = q_max;
        if (n_step) {
#pragma omp simd simdlen(LANES)
            for (int64_t k = 0; k < end; ++k) q[k] = quantized(from[k], s[k], top);
        } else {
            const float step = *s;
#pragma omp simd simdlen(LANES)
            for (int64_t k = 0; k < end; ++k) q[k] = quantized(from[k], step, top);
        }
    }
};
