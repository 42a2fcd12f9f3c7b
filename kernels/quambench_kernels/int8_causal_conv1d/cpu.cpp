#include "conv.h"

// As causal_conv1d, with SiLU, from int8 to int8. x_scale and out_scale: one, or one a channel.
EXPORT void int8_causal_conv1d(const int8_t* x, int64_t sb, int64_t st, const int8_t* history, const float* x_scale,
                               int64_t x_per_channel, const float* weight, const float* bias, const float* out_scale,
                               int64_t out_per_channel, int8_t* y, int64_t batch, int64_t length, int64_t channels,
                               int64_t width, float q_max, int threads) {
    const Int8 in{x, sb, st, x_scale, x_per_channel};
    const Int8 past{history, (width - 1) * channels, channels, x_scale, x_per_channel};
    convolve(in, past, weight, bias, batch, length, channels, width, true, threads,
             [=](int64_t b, int64_t t, int64_t first, int64_t n, const float* row) {
                 int8_t* const q = y + (b * length + t) * channels + first;
                 if (out_per_channel) {
                     const float* const scale = out_scale + first;
#pragma omp simd
                     for (int64_t c = 0; c < n; ++c) q[c] = quantized(row[c], scale[c], q_max);
                 } else {
                     const float scale = *out_scale;
#pragma omp simd
                     for (int64_t c = 0; c < n; ++c) q[c] = quantized(row[c], scale, q_max);
                 }
             });
}

// The same with the scale of a channel found where Quamba2's kernel finds it: by walking the runs of heads, then
// the runs of channels in them, until the one is met that holds it. head_sizes (groups, n_heads), dim_sizes and
// scale (groups, n_heads, n_dims).
EXPORT void int8_causal_conv1d_walking(const int8_t* x, int64_t sb, int64_t st, const int8_t* history,
                                       const float* x_scale, int64_t x_per_channel, const float* weight,
                                       const float* bias, const int64_t* head_sizes, const int64_t* dim_sizes,
                                       const float* scale, int64_t groups, int64_t n_heads, int64_t n_dims,
                                       int64_t head_dim, int8_t* y, int64_t batch, int64_t length, int64_t channels,
                                       int64_t width, float q_max, int threads) {
    const Int8 in{x, sb, st, x_scale, x_per_channel};
    const Int8 past{history, (width - 1) * channels, channels, x_scale, x_per_channel};
    const int64_t group_channels = channels / groups;
    convolve(in, past, weight, bias, batch, length, channels, width, true, threads,
             [=](int64_t b, int64_t t, int64_t first, int64_t n, const float* row) {
                 int8_t* const q = y + (b * length + t) * channels + first;
                 for (int64_t c = 0; c < n; ++c) {
                     const int64_t g = (first + c) / group_channels, inside = (first + c) % group_channels;
                     const int64_t head = inside / head_dim, dim = inside % head_dim;
                     int64_t i = 0, heads = head_sizes[g * n_heads];
                     while (head >= heads) heads += head_sizes[g * n_heads + ++i];
                     const int64_t run = (g * n_heads + i) * n_dims;
                     int64_t j = 0, dims = dim_sizes[run];
                     while (dim >= dims) dims += dim_sizes[run + ++j];
                     q[c] = quantized(row[c], scale[run + j], q_max);
                 }
             });
}
