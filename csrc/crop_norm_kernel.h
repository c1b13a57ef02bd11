// One crop over a vector type V (see vec_generic.h), of any scale. As many output rows at a time as V has lanes: the
// source rows are blended into each (vectors along the row), the block is turned over, columns are blended and colours
// converted with one output row in each lane, and the block is turned back. So both passes read and write whole
// vectors, whatever the scale. A block stays in the nearest caches, and every source row is read where it lies.
#pragma once

#include "crop_norm_isa.h"

namespace merfast {
namespace {

// Bytes of a row of the plane that are in use.
inline int64_t span_of(const CropPlane& plane) {
    return (plane.across.high - plane.across.low - 1) * plane.column + plane.channels;
}

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

// rows [lanes][stride] -> block [columns, rounded up to fours][lanes]
template <class V>
inline void turn(const float* rows, int64_t stride, int64_t columns, float* block) {
    for (int64_t c = 0; c < columns; c += 4, block += 4 * V::lanes) {
        typename V::T line[4];
        for (int i = 0; i < 4; ++i) line[i] = V::load_fours(rows + i * stride + c, stride);
        V::turn_fours(line[0], line[1], line[2], line[3]);
        for (int i = 0; i < 4; ++i) V::store(block + i * V::lanes, line[i]);
    }
}

inline int64_t fours(int64_t n) {
    return (n + 3) / 4 * 4;
}

// out[x][lane] = sum over k of weight[k] * block[(first[x] - low + k) * column + channel][lane].
template <class V>
inline void blend_columns(const CropPlane& plane, int64_t channel, int64_t width, const float* block, float* out) {
    const CropAxis& axis = plane.across;
    const int64_t next = plane.column * V::lanes;
    for (int64_t x = 0; x < width; ++x) {
        const float* at = block + (axis.first[x] - axis.low) * next + channel * V::lanes;
        const float* weight = axis.weight + x * axis.taps;
        typename V::T sum = V::zero();
        for (int64_t k = 0; k < axis.taps; ++k) {
            sum = V::fma(V::set1(weight[k]), V::load(at + k * next), sum);
        }
        V::store(out + x * V::lanes, sum);
    }
}

// Channel c of `lanes` rows of the crop, out of yuv [3][columns][lanes], to rows that are `stride` floats apart.
template <class V>
inline void convert(const CropTask& task, int c, const float* yuv, int64_t columns, float* rows, int64_t stride) {
    const int64_t block = columns * V::lanes;
    const typename V::T least = V::zero(), most = V::set1(255.0f);
    const typename V::T y = V::set1(task.matrix[c][0]), u = V::set1(task.matrix[c][1]);
    const typename V::T v = V::set1(task.matrix[c][2]), offset = V::set1(task.offset[c]);
    const typename V::T gain = V::set1(task.gain[c]), bias = V::set1(task.bias[c]);
    for (int64_t x = 0; x < columns; x += 4, yuv += 4 * V::lanes) {
        typename V::T line[4];
        for (int i = 0; i < 4; ++i) {
            const float* at = yuv + i * V::lanes;
            typename V::T value = V::fma(y, V::load(at), offset);
            value = V::fma(u, V::load(at + block), value);
            value = V::fma(v, V::load(at + 2 * block), value);
            line[i] = V::fma(gain, V::min(V::max(value, least), most), bias);
        }
        V::turn_fours(line[0], line[1], line[2], line[3]);
        for (int i = 0; i < 4; ++i) V::store_fours(rows + i * stride + x, stride, line[i]);
    }
}

// Row `y` of the crop from its three channels, [3][stride].
inline void write_row(const CropTask& task, int64_t y, const float* row, int64_t stride) {
    const int64_t width = task.width;
    if (!task.bytes) {
        for (int64_t c = 0; c < 3; ++c) {
            float* out = static_cast<float*>(task.out) + (c * task.height + y) * width;
            __builtin_memcpy(out, row + c * stride, static_cast<uint64_t>(width) * sizeof(float));
        }
        return;
    }
    uint8_t* out = static_cast<uint8_t*>(task.out) + y * width * 3;
    for (int64_t x = 0; x < width; ++x) {
        for (int64_t c = 0; c < 3; ++c) {
            out[3 * x + c] = static_cast<uint8_t>(static_cast<int32_t>(row[c * stride + x]));
        }
    }
}

template <class V>
void crop(const CropTask& task) {
    constexpr int64_t lanes = V::lanes;
    const int64_t height = task.height, width = task.width, wide = fours(width);
    float* yuv = task.scratch;             // [3][wide][lanes]
    float* rows = yuv + 3 * wide * lanes;  // [lanes][span, rounded up], then [lanes][3][wide]
    // The last columns of yuv are no columns of the crop: what is computed of them is not written, but must be finite.
    for (int64_t p = 0; p < 3; ++p) {
        for (int64_t i = width * lanes; i < wide * lanes; ++i) yuv[p * wide * lanes + i] = 0.0f;
    }
    for (int64_t y = 0; y < height; y += lanes) {
        const int64_t filled = height - y < lanes ? height - y : lanes;
        float* blended = yuv;
        for (int64_t p = 0; p < task.count; ++p) {
            const CropPlane& plane = task.planes[p];
            const int64_t span = span_of(plane), stride = fours(span);
            float* block = rows + lanes * stride;  // [span, rounded up][lanes]
            for (int64_t i = 0; i < lanes; ++i) {
                const int64_t at = i < filled ? y + i : height - 1;
                const uint8_t* source = plane.data + plane.down.first[at] * plane.row + plane.across.low * plane.column;
                blend_row<V>(source, plane.row, plane.down.weight + at * plane.down.taps, plane.down.taps, span,
                             rows + i * stride);
            }
            turn<V>(rows, stride, span, block);
            for (int64_t c = 0; c < plane.channels; ++c, blended += wide * lanes) {
                blend_columns<V>(plane, c, width, block, blended);
            }
        }
        if (!task.bytes && filled == lanes && wide == width) {
            float* out = static_cast<float*>(task.out) + y * width;
            for (int c = 0; c < 3; ++c) convert<V>(task, c, yuv, wide, out + c * height * width, width);
            continue;
        }
        for (int c = 0; c < 3; ++c) convert<V>(task, c, yuv, wide, rows + c * wide, 3 * wide);
        for (int64_t i = 0; i < filled; ++i) write_row(task, y + i, rows + i * 3 * wide, wide);
    }
}

}  // namespace
}  // namespace merfast
