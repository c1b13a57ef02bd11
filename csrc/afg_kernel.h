// The ragged AFG gathering over a vector type V: x is read from memory once, by the block. A block of rows is projected
// while its weights are in L1; its energies and its weighted sum follow while its rows are still in L2.
#pragma once

#include <cstdint>

#include "afg_isa.h"
#include "afg_project.h"
#include "vec_math.h"

namespace merfast {
namespace {

struct Chunk {
    const AfgSpan* span;
    int64_t first;  // row of x
    int64_t row;    // row of the block
    int64_t rows;
};

// tanh of each row in place; lanes beyond A are zeroed, since an infinite x makes their 0 * x a NaN.
template <class V, class E>
inline void activate(const AfgPacked<E>& packed, int64_t rows, float* hidden) {
    const int64_t tail = packed.width % V::lanes;
    const int64_t full = packed.width - tail;
    for (int64_t r = 0; r < rows; ++r, hidden += packed.padded) {
        for (int64_t a = 0; a < full; a += V::lanes) V::store(hidden + a, tanh<V>(V::load(hidden + a)));
        if (tail) V::store(hidden + full, tanh<V>(V::load_part(hidden + full, tail, 0.0f)));
    }
}

// energy[h][r] for C heads.
template <class V, int C, class E>
inline void score_heads(const AfgPacked<E>& packed, const float* score, const float* hidden, int64_t rows,
                        float* energy, int64_t stride) {
    for (int64_t r = 0; r < rows; ++r, hidden += packed.padded) {
        typename V::T sum[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sum[c] = V::zero();
        for (int64_t a = 0; a < packed.padded; a += V::lanes) {
            const typename V::T value = V::load(hidden + a);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) sum[c] = V::fma(value, V::load(score + c * packed.padded + a), sum[c]);
        }
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) energy[c * stride + r] = V::sum(sum[c]);
    }
}

template <class V, class E>
inline void score_rows(const AfgPacked<E>& packed, const float* hidden, int64_t rows, float* energy, int64_t stride) {
    for (int64_t h = 0; h < packed.heads; h += 4) {
        const float* score = packed.score + h * packed.padded;
        float* target = energy + h * stride;
        switch (packed.heads - h) {
            case 1:
                score_heads<V, 1>(packed, score, hidden, rows, target, stride);
                break;
            case 2:
                score_heads<V, 2>(packed, score, hidden, rows, target, stride);
                break;
            case 3:
                score_heads<V, 3>(packed, score, hidden, rows, target, stride);
                break;
            default:
                score_heads<V, 4>(packed, score, hidden, rows, target, stride);
        }
    }
}

// z[0 : C vectors] = scale z + sum over rows of weight x; the rows go round robin to enough sums to hide the
// latency of an addition. A null scale starts z. With Part, C is 1 and only `part` lanes exist.
template <class V, int C, bool Part, class E>
inline void weigh_columns(const E* x, int64_t stride, const float* weight, int64_t rows, const float* scale, float* z,
                          int64_t part) {
    constexpr int kSums = C < 8 ? 8 / C : 1;
    using T = typename V::T;
    const auto load = [part](const auto* p) {
        if constexpr (Part)
            return V::load_part(p, part, 0.0f);
        else
            return V::load(p);
    };
    T sum[kSums][C];
#pragma GCC unroll 8
    for (int s = 0; s < kSums; ++s) {
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sum[s][c] = V::zero();
    }
    if (scale) {
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sum[0][c] = V::mul(V::set1(*scale), load(z + c * V::lanes));
    }
    int64_t t = 0;
    for (; t + kSums <= rows; t += kSums) {
#pragma GCC unroll 8
        for (int s = 0; s < kSums; ++s, x += stride) {
            const T w = V::set1(weight[t + s]);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) sum[s][c] = V::fma(w, load(x + c * V::lanes), sum[s][c]);
        }
    }
    for (; t < rows; ++t, x += stride) {
        const T w = V::set1(weight[t]);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sum[0][c] = V::fma(w, load(x + c * V::lanes), sum[0][c]);
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
        T all = sum[0][c];
#pragma GCC unroll 8
        for (int s = 1; s < kSums; ++s) all = V::add(all, sum[s][c]);
        if constexpr (Part)
            V::store_part(z + c * V::lanes, part, all);
        else
            V::store(z + c * V::lanes, all);
    }
}

