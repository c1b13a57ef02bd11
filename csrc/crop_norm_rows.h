// One crop over a vector type V (see vec_generic.h), row by row, where it is not much smaller than its source: source
// rows are blended into a line of floats, samples of the line into a row of the crop, for y, u and v; colours are
// converted and written. Everything lies along the row, so nothing is turned over, and whole cache lines are written.
#pragma once

#include "crop_norm_kernel.h"

namespace merfast {
namespace {

constexpr int64_t kAhead = 4;  // rows of a crop that are worked on while source rows come from memory

// Every second sample of a line stays in it, those between go to `odd`. Whole vectors, beyond the end.
template <class V>
inline void split(float* line, int64_t span, float* odd) {
    for (int64_t i = 0; 2 * i < span; i += V::lanes) {
        const typename V::T a = V::load(line + 2 * i), b = V::load(line + 2 * i + V::lanes);
        V::store(line + i, V::evens(a, b));
        V::store(odd + i, V::odds(a, b));
    }
}

// Samples of a vector that lie close together: each tap takes its samples out of the same two vectors of the line.
template <class V>
inline void blend_near(const CropNear& columns, int64_t count, const float* line, float* out) {
    const float* weight = columns.weight;
    for (int64_t x = 0; x < count; x += V::lanes) {
        const int32_t* at = columns.at + x;
        const typename V::Pair pair = V::load_pair(line + columns.first[x / V::lanes]);
        typename V::T sum = V::zero();
        for (int64_t k = 0; k < columns.taps; ++k, weight += V::lanes) {
            sum = V::fma(V::load(weight), V::pick(pair, at, static_cast<int32_t>(k)), sum);
        }
        V::store(out + x, sum);
    }
}

// Channel c of a row of the crop, out of rows [3][count] of y, u, v.
template <class V>
inline void convert_row(const CropTask& task, int c, const float* yuv, int64_t count, float* out) {
    const typename V::T y = V::set1(task.matrix[c][0]), u = V::set1(task.matrix[c][1]);
    const typename V::T v = V::set1(task.matrix[c][2]), offset = V::set1(task.offset[c]);
    const typename V::T least = V::zero(), most = V::set1(255.0f);
    const typename V::T gain = V::set1(task.gain[c]), bias = V::set1(task.bias[c]);
    for (int64_t x = 0; x < task.width; x += V::lanes, yuv += V::lanes) {
        typename V::T value = V::fma(y, V::load(yuv), offset);
        value = V::fma(u, V::load(yuv + count), value);
        value = V::fma(v, V::load(yuv + 2 * count), value);
        value = V::fma(gain, V::min(V::max(value, least), most), bias);
        V::store_part(out + x, task.width - x, value);
    }
}

// Rows of the planes, up to those under row `y` of the crop, into the caches; `fetched` counts them.
inline void fetch_rows(const CropTask& task, int64_t y, int64_t* fetched) {
    for (int64_t p = 0; p < task.count; ++p) {
        const CropPlane& plane = task.planes[p];
        const int64_t end = plane.down.first[y] + plane.down.taps;
        for (; fetched[p] < end; ++fetched[p]) {
            const uint8_t* row = plane.data + fetched[p] * plane.row + plane.across.low * plane.column;
            for (int64_t i = 0; i < span_of(plane); i += 64) __builtin_prefetch(row + i);
            __builtin_prefetch(row + span_of(plane) - 1);
        }
    }
}

template <class V>
void crop_rows(const CropTask& task) {
    const int64_t height = task.height, width = task.width;
    const int64_t count = (width + V::lanes - 1) / V::lanes * V::lanes;
    float* yuv = task.scratch;     // [3][count]
    float* rgb = yuv + 3 * count;  // [3][count]
    float* lines[2] = {rgb + 3 * count, rgb + 3 * count + task.line};
    int64_t fetched[3];
    for (int64_t p = 0; p < task.count; ++p) fetched[p] = task.planes[p].down.low;
    for (int64_t y = 0; y < height; ++y) {
        fetch_rows(task, y + kAhead < height ? y + kAhead : height - 1, fetched);
        float* row = yuv;
        for (int64_t p = 0; p < task.count; ++p) {
            const CropPlane& plane = task.planes[p];
            const CropAxis& down = plane.down;
            const uint8_t* source = plane.data + down.first[y] * plane.row + plane.across.low * plane.column;
            blend_row<V>(source, plane.row, down.weight + y * down.taps, down.taps, span_of(plane), lines[0]);
            if (plane.column == 2) split<V>(lines[0], span_of(plane), lines[1]);
            for (int64_t c = 0; c < plane.channels; ++c, row += count) blend_near<V>(plane.near, count, lines[c], row);
        }
        float* out = task.bytes ? rgb : static_cast<float*>(task.out) + y * width;
        const int64_t stride = task.bytes ? count : height * width;
        for (int c = 0; c < 3; ++c) convert_row<V>(task, c, yuv, count, out + c * stride);
        if (task.bytes) write_row(task, y, rgb, count);
    }
}

}  // namespace
}  // namespace merfast
