// What one instruction set offers to joint decoding, and the plain data handed to it.
#pragma once

#include "isa.h"

namespace merfast {

constexpr int kDecodeRows = 48;  // samples decoded together; a multiple of every register tile's height

// Widths and packed weights of S structures. Columns of one structure's product with z: hidden units, then classes,
// each rounded up to whole vectors, the rest zero.
struct DecodePacked {
    int64_t structures;     // S
    int64_t dim;            // D
    int64_t classes;        // C
    int64_t pad_classes;    // C in whole vectors
    int64_t pad_hidden;     // M in whole vectors
    const float* weight;    // [S] panels of [pad_hidden + pad_classes, D], see afg_project.h
    const float* bias;      // [S, pad_hidden + pad_classes]
    const float* given;     // [S, C, pad_hidden], hidden weights of the posterior
    const float* out;       // [S, pad_hidden], valence weights
    const float* means;     // [S, pad_classes], mu
    const float* constant;  // [S], valence bias
    const float* mix;       // [S]
    float temperature;
    float limit;
};

struct DecodeIsa {
    int lanes;  // floats per vector
    int panel;  // vectors per panel
    // Samples [first, first + rows) of z [S, batch, D], at most kDecodeRows, into posterior [batch, C] and valence
    // [batch]. Scratch, aligned to 64 bytes, holds rows * (pad_hidden + 2 pad_classes) floats.
    void (*run)(const DecodePacked& packed, const float* z, int64_t batch, int64_t first, int64_t rows,
                float* posterior, float* valence, float* scratch);
};

const DecodeIsa& decode_generic();
#ifdef MERFAST_X86
const DecodeIsa& decode_avx2();
const DecodeIsa& decode_avx512();
#endif

}  // namespace merfast
