// One crop over a vector type V (see vec_generic.h). As many output rows at a time as V has lanes: the source rows are
// blended into each (vectors along the row), the block is turned over, columns are blended and colours converted with
// one output row in each lane, and the block is turned back. So both passes read and write whole vectors, whatever the
// scale. Everything of a block stays in the first-level cache, and every source row is read where it lies.
#pragma once

#include "crop_norm_isa.h"

namespace merfast {
namespace {

// out[i] = sum over t of weight[t] * source[t * row + i], for `count` vectors.
template <class V, int count>
inline void blend_rows(const uint8_t* source, int64_t row, const float* weight, int64_t taps, float* out) {
    typename V::T sum[count];
    for (int i = 0; i < count; ++i) sum[i] = V::zero();
    for (int64_t t = 0; t < taps; ++t, source += row) {
        const typename V::T w = V::set1(weight[t]);
        for (int i = 0; i < count; ++i) sum[i] = V::fma(w, V::load_bytes(source + i * V::lanes), sum[i]);
    }
    for (int i = 0; i < count; ++i) V::store(out + i * V::lanes, sum[i]);
}

// The same for any width. The last vector overlaps the one before it, so nothing beyond the row is touched.
template <class V>
inline void blend_row(const uint8_t* source, int64_t row, const float* weight, int64_t taps, int64_t width,
                      float* out) {
    int64_t i = 0;
    for (; i + 4 * V::lanes <= width; i += 4 * V::lanes) blend_rows<V, 4>(source + i, row, weight, taps, out + i);
    for (; i + V::lanes <= width; i += V::lanes) blend_rows<V, 1>(source + i, row, weight, taps, out + i);
    if (i == width) return;
    if (width >= V::lanes) {
        i = width - V::lanes;
        return blend_rows<V, 1>(source + i, row, weight, taps, out + i);
    }
    for (; i < width; ++i) {
        float sum = 0.0f;
        for (int64_t t = 0; t < taps; ++t) sum += weight[t] * static_cast<float>(source[t * row + i]);
        out[i] = sum;
    }
}

typedef float Four __attribute__((vector_size(16)));

// [rows, columns] -> [columns, rows]; both counts are multiples of four, and so are the strides large enough for.
inline void turn(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
    for (int64_t r = 0; r < rows; r += 4) {
        for (int64_t c = 0; c < columns; c += 4) {
            Four line[4];
            for (int i = 0; i < 4; ++i) __builtin_memcpy(&line[i], from + (r + i) * from_stride + c, sizeof(Four));
            for (int i = 0; i < 4; ++i) {
                const Four column = {line[0][i], line[1][i], line[2][i], line[3][i]};
                __builtin_memcpy(to + (c + i) * to_stride + r, &column, sizeof(Four));
            }
        }
    }
}

inline int64_t fours(int64_t n) {
    return (n + 3) / 4 * 4;
}

// out[x][lane] = sum over k of weight[k] * block[(first[x] - low + k) * column + channel][lane].
template <class V>
inline void blend_columns(const CropPlane& plane, int64_t channel, int64_t size, const float* block, float* out) {
    const CropAxis& axis = plane.across;
    const int64_t next = plane.column * V::lanes;
    for (int64_t x = 0; x < size; ++x) {
        const float* at = block + (axis.first[x] - axis.low) * next + channel * V::lanes;
        const float* weight = axis.weight + x * axis.taps;
        typename V::T sum = V::zero();
        for (int64_t k = 0; k < axis.taps; ++k) {
            sum = V::fma(V::set1(weight[k]), V::load(at + k * next), sum);
        }
        V::store(out + x * V::lanes, sum);
    }
}

template <class V>
inline void convert(const CropTask& task, const float* yuv, float* rgb) {
    const int64_t block = task.size * V::lanes;
    const typename V::T least = V::zero(), most = V::set1(255.0f);
    for (int c = 0; c < 3; ++c) {
        const typename V::T y = V::set1(task.matrix[c][0]), u = V::set1(task.matrix[c][1]);
        const typename V::T v = V::set1(task.matrix[c][2]), offset = V::set1(task.offset[c]);
        const typename V::T gain = V::set1(task.gain[c]), bias = V::set1(task.bias[c]);
        for (int64_t i = 0; i < block; i += V::lanes) {
            typename V::T value = V::fma(y, V::load(yuv + i), offset);
            value = V::fma(u, V::load(yuv + block + i), value);
            value = V::fma(v, V::load(yuv + 2 * block + i), value);
            value = V::min(V::max(value, least), most);
            V::store(rgb + c * block + i, V::fma(gain, value, bias));
        }
    }
}

// Row `y` of the crop from its three channels, [3][stride].
inline void write_row(const CropTask& task, int64_t y, const float* row, int64_t stride) {
    const int64_t size = task.size;
    if (!task.bytes) {
        for (int64_t c = 0; c < 3; ++c) {
            float* out = static_cast<float*>(task.out) + (c * size + y) * size;
            __builtin_memcpy(out, row + c * stride, static_cast<uint64_t>(size) * sizeof(float));
        }
        return;
    }
    uint8_t* out = static_cast<uint8_t*>(task.out) + y * size * 3;
    for (int64_t x = 0; x < size; ++x) {
        for (int64_t c = 0; c < 3; ++c) {
            out[3 * x + c] = static_cast<uint8_t>(static_cast<int32_t>(row[c * stride + x]));
        }
    }
}

template <class V>
void crop(const CropTask& task) {
    constexpr int64_t lanes = V::lanes;
    const int64_t size = task.size, wide = fours(size);
    float* yuv = task.scratch;             // [3][size][lanes]
    float* rgb = yuv + 3 * size * lanes;   // [3][size, rounded up][lanes]
    float* rows = rgb + 3 * wide * lanes;  // [lanes][span, rounded up], then [3][lanes][wide]
    for (int64_t y = 0; y < size; y += lanes) {
        const int64_t filled = size - y < lanes ? size - y : lanes;
        float* blended = yuv;
        for (int64_t p = 0; p < task.count; ++p) {
            const CropPlane& plane = task.planes[p];
            const int64_t span = (plane.across.high - plane.across.low - 1) * plane.column + plane.channels;
            const int64_t stride = fours(span);
            float* block = rows + lanes * stride;  // [span, rounded up][lanes]
            for (int64_t i = 0; i < lanes; ++i) {
                const int64_t at = i < filled ? y + i : size - 1;
                const uint8_t* source = plane.data + plane.down.first[at] * plane.row + plane.across.low * plane.column;
                blend_row<V>(source, plane.row, plane.down.weight + at * plane.down.taps, plane.down.taps, span,
                             rows + i * stride);
            }
            turn(rows, stride, lanes, stride, block, lanes);
            for (int64_t c = 0; c < plane.channels; ++c, blended += size * lanes) {
                blend_columns<V>(plane, c, size, block, blended);
            }
        }
        convert<V>(task, yuv, rgb);
        for (int64_t c = 0; c < 3; ++c) turn(rgb + c * size * lanes, lanes, wide, lanes, rows + c * wide, 3 * wide);
        for (int64_t i = 0; i < filled; ++i) write_row(task, y + i, rows + i * 3 * wide, wide);
    }
}

}  // namespace
}  // namespace merfast
