#include "scan.h"

// As selective_scan, from int8; y float32, the state int8. u, B and C have one scale each, dt and z one or one a
// channel; the state's is state_scale[e * scale_se + n * scale_sn].
EXPORT void int8_selective_scan(const int8_t* u, int64_t u_sb, int64_t u_st, const float* u_scale, const int8_t* dt,
                                int64_t dt_sb, int64_t dt_st, const float* dt_scale, int64_t dt_per_channel,
                                const float* A, const int8_t* B, int64_t B_sb, int64_t B_st, const float* B_scale,
                                const int8_t* C, int64_t C_sb, int64_t C_st, const float* C_scale, const float* D,
                                const float* dt_bias, const int8_t* z, int64_t z_sb, int64_t z_st,
                                const float* z_scale, int64_t z_per_channel, const int8_t* state,
                                const float* state_scale, int64_t scale_se, int64_t scale_sn, float* y,
                                int8_t* state_out, int64_t batch, int64_t length, int64_t width, int64_t d_state,
                                float q_max, int threads) {
    const Int8State h{state, state_out, width, 1, d_state, state_scale, scale_se, 0, scale_sn, q_max};
    scan(Int8{u, u_sb, u_st, u_scale, 0}, Int8{dt, dt_sb, dt_st, dt_scale, dt_per_channel}, dt_bias, A,
         Int8{B, B_sb, B_st, B_scale, 0}, Int8{C, C_sb, C_st, C_scale, 0}, D,
         Int8{z, z_sb, z_st, z_scale, z_per_channel}, true, h, y, Sizes{batch, length, width, d_state}, threads);
}
