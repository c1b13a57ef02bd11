// Register-tiled product of rows with packed weights, over a vector type V.
#pragma once

#include <cstdint>

namespace merfast {
namespace {

// Columns of a weight panel that are multiplied at a time: 32 KiB of weights, which stay in L1 for all rows of a block.
template <class V>
constexpr int64_t kDepth = 8192 / (V::panel * V::lanes);

// R rows times C vectors. Each output element is one chain of multiply-adds per depth step, whatever R is, so a
// row's result does not depend on the rows beside it.
template <class V, int R, int C>
__attribute__((noinline)) void tile(int64_t depth, const float* const* x, int64_t x_at, const float* weight,
                                    const float* const* init, int64_t init_at, float* out, int64_t out_stride) {
    typename V::T sum[R][C];
    const float* row[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        row[r] = x[r] + x_at;
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sum[r][c] = V::zero();
    }
    for (int64_t k = 0; k < depth; ++k) {
        typename V::T w[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) w[c] = V::load(weight + c * V::lanes);
        weight += C * V::lanes;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const typename V::T value = V::set1(row[r][k]);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) sum[r][c] = V::fma(value, w[c], sum[r][c]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            const typename V::T start = V::load(init[r] + init_at + c * V::lanes);
            V::store(out + r * out_stride + c * V::lanes, V::add(start, sum[r][c]));
        }
    }
}

// Picks the tile for a number of rows and vectors at or below the largest.
template <class V, int R, int C, class... Args>
inline void pick_tile(int rows, int vectors, Args... args) {
    if constexpr (C > 1) {
        if (vectors < C) return pick_tile<V, R, C - 1>(rows, vectors, args...);
    }
    if constexpr (R > 1) {
        if (rows < R) return pick_tile<V, R - 1, C>(rows, vectors, args...);
    }
    tile<V, R, C>(args...);
}

// out[r] = init[r] + weight . x[r] for rows of `depth` numbers; init and out rows are `padded` wide.
template <class V>
inline void project(const float* weight, int64_t depth, int64_t padded, const float* const* x, const float* const* init,
                    int64_t rows, float* out) {
    const int64_t vectors = padded / V::lanes;
    for (int64_t k = 0; k < depth; k += kDepth<V>) {
        const int64_t step = depth - k < kDepth<V> ? depth - k : kDepth<V>;
        for (int64_t v = 0; v < vectors; v += V::panel) {
            const int wide = static_cast<int>(vectors - v < V::panel ? vectors - v : V::panel);
            const float* panel = weight + (v * depth + k * wide) * V::lanes;
            const int64_t column = v * V::lanes;
            for (int64_t r = 0; r < rows; r += V::rows) {
                const int tall = static_cast<int>(rows - r < V::rows ? rows - r : V::rows);
                float* target = out + r * padded + column;
                const float* again[V::rows];  // later depth steps add to what is there
                for (int i = 0; i < tall; ++i) again[i] = out + (r + i) * padded;
                pick_tile<V, V::rows, V::panel>(tall, wide, step, x + r, k, panel, k == 0 ? init + r : again, column,
                                                target, padded);
            }
        }
    }
}

}  // namespace
}  // namespace merfast
