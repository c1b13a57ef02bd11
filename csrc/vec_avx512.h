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
    static float first(T v) { return _mm512_cvtss_f32(v); }
    static float sum(T v) { return _mm512_reduce_add_ps(v); }
    static float largest(T v) { return _mm512_reduce_max_ps(v); }
};

}  // namespace
}  // namespace merfast
