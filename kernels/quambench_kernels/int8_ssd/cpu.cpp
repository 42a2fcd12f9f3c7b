#include "ssd.h"

// As ssd, from int8; y float32, the state int8. Scales: of x, dt, B and C one or one for each of the last axis; the
// state's is state_scale[h * scale_sh + p * scale_sp + n * scale_sn].
EXPORT void int8_ssd(const int8_t* x, int64_t x_sb, int64_t x_st, const float* x_scale, int64_t x_per_channel,
                     const int8_t* dt, int64_t dt_sb, int64_t dt_st, const float* dt_scale, int64_t dt_per_channel,
                     const float* A, const int8_t* B, int64_t B_sb, int64_t B_st, const float* B_scale,
                     int64_t B_per_channel, const int8_t* C, int64_t C_sb, int64_t C_st, const float* C_scale,
                     int64_t C_per_channel, const float* D, int64_t d_per_channel, const float* dt_bias, float low,
                     float high, const int8_t* state, const float* state_scale, int64_t scale_sh, int64_t scale_sp,
                     int64_t scale_sn, float* y, int8_t* state_out, int64_t batch, int64_t length, int64_t heads,
                     int64_t head_dim, int64_t groups, int64_t d_state, float q_max, int threads) {
    const Int8State h{state, state_out, heads, head_dim, d_state, state_scale, scale_sh, scale_sp, scale_sn, q_max};
    duality::run(Int8{x, x_sb, x_st, x_scale, x_per_channel}, Int8{dt, dt_sb, dt_st, dt_scale, dt_per_channel},
                 Int8{B, B_sb, B_st, B_scale, B_per_channel}, Int8{C, C_sb, C_st, C_scale, C_per_channel},
                 duality::Steps{dt_bias, A, D, d_per_channel, low, high}, h, y,
                 duality::Sizes{batch, length, heads, head_dim, groups, d_state}, threads);
}
