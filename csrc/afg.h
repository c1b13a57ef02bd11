// Attention-guided feature gathering on plain pointers; merfast/ops/afg.py is the contract.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "afg_isa.h"
#include "buffer.h"

namespace merfast {

struct AfgShape {
    int64_t dim, width, heads, guide_dim;  // D, A, H, G; G is 0 without a guide
};

// Gatherings that do not depend on each other, their weights packed once; run() may be called from many threads at the
// same time. E is float, or uint16_t for the bits of bf16.
template <class E>
class AfgGroup {
  public:
    // Row-major, all copied.
    struct Weights {
        const E* weight;        // [A, D]
        const float* bias;      // [A]
        const float* score;     // [H, A]
        const E* absent;        // [D]
        const E* guide_weight;  // [A, G] or null
    };
    // Arguments of one gathering.
    struct Call {
        const E* x;              // [N, D]
        const int64_t* offsets;  // [B + 1] rising from 0 to at most N
        int64_t sets;            // B
        const E* guide;          // [B, G] or null
        E* out;                  // [B, D]
        int64_t rows;            // N
        float* attention;        // [N, H] or null
    };

    explicit AfgGroup(Isa isa);

    void add(const AfgShape& shape, const Weights& weights);

    // One call for each gathering, in the order in which they were added. At most `threads` threads share the sets of
    // all of them, fewer when the work is small; the result does not depend on how many.
    void run(const std::vector<Call>& calls, int threads) const;

    std::size_t size() const { return members_.size(); }
    const AfgShape& shape(std::size_t i) const { return members_[i].shape; }

  private:
    struct Member {
        AfgShape shape;
        AfgPacked<E> packed{};
        Aligned<E> weight, guide;
        AlignedFloats bias, score;
        std::vector<E> absent;
    };
    struct Plan;

    Plan plan(const std::vector<Call>& calls, int threads) const;
    AlignedFloats take_scratch() const;
    void give_scratch(AlignedFloats scratch) const;

    const AfgIsa<E>* isa_;
    std::vector<Member> members_;
    int64_t scratch_floats_ = 0;
    // Scratch of finished calls, so that a small call touches no fresh pages; at most as many as ran side by side.
    mutable std::mutex mutex_;
    mutable std::vector<AlignedFloats> spare_;
};

}  // namespace merfast
