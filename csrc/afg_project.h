// Register-tiled product of rows with packed weights, over a vector type V.
#pragma once

#include <cstdint>

namespace merfast {
namespace {

// What is multiplied and how: here fp32, one column of the rows at a time. vec_avx512bf16.h has the other one.
template <class V>
struct Columns {
    using Element = float;
    using Factors = typename V::T;
    static constexpr int step = 1;
    static Factors weights(const float* p) { return V::load(p); }
    static Factors values(const float* p) { return V::set1(*p); }
    static typename V::T multiply_add(Factors value, Factors weight, typename V::T sum) {
        return V::fma(value, weight, sum);
    }
};

// Columns of a weight panel that are multiplied at a time: 32 KiB of weights, which stay in L1 for all rows of a block.
template <class V, class P>
constexpr int64_t kDepth = 32768 / (int64_t{sizeof(typename P::Element)} * V::panel * V::lanes);

// R rows times C vectors. Each output element is one chain of multiply-adds per depth step, whatever R is, so a
// row's result does not depend on the rows beside it.
template <class V, class P, int R, int C>
__attribute__((noinline)) void tile(int64_t depth, const typename P::Element* const* x, int64_t x_at,
                                    const typename P::Element* weight, const float* const* init, int64_t init_at,
                                    float* out, int64_t out_stride) {
    typename V::T sum[R][C];
    const typename P::Element* row[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        row[r] = x[r] + x_at;
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sum[r][c] = V::zero();
    }
    const auto multiply = [&](int64_t k, auto values) {
        typename P::Factors w[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) w[c] = P::weights(weight + c * V::lanes * P::step);
        weight += C * V::lanes * P::step;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const typename P::Factors value = values(row[r] + k);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) sum[r][c] = P::multiply_add(value, w[c], sum[r][c]);
        }
    };
    int64_t k = 0;
    for (; k + P::step <= depth; k += P::step) multiply(k, P::values);
    if constexpr (P::step > 1) {
        if (k < depth) multiply(k, P::last_values);
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
template <class V, class P, int R, int C, class... Args>
inline void pick_tile(int rows, int vectors, Args... args) {
    if constexpr (C > 1) {
        if (vectors < C) return pick_tile<V, P, R, C - 1>(rows, vectors, args...);
    }
    if constexpr (R > 1) {
        if (rows < R) return pick_tile<V, P, R - 1, C>(rows, vectors, args...);
    }
    tile<V, P, R, C>(args...);
}

// out[r] = init[r] + weight . x[r] for rows of `depth` numbers; init and out rows are `padded` wide.
template <class V, class P = Columns<V>>
inline void project(const typename P::Element* weight, int64_t depth, int64_t padded,
                    const typename P::Element* const* x, const float* const* init, int64_t rows, float* out) {
    const int64_t vectors = padded / V::lanes;
    static_assert(kDepth<V, P> % P::step == 0, "only the last depth step may end within a group of columns");
    const int64_t packed_depth = (depth + P::step - 1) / P::step * P::step;
    for (int64_t k = 0; k < depth; k += kDepth<V, P>) {
        const int64_t step = depth - k < kDepth<V, P> ? depth - k : kDepth<V, P>;
        for (int64_t v = 0; v < vectors; v += V::panel) {
            const int wide = static_cast<int>(vectors - v < V::panel ? vectors - v : V::panel);
            const auto* panel = weight + (v * packed_depth + k * wide) * V::lanes;
            const int64_t column = v * V::lanes;
            for (int64_t r = 0; r < rows; r += V::rows) {
                const int tall = static_cast<int>(rows - r < V::rows ? rows - r : V::rows);
                float* target = out + r * padded + column;
                const float* again[V::rows];  // later depth steps add to what is there
                for (int i = 0; i < tall; ++i) again[i] = out + (r + i) * padded;
                pick_tile<V, P, V::rows, V::panel>(tall, wide, step, x + r, k, panel, k == 0 ? init + r : again, column,
                                                   target, padded);
            }
        }
    }
}

}  // namespace
}  // namespace merfast
