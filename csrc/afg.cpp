#include "afg.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <limits>
#include <thread>

namespace merfast {
namespace {

constexpr int64_t kBlockBytes = 262144;  // of x: a quarter of the L2 of the machine this was tuned on

// Starting and joining a thread takes 20 to 50 us, and its core starts cold: two threads were faster than one from
// about 30 MFLOP on (AVX-512, D = 128, A = 64).
constexpr double kFlopsPerThread = 4e7;

template <class E>
const AfgIsa<E>& kernels_for(Isa isa);

template <>
const AfgIsa<float>& kernels_for<float>(Isa isa) {
#ifdef MERFAST_X86
    if (isa == Isa::avx512) return afg_avx512();
    if (isa == Isa::avx2) return afg_avx2();
#endif
    (void)isa;
    return afg_generic();
}

#ifdef MERFAST_X86
template <>
const AfgIsa<uint16_t>& kernels_for<uint16_t>(Isa) {
    return afg_avx512bf16();
}
#endif

int64_t round_up(int64_t value, int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

// [width, depth] in panels, see AfgPacked.
template <class E>
Aligned<E> pack(const AfgIsa<E>& isa, const E* weight, int64_t width, int64_t padded, int64_t depth) {
    const int64_t panel = int64_t{isa.panel} * isa.lanes;
    Aligned<E> packed = aligned<E>(padded * round_up(depth, isa.step));
    E* to = packed.get();
    for (int64_t first = 0; first < padded; first += panel) {
        const int64_t end = std::min(first + panel, padded);
        for (int64_t k = 0; k < depth; k += isa.step) {
            for (int64_t a = first; a < end; ++a) {
                for (int64_t i = k; i < k + isa.step; ++i)
                    *to++ = a < width && i < depth ? weight[a * depth + i] : E{0};
            }
        }
    }
    return packed;
}

// [count, width] to [count, padded], zero beyond.
AlignedFloats pad(const float* rows, int64_t count, int64_t width, int64_t padded) {
    AlignedFloats wide = aligned_floats(padded * count);
    for (int64_t r = 0; r < count; ++r) {
        float* to = wide.get() + r * padded;
        std::copy_n(rows + r * width, width, to);
        std::fill(to + width, to + padded, 0.0f);
    }
    return wide;
}

// Floats of a span's running softmax.
int64_t state_floats(const AfgShape& shape) {
    return 2 * shape.heads + shape.dim;
}

double flops(const AfgShape& shape, int64_t rows) {
    return 2.0 * static_cast<double>(rows) * static_cast<double>(shape.dim) * static_cast<double>(shape.width);
}

}  // namespace

// What the threads share out: consecutive spans of one gathering.
template <class E>
struct AfgGroup<E>::Plan {
    struct Piece {
        std::size_t member, first, count;
    };
    std::vector<AfgSpan> spans;
    std::vector<Piece> pieces;
    AlignedFloats states;  // of the spans that are parts of sets
    int workers = 1;
};

template <class E>
AfgGroup<E>::AfgGroup(Isa isa) : isa_(&kernels_for<E>(isa)) {}

template <class E>
void AfgGroup<E>::add(const AfgShape& shape, const Weights& weights) {
    const int64_t padded = round_up(shape.width, isa_->lanes);
    Member made;
    made.shape = shape;
    made.weight = pack(*isa_, weights.weight, shape.width, padded, shape.dim);
    if (weights.guide_weight) made.guide = pack(*isa_, weights.guide_weight, shape.width, padded, shape.guide_dim);
    made.bias = pad(weights.bias, 1, shape.width, padded);
    made.score = pad(weights.score, shape.heads, shape.width, padded);
    made.absent.assign(weights.absent, weights.absent + shape.dim);
    AfgPacked<E>& packed = made.packed;
    packed.dim = shape.dim;
    packed.width = shape.width;
    packed.padded = padded;
    packed.heads = shape.heads;
    packed.guide_dim = shape.guide_dim;
    packed.block_rows = std::clamp<int64_t>(kBlockBytes / (shape.dim * int64_t{sizeof(E)}), 16, kMaxBlockRows);
    packed.chunk_rows = std::min<int64_t>(packed.block_rows, 64);
    packed.weight = made.weight.get();
    packed.guide = made.guide.get();
    packed.bias = made.bias.get();
    packed.score = made.score.get();
    scratch_floats_ = std::max(scratch_floats_, (weights.guide_weight ? 2 : 1) * packed.block_rows * padded +
                                                    shape.heads * kMaxBlockRows + state_floats(shape));
    members_.push_back(std::move(made));
}

template <class E>
AlignedFloats AfgGroup<E>::take_scratch() const {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!spare_.empty()) {
            AlignedFloats scratch = std::move(spare_.back());
            spare_.pop_back();
            return scratch;
        }
    }
    return aligned_floats(scratch_floats_);
}

