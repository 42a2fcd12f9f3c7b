#include "scan.h"

// u, dt, z (batch, length, width), B, C (batch, length, d_state) by their strides; A (width, d_state), D, dt_bias
// (width), state and state_out (batch, width, d_state) dense; dt_bias and z may be null.
EXPORT void selective_scan(const float* u, int64_t u_sb, int64_t u_st, const float* dt, int64_t dt_sb, int64_t dt_st,
                           const float* A, const float* B, int64_t B_sb, int64_t B_st, const float* C, int64_t C_sb,
                           int64_t C_st, const float* D, const float* dt_bias, const float* z, int64_t z_sb,
                           int64_t z_st, const float* state, float* y, float* state_out, int64_t batch,
                           int64_t length, int64_t width, int64_t d_state, int threads) {
    scan(Float{u, u_sb, u_st}, Float{dt, dt_sb, dt_st}, dt_bias, A, Float{B, B_sb, B_st}, Float{C, C_sb, C_st}, D,
         Float{z, z_sb, z_st}, z != nullptr, FloatState{state, state_out, width, 1, d_state}, y,
         Sizes{batch, length, width, d_state}, threads);
}
