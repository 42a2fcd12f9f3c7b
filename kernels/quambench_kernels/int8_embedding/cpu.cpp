#include "native.h"

// table (rows, n) int8, scale (rows); y (tokens, n). Tokens are within the table: the caller has looked.
EXPORT void int8_embedding(const int64_t* tokens, const int8_t* table, const float* scale, float* y, int64_t count,
                           int64_t n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (count * n > 65536)
    for (int64_t i = 0; i < count; ++i) {
        const int8_t* const row = table + tokens[i] * n;
        const float step = scale[tokens[i]];
        float* const out = y + i * n;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) out[c] = float(row[c]) * step;
    }
}
