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

// A plane or, with two channels, a pair of them that share bytes: channel c of column j is at column * j + c.
struct CropPlane {
    const uint8_t* data;
    int64_t row, column;  // bytes from one to the next
    int64_t channels;
    CropAxis down, across;
};

struct CropTask {
    CropPlane planes[3];  // y, u, v; or y and u with v
    int64_t count;        // of planes
    int64_t size;
    // Channel c is clamped to [0, 255] of offset[c] + sum over y, u, v of matrix[c][.], then times gain[c] plus
    // bias[c].
    float matrix[3][3], offset[3], gain[3], bias[3];
    bool bytes;
    void* out;
    float* scratch;  // see crop_norm.cpp
};

struct CropNormIsa {
    int64_t lanes;
    void (*crop)(const CropTask&);
};

const CropNormIsa& crop_norm_generic();
const CropNormIsa& crop_norm_avx2();
const CropNormIsa& crop_norm_avx512();

}  // namespace merfast
