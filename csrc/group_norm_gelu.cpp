#include "group_norm_gelu.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>

namespace merfast {
namespace {

// About 100 us with AVX-512, against 20 to 50 us for starting and joining a thread.
constexpr int64_t kFramesPerThread = 262144;

const GroupNormGeluIsa& kernels_for(Isa isa) {
#ifdef MERFAST_X86
    if (isa == Isa::avx512) return group_norm_gelu_avx512();
    if (isa == Isa::avx2) return group_norm_gelu_avx2();
#endif
    (void)isa;
    return group_norm_gelu_generic();
}

}  // namespace

GroupNormGelu::GroupNormGelu(const float* weight, const float* bias, int64_t channels, int64_t groups, float eps,
                             Isa isa)
    : weight_(weight, weight + channels),
      bias_(bias, bias + channels),
      groups_(groups),
      eps_(eps),
      isa_(&kernels_for(isa)) {}

void GroupNormGelu::run(const float* x, const int64_t* lengths, int64_t batch, int64_t frames, float* out,
                        int threads) const {
    const int64_t each = channels() / groups_;
    const int64_t pieces = batch * groups_;
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        for (int64_t piece; (piece = next.fetch_add(1)) < pieces;) {
            const int64_t length = lengths[piece / groups_];
            const int64_t channel = piece % groups_ * each;
            const int64_t first = piece * each * frames;
            if (length == 0) {
                std::fill_n(out + first, each * frames, 0.0f);
            } else {
                isa_->run(x + first, each, frames, length, &weight_[channel], &bias_[channel], eps_, out + first);
            }
        }
    };
    int64_t total = 0;
    for (int64_t b = 0; b < batch; ++b) total += lengths[b] * channels();
    const int64_t workers = std::min({int64_t{threads}, total / kFramesPerThread + 1, pieces});
    std::vector<std::thread> helpers;
    helpers.reserve(static_cast<std::size_t>(std::max<int64_t>(workers, 1) - 1));
    for (int64_t i = 1; i < workers; ++i) {
        try {
            helpers.emplace_back(work);
        } catch (const std::exception&) {
            break;  // no more threads or memory to be had: the threads there are do the work
        }
    }
    work();
    for (std::thread& helper : helpers) helper.join();
}

}  // namespace merfast