template <class E>
void AfgGroup<E>::give_scratch(AlignedFloats scratch) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    spare_.push_back(std::move(scratch));
}

template <class E>
typename AfgGroup<E>::Plan AfgGroup<E>::plan(const std::vector<Call>& calls, int threads) const {
    std::size_t count = 0;
    int64_t floats = 0;
    double total = 0;
    for (std::size_t i = 0; i < calls.size(); ++i) {
        const Call& call = calls[i];
        for (int64_t b = 0; b < call.sets; ++b) {
            const int64_t spans = (call.offsets[b + 1] - call.offsets[b] + kSpanRows - 1) / kSpanRows;
            count += static_cast<std::size_t>(spans);
            if (spans > 1) floats += spans * state_floats(shape(i));
        }
        total += flops(shape(i), call.offsets[call.sets]);
    }
    Plan made;
    const int64_t useful = static_cast<int64_t>(std::min(total / kFlopsPerThread, 1e6)) + 1;
    made.workers = static_cast<int>(std::min({int64_t{threads}, useful, static_cast<int64_t>(count)}));
    // About eight pieces for each worker, taken in order by whoever is free.
    const double enough = made.workers > 1 ? total / (8 * made.workers) : std::numeric_limits<double>::infinity();
    made.spans.reserve(count);
    made.states = aligned_floats(floats);
    float* state = made.states.get();
    for (std::size_t i = 0; i < calls.size(); ++i) {
        const int64_t* offsets = calls[i].offsets;
        std::size_t first = made.spans.size();
        const auto cut = [&] {
            if (made.spans.size() > first) made.pieces.push_back({i, first, made.spans.size() - first});
            first = made.spans.size();
        };
        for (int64_t b = 0; b < calls[i].sets; ++b) {
            const bool whole = offsets[b + 1] - offsets[b] <= kSpanRows;
            for (int64_t begin = offsets[b]; begin < offsets[b + 1]; begin += kSpanRows) {
                const int64_t end = std::min(begin + kSpanRows, offsets[b + 1]);
                made.spans.push_back(AfgSpan{b, begin, end, whole ? nullptr : state});
                if (!whole) state += state_floats(shape(i));
                if (flops(shape(i), end - made.spans[first].begin) >= enough) cut();
            }
        }
        cut();
    }
    return made;
}

template <class E>
void AfgGroup<E>::run(const std::vector<Call>& calls, int threads) const {
    const Plan plan = this->plan(calls, threads);
    std::atomic<std::size_t> next{0};
    const auto work = [&](float* scratch) {
        for (std::size_t p; (p = next.fetch_add(1)) < plan.pieces.size();) {
            const auto& piece = plan.pieces[p];
            const Call& call = calls[piece.member];
            isa_->gather(members_[piece.member].packed, call.x, call.guide, &plan.spans[piece.first],
                         static_cast<int64_t>(piece.count), call.out, call.attention, scratch);
        }
    };
    // Scratch is taken here, where running out of memory can still be thrown.
    std::vector<AlignedFloats> scratch(static_cast<std::size_t>(plan.workers));
    for (AlignedFloats& buffer : scratch) buffer = take_scratch();
    std::vector<std::thread> helpers;
    helpers.reserve(scratch.size());
    for (std::size_t i = 1; i < scratch.size(); ++i) {
        try {
            helpers.emplace_back(work, scratch[i].get());
        } catch (const std::exception&) {
            break;  // no more threads or memory to be had: the threads there are do the work
        }
    }
    if (!scratch.empty()) work(scratch[0].get());
    for (std::thread& helper : helpers) helper.join();
    for (AlignedFloats& buffer : scratch) give_scratch(std::move(buffer));

    const AfgSpan* span = plan.spans.data();
    for (std::size_t i = 0; i < calls.size(); ++i) {
        const Call& call = calls[i];
        for (int64_t b = 0; b < call.sets; ++b) {
            const int64_t rows = call.offsets[b + 1] - call.offsets[b];
            const int64_t spans = (rows + kSpanRows - 1) / kSpanRows;
            E* out = call.out + b * shape(i).dim;
            if (spans == 0) std::copy(members_[i].absent.begin(), members_[i].absent.end(), out);
            if (spans > 1) isa_->merge(members_[i].packed, span, spans, out, call.attention);
            span += spans;
        }
        if (call.attention) {  // of rows that belong to no set
            const int64_t heads = shape(i).heads;
            std::fill(call.attention + call.offsets[call.sets] * heads, call.attention + call.rows * heads, 0.0f);
        }
    }
}

template class AfgGroup<float>;
#ifdef MERFAST_X86
template class AfgGroup<uint16_t>;
#endif

}  // namespace merfast
