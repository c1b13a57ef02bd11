#include "afg.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <thread>

namespace merfast {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr int64_t kBlockFloats = 65536;  // 256 KiB of x, a quarter of the L2 of the machine this was tuned on

// Starting and joining a thread takes 20 to 50 us, and its core starts cold: two threads were faster than one from
// about 30 MFLOP on (AVX-512, D = 128, A = 64).
constexpr double kFlopsPerThread = 4e7;

const AfgIsa& kernels_for(Isa isa) {
#ifdef MERFAST_X86
    if (isa == Isa::avx512) return afg_avx512();
    if (isa == Isa::avx2) return afg_avx2();
#endif
    (void)isa;
    return afg_generic();
}

int64_t round_up(int64_t value, int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

}  // namespace

void Afg::Free::operator()(float* p) const {
    ::operator delete[](p, std::align_val_t(kAlignment));
}

Afg::Buffer Afg::allocate(int64_t floats) {
    return Buffer(static_cast<float*>(
        ::operator new[](static_cast<std::size_t>(floats) * sizeof(float), std::align_val_t(kAlignment))));
}

Afg::Afg(const Shape& shape, const float* weight, const float* bias, const float* score, const float* absent,
         const float* guide_weight, Isa isa)
    : shape_(shape), isa_(&kernels_for(isa)), absent_(absent, absent + shape.dim) {
    packed_.dim = shape.dim;
    packed_.width = shape.width;
    packed_.padded = round_up(shape.width, isa_->lanes);
    packed_.heads = shape.heads;
    packed_.guide_dim = shape.guide_dim;
    packed_.block_rows = std::clamp<int64_t>(kBlockFloats / shape.dim, 16, kMaxBlockRows);
    packed_.chunk_rows = std::min<int64_t>(packed_.block_rows, 64);
    weight_ = pack(weight, shape.dim);
    bias_ = pad(bias, 1);
    score_ = pad(score, shape.heads);
    packed_.weight = weight_.get();
    packed_.bias = bias_.get();
    packed_.score = score_.get();
    if (guide_weight) {
        guide_ = pack(guide_weight, shape.guide_dim);
        packed_.guide = guide_.get();
    }
    scratch_floats_ = (guide_weight ? 2 : 1) * packed_.block_rows * packed_.padded + shape.heads * kMaxBlockRows;
}

Afg::Buffer Afg::pack(const float* weight, int64_t depth) const {
    const int64_t panel = int64_t{isa_->panel} * isa_->lanes;
    Buffer packed = allocate(packed_.padded * depth);
    float* to = packed.get();
    for (int64_t first = 0; first < packed_.padded; first += panel) {
        const int64_t end = std::min(first + panel, packed_.padded);
        for (int64_t k = 0; k < depth; ++k) {
            for (int64_t a = first; a < end; ++a) *to++ = a < shape_.width ? weight[a * depth + k] : 0.0f;
        }
    }
    return packed;
}

Afg::Buffer Afg::pad(const float* rows, int64_t count) const {
    Buffer padded = allocate(packed_.padded * count);
    for (int64_t r = 0; r < count; ++r) {
        float* to = padded.get() + r * packed_.padded;
        std::copy_n(rows + r * shape_.width, shape_.width, to);
        std::fill(to + shape_.width, to + packed_.padded, 0.0f);
    }
    return padded;
}

Afg::Buffer Afg::take_scratch() const {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!spare_.empty()) {
            Buffer scratch = std::move(spare_.back());
            spare_.pop_back();
            return scratch;
        }
    }
    return allocate(scratch_floats_);
}

void Afg::give_scratch(Buffer scratch) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    spare_.push_back(std::move(scratch));
}

