#include "ssd.h"

// x (batch, length, heads * head_dim), dt (batch, length, heads), B, C (batch, length, groups * d_state) by their
// strides; A, dt_bias (heads), D (heads) or (heads * head_dim), state and state_out (batch, heads, head_dim, d_state)
// dense; dt_bias and D may be null.
EXPORT void ssd(const float* x, int64_t x_sb, int64_t x_st, const float* dt, int64_t dt_sb, int64_t dt_st,
                const float* A, const float* B, int64_t B_sb, int64_t B_st, const float* C, int64_t C_sb, int64_t C_st,
                const float* D, int64_t d_per_channel, const float* dt_bias, float low, float high, const float* state,
                float* y, float* state_out, int64_t batch, int64_t length, int64_t heads, int64_t head_dim,
                int64_t groups, int64_t d_state, int threads) {
    duality::run(Float{x, x_sb, x_st}, Float{dt, dt_sb, dt_st}, Float{B, B_sb, B_st}, Float{C, C_sb, C_st},
                 duality::Steps{dt_bias, A, D, d_per_channel, low, high},
                 FloatState{state, state_out, heads, head_dim, d_state}, y,
                 duality::Sizes{batch, length, heads, head_dim, groups, d_state}, threads);
}
