// What one instruction set offers to the ragged AFG gathering, and the plain data handed to it.
#pragma once

#include "isa.h"

namespace merfast {

// Rows that share one partial result. Fixed, because the order of additions must not depend on the batch or on
// the number of threads: a longer set is merged from spans in order, whoever computed them.
constexpr int64_t kSpanRows = 256;
constexpr int kMaxBlockRows = 128;

// Widths of one gathering and its weights in panels: panel p holds vectors [p * panel, ...) of the attention width for
// each group of `step` input columns in turn, zero beyond A and D; so the inner loop reads it in a straight line. E is
// the type of inputs, weights and results: float, or uint16_t for the bits of bf16.
template <class E>
struct AfgPacked {
    int64_t dim;         // D
    int64_t width;       // A
    int64_t padded;      // A rounded up to whole vectors
    int64_t heads;       // H, divides D
    int64_t guide_dim;   // G, 0 without a guide
    int64_t block_rows;  // rows projected together: what stays in L2 until it is gathered
    int64_t chunk_rows;  // rows per softmax step, counted from the start of a set; at most block_rows
    const E* weight;     // panels of [A, D]
    const E* guide;      // panels of [A, G], or null
    const float* bias;   // [padded]
    const float* score;  // [H, padded]
};

// Rows [begin, end) of one set. Where the set has more rows than these, `state` keeps what merging them needs: maximum
// and sum for each head and the weighted sum, [H], [H] and [D].
struct AfgSpan {
    int64_t set;
    int64_t begin, end;
    float* state;  // null where the span is the whole set
};

template <class E>
struct AfgIsa {
    int lanes;  // floats per vector
    int panel;  // vectors per panel
    int step;   // columns per multiply-add
    // Gathers consecutive spans of x [N, D]; guide is [B, G] or null. Whole sets go into out [B, D]. Scratch, aligned
    // to 64 bytes, holds projected rows [block_rows, padded], energies [H, kMaxBlockRows], the state of a whole set [2
    // H + D] and, with a guide, its terms [block_rows, padded]. Attention [N, H] is null where it is not asked for; it
    // gets that of whole sets, and energies of the others.
    void (*gather)(const AfgPacked<E>& packed, const E* x, const E* guide, const AfgSpan* spans, int64_t count, E* out,
                   float* attention, float* scratch);
    // Folds all spans of one set into the first, in order, and divides into out [D]; makes its energies attention.
    void (*merge)(const AfgPacked<E>& packed, const AfgSpan* spans, int64_t count, E* out, float* attention);
};

const AfgIsa<float>& afg_generic();
#ifdef MERFAST_X86
const AfgIsa<float>& afg_avx2();
const AfgIsa<float>& afg_avx512();
const AfgIsa<uint16_t>& afg_avx512bf16();
#endif

}  // namespace merfast