void Afg::run(const float* x, const int64_t* offsets, int64_t sets, const float* guide, float* out, int threads) const {
    const int64_t dim = shape_.dim;
    const int64_t heads = shape_.heads;
    int64_t count = 0;
    int64_t extra = 0;  // spans that are not the first of their set: their sums live here, not in out
    for (int64_t b = 0; b < sets; ++b) {
        const int64_t rows = offsets[b + 1] - offsets[b];
        const int64_t spans = (rows + kSpanRows - 1) / kSpanRows;
        count += spans;
        extra += std::max<int64_t>(spans - 1, 0);
        if (rows == 0) std::memcpy(out + b * dim, absent_.data(), static_cast<std::size_t>(dim) * sizeof(float));
    }
    if (count == 0) return;
    const Buffer state = allocate(2 * count * heads + extra * dim);
    float* top = state.get();
    float* z = top + 2 * count * heads;
    std::vector<AfgSpan> spans;
    spans.reserve(static_cast<std::size_t>(count));
    for (int64_t b = 0; b < sets; ++b) {
        const int64_t end = offsets[b + 1];
        for (int64_t begin = offsets[b]; begin < end; begin += kSpanRows, top += 2 * heads) {
            const bool first = begin == offsets[b];
            spans.push_back(AfgSpan{b, begin, std::min(begin + kSpanRows, end), top, top + heads,
                                    first ? out + b * dim : z, end - offsets[b] <= kSpanRows});
            if (!first) z += dim;
        }
    }
    gather(x, guide, spans, offsets[sets] - offsets[0], threads);
    for (std::size_t first = 0, last; extra > 0 && first < spans.size(); first = last) {
        for (last = first + 1; last < spans.size() && spans[last].set == spans[first].set;) ++last;
        if (last - first > 1) isa_->merge(packed_, &spans[first], static_cast<int64_t>(last - first));
    }
}

void Afg::gather(const float* x, const float* guide, const std::vector<AfgSpan>& spans, int64_t rows,
                 int threads) const {
    const double flops =
        2.0 * static_cast<double>(rows) * static_cast<double>(shape_.dim) * static_cast<double>(shape_.width);
    const int64_t useful = static_cast<int64_t>(std::min(flops / kFlopsPerThread, 1e6)) + 1;
    const int workers = static_cast<int>(std::min({int64_t{threads}, useful, static_cast<int64_t>(spans.size())}));
    if (workers <= 1) {
        Buffer scratch = take_scratch();
        isa_->gather(packed_, x, guide, spans.data(), static_cast<int64_t>(spans.size()), scratch.get());
        give_scratch(std::move(scratch));
        return;
    }
    // Pieces of whole spans, about eight for each worker, taken in order by whoever is free.
    const int64_t target = rows / (int64_t{workers} * 8);
    std::vector<std::size_t> cuts{0};
    for (std::size_t s = 0; s < spans.size(); ++s) {
        if (spans[s].end - spans[cuts.back()].begin >= target || s + 1 == spans.size()) cuts.push_back(s + 1);
    }
    std::atomic<std::size_t> next{0};
    const auto work = [&](float* scratch) {
        for (std::size_t piece; (piece = next.fetch_add(1)) + 1 < cuts.size();) {
            const int64_t length = static_cast<int64_t>(cuts[piece + 1] - cuts[piece]);
            isa_->gather(packed_, x, guide, &spans[cuts[piece]], length, scratch);
        }
    };
    // Scratch is taken here, where running out of memory can still be thrown.
    std::vector<Buffer> scratch(static_cast<std::size_t>(workers));
    for (Buffer& buffer : scratch) buffer = take_scratch();
    std::vector<std::thread> helpers;
    helpers.reserve(static_cast<std::size_t>(workers - 1));
    for (int i = 1; i < workers; ++i) {
        try {
            helpers.emplace_back(work, scratch[static_cast<std::size_t>(i)].get());
        } catch (const std::exception&) {
            break;  // no more threads or memory to be had: the threads there are do the work
        }
    }
    work(scratch[0].get());
    for (std::thread& helper : helpers) helper.join();
    for (Buffer& buffer : scratch) give_scratch(std::move(buffer));
}

}  // namespace merfast
