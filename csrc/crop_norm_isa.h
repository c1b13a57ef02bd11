// What an instruction set offers for crops.
#pragma once

#include "isa.h"

namespace merfast {

// One axis: output sample i is the sum over k of weight[i * taps + k] * source[first[i] + k]. All of them have the same
// number of taps, some of weight 0, and stay within [low, high).
struct CropAxis {
    const int64_t* first;
    const float* weight;
    int64_t taps, low, high;
};

// The same axis for whole vectors of output samples, where the source samples of each lie within two vectors. Sample i
// is the sum over k of weight[i's vector][k][i's lane] * line[first[i's vector] + at[i] + k]; line begins with `low`.
struct CropNear {
    const int64_t* first;
    const int32_t* at;
    const float* weight;
    int64_t taps;
};

// A plane or, with two channels, a pair of them that share bytes: channel c of column j is at column * j + c.
struct CropPlane {
    const uint8_t* data;
    int64_t row, column;  // bytes from one to the next
    int64_t channels;
    CropAxis down, across;
    CropNear near;  // across, for crop_rows
};

struct CropTask {
    CropPlane planes[3];    // y, u, v; or y and u with v
    int64_t count;          // of planes
    int64_t height, width;  // of the crop
    // Channel c is clamped to [0, 255] of offset[c] + sum over y, u, v of matrix[c][.], then times gain[c] plus
    // bias[c].
    float matrix[3][3], offset[3], gain[3], bias[3];
    bool bytes;
    void* out;
    int64_t line;    // floats in scratch for a line, in crop_rows
    float* scratch;  // see crop_norm.cpp
};

struct CropNormIsa {
    int64_t lanes;
    void (*crop)(const CropTask&);
    void (*crop_rows)(const CropTask&);
};

const CropNormIsa& crop_norm_generic();
const CropNormIsa& crop_norm_avx2();
const CropNormIsa& crop_norm_avx512();

}  // namespace merfast
