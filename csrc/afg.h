// Attention-guided feature gathering on plain pointers; merfast/ops/afg.py is the contract.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "afg_isa.h"
#include "buffer.h"

namespace merfast {

// Gatherings that do not depend on each other, their weights packed once; run() may be called from many threads at the
// same time.
class AfgGroup {
  public:
    struct Shape {
        int64_t dim, width, heads, guide_dim;  // D, A, H, G; G is 0 without a guide
    };
    // Row-major, all copied.
    struct Weights {
        const float* weight;        // [A, D]
        const float* bias;          // [A]
        const float* score;         // [H, A]
        const float* absent;        // [D]
        const float* guide_weight;  // [A, G] or null
    };
    // Arguments of one gathering.
    struct Call {
        const float* x;          // [N, D]
        const int64_t* offsets;  // [B + 1] rising from 0 to N
        int64_t sets;            // B
        const float* guide;      // [B, G] or null
        float* out;              // [B, D]
    };

    explicit AfgGroup(Isa isa);

    void add(const Shape& shape, const Weights& weights);

    // One call for each gathering, in the order in which they were added. At most `threads` threads share the sets of
    // all of them, fewer when the work is small; the result does not depend on how many.
    void run(const std::vector<Call>& calls, int threads) const;

    std::size_t size() const { return members_.size(); }
    const Shape& shape(std::size_t i) const { return members_[i].shape; }

  private:
    struct Member {
        Shape shape;
        AfgPacked packed{};
        AlignedFloats weight, guide, bias, score;
        std::vector<float> absent;
    };
    struct Plan;

    Plan plan(const std::vector<Call>& calls, int threads) const;
    AlignedFloats take_scratch() const;
    void give_scratch(AlignedFloats scratch) const;

    const AfgIsa* isa_;
    std::vector<Member> members_;
    int64_t scratch_floats_ = 0;
    // Scratch of finished calls, so that a small call touches no fresh pages; at most as many as ran side by side.
    mutable std::mutex mutex_;
    mutable std::vector<AlignedFloats> spare_;
};

}  // namespace merfast
