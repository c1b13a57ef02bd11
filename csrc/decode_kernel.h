// Joint decoding over a vector type V. A block of samples is multiplied with one structure's weights at a time;
// softmax, GELU and valence follow sample by sample, so that a sample's result does not depend on those beside it.
#pragma once

#include "afg_project.h"
#include "decode_isa.h"
#include "vec_math.h"

namespace merfast {
namespace {

// Posteriors are summed times 2^24: then subnormal ones keep their digits, which a high temperature brings back.
constexpr int kPosteriorScale = 24;
constexpr float kScaleUp = 16777216.0f;
constexpr float kScaleDown = 1.0f / kScaleUp;

// Logits become 2^kScale times their softmax, with zeros beyond `count`. A NaN or an infinity among them makes all NaN.
template <class V, int kScale>
inline void softmax(float* row, int64_t count) {
    using T = typename V::T;
    const float kLowest = -__builtin_inff();
    T top = V::set1(kLowest);
    for (int64_t c = 0; c < count; c += V::lanes) top = V::max(top, V::load_part(row + c, count - c, kLowest));
    const T largest = V::set1(V::largest(top));
    T total = V::zero();
    for (int64_t c = 0; c < count; c += V::lanes) {
        const T raised = exp_negative<V, kScale>(V::sub(V::load_part(row + c, count - c, kLowest), largest));
        V::store(row + c, raised);
        total = V::add(total, raised);
    }
    const T sum = V::set1(V::sum(total) * (kScale ? kScaleDown : 1.0f));
    for (int64_t c = 0; c < count; c += V::lanes) V::store(row + c, V::div(V::load(row + c), sum));
}

// Valence of one structure, given its posterior p [C], from its projected hidden units.
template <class V>
inline float valence_given(const DecodePacked& packed, int64_t s, const float* hidden, const float* p) {
    using T = typename V::T;
    const float* given = packed.given + s * packed.classes * packed.pad_hidden;
    const float* out = packed.out + s * packed.pad_hidden;
    const float* means = packed.means + s * packed.pad_classes;
    T sum = V::zero();
    for (int64_t c = 0; c < packed.pad_classes; c += V::lanes) {
        sum = V::fma(V::load(p + c), V::load(means + c), sum);
    }
    for (int64_t m = 0; m < packed.pad_hidden; m += V::lanes) {
        T value = V::load(hidden + m);
        for (int64_t c = 0; c < packed.classes; ++c) {
            value = V::fma(V::set1(p[c]), V::load(given + c * packed.pad_hidden + m), value);
        }
        sum = V::fma(gelu<V>(value), V::load(out + m), sum);
    }
    return V::sum(sum) + packed.constant[s];
}

// The average posterior, sharpened or softened, and without the scale.
template <class V>
inline void finish(const DecodePacked& packed, float* row, float* posterior) {
    if (packed.temperature == 1.0f) {
        for (int64_t c = 0; c < packed.classes; ++c) posterior[c] = row[c] * kScaleDown;
        return;
    }
    // The scale is a constant added to every logarithm, which softmax ignores.
    for (int64_t c = 0; c < packed.classes; ++c) row[c] = __builtin_logf(row[c]) / packed.temperature;
    softmax<V, 0>(row, packed.classes);
    for (int64_t c = 0; c < packed.classes; ++c) posterior[c] = row[c];
}

template <class V>
void decode(const DecodePacked& packed, const float* z, int64_t batch, int64_t first, int64_t rows, float* posterior,
            float* valence, float* scratch) {
    using T = typename V::T;
    const int64_t width = packed.pad_hidden + packed.pad_classes;
    float* product = scratch;
    float* average = product + rows * width;
    const float* x[kDecodeRows];
    const float* init[kDecodeRows];
    posterior += first * packed.classes;
    valence += first;
    for (int64_t s = 0; s < packed.structures; ++s) {
        for (int64_t r = 0; r < rows; ++r) {
            x[r] = z + (s * batch + first + r) * packed.dim;
            init[r] = packed.bias + s * width;
        }
        project<V>(packed.weight + s * width * packed.dim, packed.dim, width, x, init, rows, product);
        const T mix = V::set1(packed.mix[s]);
        for (int64_t r = 0; r < rows; ++r) {
            const float* hidden = product + r * width;
            float* p = product + r * width + packed.pad_hidden;
            float* sum = average + r * packed.pad_classes;
            softmax<V, kPosteriorScale>(p, packed.classes);
            for (int64_t c = 0; c < packed.pad_classes; c += V::lanes) {
                const T scaled = V::load(p + c);
                V::store(sum + c, s ? V::fma(mix, scaled, V::load(sum + c)) : V::mul(mix, scaled));
                V::store(p + c, V::mul(scaled, V::set1(kScaleDown)));
            }
            const float value = packed.mix[s] * valence_given<V>(packed, s, hidden, p);
            valence[r] = s ? valence[r] + value : value;
        }
    }
    for (int64_t r = 0; r < rows; ++r) {
        finish<V>(packed, average + r * packed.pad_classes, posterior + r * packed.classes);
        const float value = valence[r];  // NaN stays
        valence[r] = value > packed.limit ? packed.limit : value < -packed.limit ? -packed.limit : value;
    }
}

}  // namespace
}  // namespace merfast
