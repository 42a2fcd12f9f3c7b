#include "native.h"

// H = base (x) Sylvester of 2^k, times 1 / sqrt(n). Row by row: butterflies over the power of two inside each of
// `order` blocks, then the base across the blocks, SLICE columns at a time.

static constexpr int64_t SLICE = 64;

// Of lanes STRIDE apart: (a, b) -> (a + b, a - b).
template <int64_t STRIDE>
static inline vec butterfly(vec v) {
    vec sign;
    typedef int32_t ints __attribute__((vector_size(sizeof(vec))));
    ints other;
    for (int64_t i = 0; i < LANES; ++i) sign[i] = i & STRIDE ? -1.0f : 1.0f, other[i] = int32_t(i ^ STRIDE);
    return __builtin_shuffle(v, other) + v * sign;
}

static inline vec inside(vec v) {
    v = butterfly<4>(butterfly<2>(butterfly<1>(v)));
    if constexpr (LANES == 16) v = butterfly<8>(v);
    return v;
}

// In place, n a power of two.
static void sylvester(float* v, int64_t n) {
    if (n >= LANES)
        for (int64_t i = 0; i < n; i += LANES)
            store(v + i, inside(load(v + i)));
    for (int64_t stride = n >= LANES ? LANES : 1; stride < n; stride *= 2)
        for (int64_t from = 0; from < n; from += 2 * stride)
            for (int64_t i = from; i < from + stride; ++i) {
                const float a = v[i], b = v[i + stride];
                v[i] = a + b;
                v[i + stride] = a - b;
            }
}

// x (rows, n), its rows `stride` apart; base (order, order) of +-1, n = order * 2^k; q (rows, n) dense.
EXPORT void hadamard_quantize(const float* x, int64_t stride, const float* base, int64_t order, const float* scale,
                              float q_max, int8_t* q, int64_t rows, int64_t n, int threads) {
    const int64_t inner = n / order;
    const float norm = float(1.0 / std::sqrt(double(n))), step = *scale;
#pragma omp parallel num_threads(threads) if (rows * n > 32768)
    {
        std::unique_ptr<float[]> memory(new float[n]);
        float* const v = memory.get();
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) {
            std::memcpy(v, x + r * stride, n * sizeof(float));
            for (int64_t i = 0; i < order; ++i) sylvester(v + i * inner, inner);
            int8_t* const out = q + r * n;
            for (int64_t from = 0; from < inner; from += SLICE) {
                const int64_t here = smaller(SLICE, inner - from);
                for (int64_t i = 0; i < order; ++i) {
                    float sum[SLICE] = {};
                    if (order == 1)
                        std::memcpy(sum, v + from, here * sizeof(float));
                    else
                        for (int64_t k = 0; k < order; ++k) {
                            const float sign = base[i * order + k];
                            const float* const part = v + k * inner + from;
#pragma omp simd
                            for (int64_t j = 0; j < here; ++j) sum[j] += sign * part[j];
                        }
#pragma omp simd
                    for (int64_t j = 0; j < here; ++j) out[i * inner + from + j] = quantized(sum[j] * norm, step, q_max);
                }
            }
        }
    }
}
