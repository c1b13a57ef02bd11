// Attention-guided feature gathering on plain pointers; merfast/ops/afg.py is the contract.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "afg_isa.h"

namespace merfast {

// Weights of one gathering, packed once; run() may be called from many threads at the same time.
class Afg {
  public:
    struct Shape {
        int64_t dim, width, heads, guide_dim;  // D, A, H, G; G is 0 without a guide
    };

    // weight [A, D], bias [A], score [H, A], absent [D], guide_weight [A, G] or null, all row-major and copied.
    Afg(const Shape& shape, const float* weight, const float* bias, const float* score, const float* absent,
        const float* guide_weight, Isa isa);

    // x [N, D], offsets [B + 1] rising from 0 to N, guide [B, G] or null, out [B, D]. At most `threads` threads work,
    // fewer when the work is small; the result does not depend on how many.
    void run(const float* x, const int64_t* offsets, int64_t sets, const float* guide, float* out, int threads) const;

    const Shape& shape() const { return shape_; }

  private:
    struct Free {
        void operator()(float* p) const;
    };
    using Buffer = std::unique_ptr<float[], Free>;

    static Buffer allocate(int64_t floats);
    Buffer pack(const float* weight, int64_t depth) const;
    Buffer pad(const float* rows, int64_t count) const;
    Buffer take_scratch() const;
    void give_scratch(Buffer scratch) const;
    void gather(const float* x, const float* guide, const std::vector<AfgSpan>& spans, int64_t rows, int threads) const;

    Shape shape_;
    const AfgIsa* isa_;
    AfgPacked packed_{};
    int64_t scratch_floats_ = 0;
    Buffer weight_, guide_, bias_, score_;
    std::vector<float> absent_;
    // Scratch of finished calls, so that a small call touches no fresh pages; at most as many as ran side by side.
    mutable std::mutex mutex_;
    mutable std::vector<Buffer> spare_;
};

}  // namespace merfast
