// Sixteen-lane vectors: AVX-512F. See Note [One definition per instruction set] in isa.h.
#pragma once

#include <immintrin.h>

#include "isa.h"

namespace merfast {
namespace {

struct Vec {
    using T = __m512;
    static constexpr int lanes = 16;
    static constexpr int panel = 4;
    static constexpr int rows = 6;  // 24 sums, 4 weights and a value in 32 registers

    static __mmask16 mask(int64_t count) { return static_cast<__mmask16>(count < lanes ? (1u << count) - 1 : 0xffffu); }
    static T zero() { return _mm512_setzero_ps(); }
    static T set1(float v) { return _mm512_set1_ps(v); }
    static T load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, T v) { _mm512_storeu_ps(p, v); }
    static T load_bytes(const uint8_t* p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    }
    static T load_part(const float* p, int64_t count, float fill) {
        return _mm512_mask_loadu_ps(set1(fill), mask(count), p);
    }
    static void store_part(float* p, int64_t count, T v) { _mm512_mask_storeu_ps(p, mask(count), v); }
    static T add(T a, T b) { return _mm512_add_ps(a, b); }
    static T sub(T a, T b) { return _mm512_sub_ps(a, b); }
    static T mul(T a, T b) { return _mm512_mul_ps(a, b); }
    static T div(T a, T b) { return _mm512_div_ps(a, b); }
    static T fma(T a, T b, T c) { return _mm512_fmadd_ps(a, b, c); }
    static T max(T a, T b) { return _mm512_max_ps(a, b); }
    static T min(T a, T b) { return _mm512_min_ps(a, b); }
    static T exp2_bits(T v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 23)); }
    static T load_fours(const float* p, int64_t row) {
        T v = _mm512_castps128_ps512(_mm_loadu_ps(p));
        v = _mm512_insertf32x4(v, _mm_loadu_ps(p + 4 * row), 1);
        v = _mm512_insertf32x4(v, _mm_loadu_ps(p + 8 * row), 2);
        return _mm512_insertf32x4(v, _mm_loadu_ps(p + 12 * row), 3);
    }
    static void store_fours(float* p, int64_t row, T v) {
        _mm_storeu_ps(p, _mm512_castps512_ps128(v));
        _mm_storeu_ps(p + 4 * row, _mm512_extractf32x4_ps(v, 1));
        _mm_storeu_ps(p + 8 * row, _mm512_extractf32x4_ps(v, 2));
        _mm_storeu_ps(p + 12 * row, _mm512_extractf32x4_ps(v, 3));
    }
    static void turn_fours(T& a, T& b, T& c, T& d) {
        const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), ba = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
        const __m512d cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d)), dc = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
        a = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        b = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
        c = _mm512_castpd_ps(_mm512_unpacklo_pd(ba, dc));
        d = _mm512_castpd_ps(_mm512_unpackhi_pd(ba, dc));
    }
    struct Pair {
        T low, high;
    };
    static Pair load_pair(const float* p) { return {load(p), load(p + lanes)}; }
    static T pick(const Pair& pair, const int32_t* at, int32_t offset) {
        const __m512i index = _mm512_add_epi32(_mm512_loadu_si512(at), _mm512_set1_epi32(offset));
        return _mm512_permutex2var_ps(pair.low, index, pair.high);
    }
    static T evens(T a, T b) {
        const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        return _mm512_permutex2var_ps(a, index, b);
    }
    static T odds(T a, T b) {
        const __m512i index = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        return _mm512_permutex2var_ps(a, index, b);
    }
    static float first(T v) { return _mm512_cvtss_f32(v); }
    static float sum(T v) { return _mm512_reduce_add_ps(v); }
    static float largest(T v) { return _mm512_reduce_max_ps(v); }
};

}  // namespace
}  // namespace merfast
