// bf16 beside the sixteen-lane vectors of AVX-512: AVX512_BF16, with AVX512BW and AVX512VL, which every processor that
// has it has. bf16 is uint16_t here: the upper half of a float.
#pragma once

#include "vec_avx512.h"

namespace merfast {
namespace {

// Arithmetic stays fp32; rows may be either.
struct Bf16Vec : Vec {
    using Vec::load;
    using Vec::load_part;
    using Vec::store;
    using Vec::store_part;

    static T load(const uint16_t* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static T load_part(const uint16_t* p, int64_t count, float fill) {
        return _mm512_mask_mov_ps(set1(fill), mask(count), widen(_mm256_maskz_loadu_epi16(mask(count), p)));
    }
    static void store(uint16_t* p, T v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v)); }
    static void store_part(uint16_t* p, int64_t count, T v) { _mm256_mask_storeu_epi16(p, mask(count), narrow(v)); }

  private:
    static T widen(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
    static __m256i narrow(T v) { return (__m256i)_mm512_cvtneps_pbh(v); }  // to nearest even; subnormal ones become 0
};

// Products for afg_project.h: two columns at a time, added in fp32.
struct Bf16Pairs {
    using Element = uint16_t;
    using Factors = __m512i;
    static constexpr int step = 2;
    static Factors weights(const uint16_t* p) { return _mm512_loadu_si512(p); }
    static Factors values(const uint16_t* p) {
        int pair;
        __builtin_memcpy(&pair, p, sizeof pair);
        return _mm512_set1_epi32(pair);
    }
    static Factors last_values(const uint16_t* p) { return _mm512_set1_epi32(*p); }  // the second one is zero
    static __m512 multiply_add(Factors value, Factors weight, __m512 sum) {
        return _mm512_dpbf16_ps(sum, (__m512bh)value, (__m512bh)weight);
    }
};

}  // namespace
}  // namespace merfast
