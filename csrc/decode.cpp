#include "decode.h"

#include <algorithm>

namespace merfast {
namespace {

const DecodeIsa& kernels_for(Isa isa) {
#ifdef MERFAST_X86
    if (isa == Isa::avx512) return decode_avx512();
    if (isa == Isa::avx2) return decode_avx2();
#endif
    (void)isa;
    return decode_generic();
}

int64_t round_up(int64_t value, int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

AlignedFloats zeros(int64_t count) {
    AlignedFloats made = aligned_floats(count);
    std::fill_n(made.get(), count, 0.0f);
    return made;
}

}  // namespace

Decode::Decode(const Shape& shape, const Weights& weights, float temperature, float limit, Isa isa)
    : shape_(shape), isa_(&kernels_for(isa)) {
    packed_.structures = shape.structures;
    packed_.dim = shape.dim;
    packed_.classes = shape.classes;
    packed_.pad_classes = round_up(shape.classes, isa_->lanes);
    packed_.pad_hidden = round_up(shape.hidden, isa_->lanes);
    packed_.temperature = temperature;
    packed_.limit = limit;
    const int64_t count = shape.structures;
    const int64_t width = packed_.pad_hidden + packed_.pad_classes;
    weight_ = zeros(count * width * shape.dim);
    bias_ = zeros(count * width);
    given_ = zeros(count * shape.classes * packed_.pad_hidden);
    out_ = zeros(count * packed_.pad_hidden);
    means_ = zeros(count * packed_.pad_classes);
    constant_ = zeros(count);
    mix_ = zeros(count);
    for (int64_t s = 0; s < count; ++s) pack(weights, s);
    std::copy_n(weights.valence_bias, count, constant_.get());
    std::copy_n(weights.mix, count, mix_.get());
    packed_.weight = weight_.get();
    packed_.bias = bias_.get();
    packed_.given = given_.get();
    packed_.out = out_.get();
    packed_.means = means_.get();
    packed_.constant = constant_.get();
    packed_.mix = mix_.get();
}

void Decode::pack(const Weights& weights, int64_t s) {
    const auto [structures, classes, dim, hidden] = shape_;
    const int64_t pad_hidden = packed_.pad_hidden;
    const int64_t width = pad_hidden + packed_.pad_classes;
    const int64_t joint = dim + classes;
    const float* hidden_weight = weights.hidden_weight + s * hidden * joint;
    const float* emotion_weight = weights.emotion_weight + s * classes * dim;
    float* to = weight_.get() + s * width * dim;
    const int64_t panel = int64_t{isa_->panel} * isa_->lanes;
    for (int64_t first = 0; first < width; first += panel) {
        const int64_t end = std::min(first + panel, width);
        for (int64_t k = 0; k < dim; ++k) {
            for (int64_t column = first; column < end; ++column, ++to) {
                const int64_t c = column - pad_hidden;
                if (column < hidden) *to = hidden_weight[column * joint + k];
                if (c >= 0 && c < classes) *to = emotion_weight[c * dim + k];
            }
        }
    }
    std::copy_n(weights.hidden_bias + s * hidden, hidden, bias_.get() + s * width);
    std::copy_n(weights.emotion_bias + s * classes, classes, bias_.get() + s * width + pad_hidden);
    float* given = given_.get() + s * classes * pad_hidden;
    for (int64_t c = 0; c < classes; ++c) {
        for (int64_t m = 0; m < hidden; ++m) given[c * pad_hidden + m] = hidden_weight[m * joint + dim + c];
    }
    std::copy_n(weights.valence_weight + s * hidden, hidden, out_.get() + s * pad_hidden);
    std::copy_n(weights.class_valence + s * classes, classes, means_.get() + s * packed_.pad_classes);
}

void Decode::run(const float* z, int64_t batch, float* posterior, float* valence) const {
    const int64_t rows = std::min<int64_t>(batch, kDecodeRows);
    const AlignedFloats scratch = aligned_floats(rows * (packed_.pad_hidden + 2 * packed_.pad_classes));
    for (int64_t first = 0; first < batch; first += rows) {
        isa_->run(packed_, z, batch, first, std::min(rows, batch - first), posterior, valence, scratch.get());
    }
}

}  // namespace merfast