template <class V, class E>
inline void weigh(const E* x, int64_t stride, const float* weight, int64_t rows, const float* scale, float* z,
                  int64_t columns) {
    int64_t d = 0;
    for (; d + 4 * V::lanes <= columns; d += 4 * V::lanes) {
        weigh_columns<V, 4, false>(x + d, stride, weight, rows, scale, z + d, 0);
    }
    for (; d + 2 * V::lanes <= columns; d += 2 * V::lanes) {
        weigh_columns<V, 2, false>(x + d, stride, weight, rows, scale, z + d, 0);
    }
    for (; d + V::lanes <= columns; d += V::lanes) {
        weigh_columns<V, 1, false>(x + d, stride, weight, rows, scale, z + d, 0);
    }
    if (d < columns) weigh_columns<V, 1, true>(x + d, stride, weight, rows, scale, z + d, columns - d);
}

template <class V>
inline float exp_one(float value) {
    return V::first(exp_negative<V>(V::set1(value)));
}

template <class V, class E>
inline void divide(const float* z, float by, int64_t count, E* out) {
    const typename V::T total = V::set1(by);
    int64_t d = 0;
    for (; d + V::lanes <= count; d += V::lanes) V::store(out + d, V::div(V::load(z + d), total));
    if (d < count) V::store_part(out + d, count - d, V::div(V::load_part(z + d, count - d, 0.0f), total));
}

// attention[t][h] = energy[h][t], until the maximum and sum of the whole set are known.
inline void keep_energies(const float* energy, int64_t stride, int64_t rows, int64_t heads, float* attention) {
    for (int64_t t = 0; t < rows; ++t) {
        for (int64_t h = 0; h < heads; ++h) *attention++ = energy[h * stride + t];
    }
}

// One head's energies, in every `heads`-th place, become weights.
template <class V>
inline void share_out(float top, float total, int64_t rows, int64_t heads, float* attention) {
    float lanes[V::lanes];
    for (int64_t t = 0; t < rows; t += V::lanes, attention += V::lanes * heads) {
        const int64_t count = rows - t < V::lanes ? rows - t : V::lanes;
        for (int64_t i = 0; i < count; ++i) lanes[i] = attention[i * heads];
        const typename V::T shifted = V::sub(V::load_part(lanes, count, top), V::set1(top));
        V::store(lanes, V::div(exp_negative<V>(shifted), V::set1(total)));
        for (int64_t i = 0; i < count; ++i) attention[i * heads] = lanes[i];
    }
}

// One softmax step of one head: energies become weights relative to the new maximum, the sums are rescaled to it.
// A NaN energy need not reach the maximum: its weight is NaN, and so are the sums from there on.
template <class V, class E>
inline void gather_head(const AfgPacked<E>& packed, const Chunk& chunk, const E* x, float* energy, int64_t head, E* out,
                        float* state) {
    const AfgSpan& span = *chunk.span;
    float& kept_top = state[head];
    float& kept_total = state[packed.heads + head];
    const float kLowest = -__builtin_inff();
    typename V::T top = V::set1(kLowest);
    for (int64_t t = 0; t < chunk.rows; t += V::lanes) {
        top = V::max(top, V::load_part(energy + t, chunk.rows - t, kLowest));
    }
    const bool started = chunk.first > span.begin;
    const float before = started ? kept_top : kLowest;
    const float after = larger(before, V::largest(top));
    typename V::T total = V::zero();
    for (int64_t t = 0; t < chunk.rows; t += V::lanes) {
        const typename V::T shifted = V::sub(V::load_part(energy + t, chunk.rows - t, kLowest), V::set1(after));
        const typename V::T weight = exp_negative<V>(shifted);
        V::store_part(energy + t, chunk.rows - t, weight);
        total = V::add(total, weight);
    }
    const float scale = started ? exp_one<V>(before - after) : 0.0f;
    kept_top = after;
    kept_total = (started ? kept_total * scale : 0.0f) + V::sum(total);
    const int64_t columns = packed.dim / packed.heads;
    float* z = state + 2 * packed.heads + head * columns;
    weigh<V>(x + chunk.first * packed.dim + head * columns, packed.dim, energy, chunk.rows, started ? &scale : nullptr,
             z, columns);
    const bool done = !span.state && chunk.first + chunk.rows == span.end;
    if (done) divide<V>(z, kept_total, columns, out + span.set * packed.dim + head * columns);
}

