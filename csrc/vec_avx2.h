// Eight-lane vectors: AVX2 and FMA. See Note [One definition per instruction set] in isa.h.
#pragma once

#include <immintrin.h>

#include "isa.h"

namespace merfast {
namespace {

struct Vec {
    using T = __m256;
    static constexpr int lanes = 8;
    static constexpr int panel = 2;
    static constexpr int rows = 6;  // 12 sums, 2 weights and a value in 16 registers

    static __m256i mask(int64_t count) {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count < lanes ? count : lanes)), lane);
    }
    static T zero() { return _mm256_setzero_ps(); }
    static T set1(float v) { return _mm256_set1_ps(v); }
    static T load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, T v) { _mm256_storeu_ps(p, v); }
    static T load_bytes(const uint8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    static T load_part(const float* p, int64_t count, float fill) {
        const __m256i m = mask(count);
        return _mm256_blendv_ps(set1(fill), _mm256_maskload_ps(p, m), _mm256_castsi256_ps(m));
    }
    static void store_part(float* p, int64_t count, T v) { _mm256_maskstore_ps(p, mask(count), v); }
    static T add(T a, T b) { return _mm256_add_ps(a, b); }
    static T sub(T a, T b) { return _mm256_sub_ps(a, b); }
    static T mul(T a, T b) { return _mm256_mul_ps(a, b); }
    static T div(T a, T b) { return _mm256_div_ps(a, b); }
    static T fma(T a, T b, T c) { return _mm256_fmadd_ps(a, b, c); }
    static T max(T a, T b) { return _mm256_max_ps(a, b); }
    static T min(T a, T b) { return _mm256_min_ps(a, b); }
    static T exp2_bits(T v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 23)); }
    static T load_fours(const float* p, int64_t row) {
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 4 * row), 1);
    }
    static void store_fours(float* p, int64_t row, T v) {
        _mm_storeu_ps(p, _mm256_castps256_ps128(v));
        _mm_storeu_ps(p + 4 * row, _mm256_extractf128_ps(v, 1));
    }
    static void turn_fours(T& a, T& b, T& c, T& d) {
        const __m256d ab = _mm256_castps_pd(_mm256_unpacklo_ps(a, b)), ba = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
        const __m256d cd = _mm256_castps_pd(_mm256_unpacklo_ps(c, d)), dc = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
        a = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
        b = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
        c = _mm256_castpd_ps(_mm256_unpacklo_pd(ba, dc));
        d = _mm256_castpd_ps(_mm256_unpackhi_pd(ba, dc));
    }
    struct Pair {
        T low, high;
    };
    static Pair load_pair(const float* p) { return {load(p), load(p + lanes)}; }
    static T pick(const Pair& pair, const int32_t* at, int32_t offset) {
        const __m256i from = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
        const __m256i index = _mm256_add_epi32(from, _mm256_set1_epi32(offset));
        const T high = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));  // 8 becomes the sign, which is what counts
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(pair.low, index), _mm256_permutevar8x32_ps(pair.high, index),
                                high);
    }
    static T evens(T a, T b) {
        const __m256d mixed = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
        return _mm256_castpd_ps(_mm256_permute4x64_pd(mixed, 0xd8));
    }
    static T odds(T a, T b) {
        const __m256d mixed = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
        return _mm256_castpd_ps(_mm256_permute4x64_pd(mixed, 0xd8));
    }
    static float first(T v) { return _mm256_cvtss_f32(v); }
    static float sum(T v) {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }
    static float largest(T v) {
        __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        half = _mm_max_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
    }
};

}  // namespace
}  // namespace merfast
