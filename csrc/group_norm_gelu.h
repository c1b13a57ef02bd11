// Masked GroupNorm with GELU on plain pointers; merfast/ops/group_norm_gelu.py is the contract.
#pragma once

#include <cstdint>
#include <vector>

#include "group_norm_gelu_isa.h"

namespace merfast {

// run() may be called from many threads at the same time.
class GroupNormGelu {
  public:
    // weight and bias [C] are copied; groups divides C.
    GroupNormGelu(const float* weight, const float* bias, int64_t channels, int64_t groups, float eps, Isa isa);

    // x [B, C, T], lengths [B] from 0 to T -> out [B, C, T]. At most `threads` threads work, fewer when the work is
    // small; the result does not depend on how many.
    void run(const float* x, const int64_t* lengths, int64_t batch, int64_t frames, float* out, int threads) const;

    int64_t channels() const { return static_cast<int64_t>(weight_.size()); }

  private:
    std::vector<float> weight_, bias_;
    int64_t groups_;
    float eps_;
    const GroupNormGeluIsa* isa_;
};

}  // namespace merfast
