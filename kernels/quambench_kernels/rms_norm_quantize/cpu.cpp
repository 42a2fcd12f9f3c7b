#include "native.h"

// Row by row: the input is made in a buffer, each of `groups` parts normed, then gain, gate and grid.

template <class In, class Gate>
static void norm(const In x, const float* residual, int64_t residual_stride, float* total, const Gate z, bool gated,
                 bool norm_first, const float* gain, float eps, const float* scale, float q_max, int8_t* q, float* y,
                 int64_t rows, int64_t n, int64_t groups, int threads) {
    const int64_t part = n / groups;
#pragma omp parallel num_threads(threads) if (rows * n > 32768)
    {
        std::unique_ptr<float[]> memory(new float[2 * n]);
        float *const v = memory.get(), *const for_z = v + n;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; ++r) {
            const float* const xs = x.read(0, r, 0, n, v);
            const float* const zs = gated ? z.read(0, r, 0, n, for_z) : nullptr;
            if (residual) {
                const float* const before = residual + r * residual_stride;
#pragma omp simd
                for (int64_t i = 0; i < n; ++i) v[i] = before[i] + xs[i];
                std::memcpy(total + r * n, v, n * sizeof(float));
            } else if (gated && !norm_first) {
#pragma omp simd
                for (int64_t i = 0; i < n; ++i) v[i] = xs[i] * silu(zs[i]);
            } else {
#pragma omp simd
                for (int64_t i = 0; i < n; ++i) v[i] = xs[i];
            }
            for (int64_t g = 0; g < groups; ++g) {
                float* const w = v + g * part;
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < part; ++i) sum += w[i] * w[i];
                const float by = 1.0f / std::sqrt(sum / float(part) + eps);
#pragma omp simd
                for (int64_t i = 0; i < part; ++i) w[i] *= by;
            }
            if (gain)
#pragma omp simd
                for (int64_t i = 0; i < n; ++i) v[i] *= gain[i];
            if (gated && norm_first)
#pragma omp simd
                for (int64_t i = 0; i < n; ++i) v[i] *= silu(zs[i]);
            if (scale) {
                const float step = *scale;
                int8_t* const out = q + r * n;
#pragma omp simd
                for (int64_t i = 0; i < n; ++i) out[i] = quantized(v[i], step, q_max);
            } else {
                std::memcpy(y + r * n, v, n * sizeof(float));
            }
        }
    }
}

// x, z (rows, n), their rows by strides; residual too, or null: x is then added to it, and the sum left in total.
// z: float32 (z_scale null) or int8, or null; gain (n) or null. Out: int8 in q where there is a scale, else float32 in y.
EXPORT void rms_norm_quantize(const float* x, int64_t x_stride, const float* residual, int64_t residual_stride,
                              float* total, const void* z, int64_t z_stride, const float* z_scale,
                              int64_t z_per_channel, int norm_first, const float* gain, float eps, const float* scale,
                              float q_max, int8_t* q, float* y, int64_t rows, int64_t n, int64_t groups, int threads) {
    const Float in{x, 0, x_stride};
    if (z && z_scale)
        norm(in, residual, residual_stride, total,
             Int8{static_cast<const int8_t*>(z), 0, z_stride, z_scale, z_per_channel}, true, norm_first, gain, eps,
             scale, q_max, q, y, rows, n, groups, threads);
    else
        norm(in, residual, residual_stride, total, Float{static_cast<const float*>(z ? z : x), 0, z ? z_stride : 0},
             z != nullptr, norm_first, gain, eps, scale, q_max, q, y, rows, n, groups, threads);
}
