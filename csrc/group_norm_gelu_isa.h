// What one instruction set offers to masked GroupNorm with GELU.
#pragma once

#include "isa.h"

namespace merfast {

struct GroupNormGeluIsa {
    // One group of one sample: `channels` rows of x, `frames` apart, of which the first `length` frames are valid, into
    // rows of out laid out alike, zero beyond; length is at least 1.
    void (*run)(const float* x, int64_t channels, int64_t frames, int64_t length, const float* weight,
                const float* bias, float eps, float* out);
};

const GroupNormGeluIsa& group_norm_gelu_generic();
#ifdef MERFAST_X86
const GroupNormGeluIsa& group_norm_gelu_avx2();
const GroupNormGeluIsa& group_norm_gelu_avx512();
#endif

}  // namespace merfast