// Guide terms of the sets in a block, with the bias, one row each; init gets the row of each x row's set.
template <class V, class P, class E>
inline void guide_terms(const AfgPacked<E>& packed, const E* guide, const Chunk* chunks, int64_t count, float* terms,
                        const float** init) {
    const E* rows[kMaxBlockRows];
    const float* bias[kMaxBlockRows];
    int64_t sets = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (i == 0 || chunks[i].span->set != chunks[i - 1].span->set) {
            rows[sets] = guide + chunks[i].span->set * packed.guide_dim;
            bias[sets++] = packed.bias;
        }
        for (int64_t t = 0; t < chunks[i].rows; ++t) init[chunks[i].row + t] = terms + (sets - 1) * packed.padded;
    }
    project<V, P>(packed.guide, packed.guide_dim, packed.padded, rows, bias, sets, terms);
}

template <class V, class P, class E = typename P::Element>
void gather(const AfgPacked<E>& packed, const E* x, const E* guide, const AfgSpan* spans, int64_t count, E* out,
            float* attention, float* scratch) {
    const int64_t stride = kMaxBlockRows;
    float* hidden = scratch;
    float* energy = hidden + packed.block_rows * packed.padded;
    float* own_state = energy + packed.heads * stride;  // of the whole set at hand: they come one after another
    float* terms = own_state + 2 * packed.heads + packed.dim;
    const E* rows[kMaxBlockRows];
    const float* init[kMaxBlockRows];
    Chunk chunks[kMaxBlockRows];
    const AfgSpan* span = spans;
    const AfgSpan* const last = spans + count;
    int64_t at = span->begin;
    while (span < last) {
        int64_t filled = 0;
        int64_t parts = 0;
        while (span < last) {
            const int64_t left = span->end - at;
            const int64_t take = left < packed.chunk_rows ? left : packed.chunk_rows;
            if (filled + take > packed.block_rows) break;
            chunks[parts++] = Chunk{span, at, filled, take};
            for (int64_t t = 0; t < take; ++t, ++filled, ++at) {
                rows[filled] = x + at * packed.dim;
                init[filled] = packed.bias;
            }
            if (at == span->end) ++span;  // the next one begins where this one ends
        }
        if (guide) guide_terms<V, P>(packed, guide, chunks, parts, terms, init);
        project<V, P>(packed.weight, packed.dim, packed.padded, rows, init, filled, hidden);
        activate<V>(packed, filled, hidden);
        score_rows<V>(packed, hidden, filled, energy, stride);
        for (int64_t i = 0; i < parts; ++i) {
            const Chunk& chunk = chunks[i];
            float* state = chunk.span->state ? chunk.span->state : own_state;
            if (attention) {
                keep_energies(energy + chunk.row, stride, chunk.rows, packed.heads,
                              attention + chunk.first * packed.heads);
            }
            for (int64_t h = 0; h < packed.heads; ++h) {
                gather_head<V>(packed, chunk, x, energy + h * stride + chunk.row, h, out, state);
            }
            if (attention && !chunk.span->state && chunk.first + chunk.rows == chunk.span->end) {
                const int64_t begin = chunk.span->begin;
                for (int64_t h = 0; h < packed.heads; ++h) {
                    share_out<V>(state[h], state[packed.heads + h], chunk.span->end - begin, packed.heads,
                                 attention + begin * packed.heads + h);
                }
            }
        }
    }
}

template <class V, class E>
void merge(const AfgPacked<E>& packed, const AfgSpan* spans, int64_t count, E* out, float* attention) {
    const int64_t columns = packed.dim / packed.heads;
    for (int64_t h = 0; h < packed.heads; ++h) {
        const auto total_of = [&](int64_t s) { return spans[s].state[packed.heads + h]; };
        const auto z_of = [&](int64_t s) { return spans[s].state + 2 * packed.heads + h * columns; };
        float top = spans[0].state[h];
        for (int64_t s = 1; s < count; ++s) top = larger(top, spans[s].state[h]);
        float* z = z_of(0);
        const float first = exp_one<V>(spans[0].state[h] - top);
        float total = total_of(0) * first;
        weigh<V>(z, columns, &first, 1, nullptr, z, columns);
        for (int64_t s = 1; s < count; ++s) {
            const float scale = exp_one<V>(spans[s].state[h] - top);
            total += total_of(s) * scale;
            const float one = 1.0f;
            weigh<V>(z_of(s), columns, &scale, 1, &one, z, columns);
        }
        divide<V>(z, total, columns, out + h * columns);
        if (attention) {
            const int64_t begin = spans[0].begin;
            share_out<V>(top, total, spans[count - 1].end - begin, packed.heads, attention + begin * packed.heads + h);
        }
    }
}

template <class V, class P>
constexpr AfgIsa<typename P::Element> afg_isa() {
    return {V::lanes, V::panel, P::step, gather<V, P>, merge<V>};
}

}  // namespace
}  // namespace merfast
