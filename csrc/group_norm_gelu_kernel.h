// Masked GroupNorm with GELU over a vector type V: mean, variance about it, result, three passes over rows in the
// cache.
#pragma once

#include "group_norm_gelu_isa.h"
#include "vec_math.h"

namespace merfast {
namespace {

constexpr int64_t kStretch = 2048;  // numbers added up in fp32; stretches are added in fp64

// Sum of x - shift, or of its square.
template <class V, bool Square>
inline double sum_about(const float* x, int64_t count, float shift) {
    using T = typename V::T;
    const T s = V::set1(shift);
    const auto add = [s](T sum, T value) {
        const T d = V::sub(value, s);
        return Square ? V::fma(d, d, sum) : V::add(sum, d);
    };
    double total = 0;
    for (int64_t begin = 0; begin < count; begin += kStretch) {
        const int64_t end = begin + kStretch < count ? begin + kStretch : count;
        T sum[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
        int64_t i = begin;
        for (; i + 4 * V::lanes <= end; i += 4 * V::lanes) {
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) sum[k] = add(sum[k], V::load(x + i + k * V::lanes));
        }
        for (; i < end; i += V::lanes) sum[0] = add(sum[0], V::load_part(x + i, end - i, shift));
        total += V::sum(V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3])));
    }
    return total;
}

template <class V>
void group_norm_gelu(const float* x, int64_t channels, int64_t frames, int64_t length, const float* weight,
                     const float* bias, float eps, float* out) {
    using T = typename V::T;
    const double count = static_cast<double>(channels * length);
    double sum = 0;
    for (int64_t c = 0; c < channels; ++c) sum += sum_about<V, false>(x + c * frames, length, 0.0f);
    const float mean = static_cast<float>(sum / count);
    double squares = 0;
    for (int64_t c = 0; c < channels; ++c) squares += sum_about<V, true>(x + c * frames, length, mean);
    const float inverse = 1.0f / __builtin_sqrtf(static_cast<float>(squares / count) + eps);
    const T m = V::set1(mean);
    for (int64_t c = 0; c < channels; ++c, x += frames, out += frames) {
        const T scale = V::set1(weight[c] * inverse);
        const T shift = V::set1(bias[c]);
        int64_t t = 0;
        for (; t + V::lanes <= length; t += V::lanes) {
            V::store(out + t, gelu<V>(V::fma(V::sub(V::load(x + t), m), scale, shift)));
        }
        if (t < length) {
            const T value = V::fma(V::sub(V::load_part(x + t, length - t, mean), m), scale, shift);
            V::store_part(out + t, length - t, gelu<V>(value));
        }
        __builtin_memset(out + length, 0, static_cast<uint64_t>(frames - length) * sizeof(float));
    }
}

}  // namespace
}  // namespace merfast
