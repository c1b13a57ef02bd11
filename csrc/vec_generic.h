// Four-lane vectors that every compiler target has; multiply and add are rounded apart (-ffp-contract=off).
#pragma once

#include "isa.h"

namespace merfast {
namespace {

struct Vec {
    typedef float T __attribute__((vector_size(16)));
    typedef uint32_t Bits __attribute__((vector_size(16)));
    static constexpr int lanes = 4;
    static constexpr int panel = 2;  // vectors of weights held in registers by a tile
    static constexpr int rows = 4;   // rows of a tile: 8 sums, 2 weights, a value and a product in 16 registers

    static T zero() { return T{}; }
    static T set1(float v) { return T{v, v, v, v}; }
    static T load(const float* p) {
        T v;
        __builtin_memcpy(&v, p, sizeof v);
        return v;
    }
    static void store(float* p, T v) { __builtin_memcpy(p, &v, sizeof v); }
    static T load_bytes(const uint8_t* p) {  // `lanes` of them
        return T{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
                 static_cast<float>(p[3])};
    }
    static T load_part(const float* p, int64_t count, float fill) {  // the first `count` lanes
        if (count >= lanes) return load(p);
        T v = set1(fill);
        for (int64_t i = 0; i < count; ++i) v[i] = p[i];
        return v;
    }
    static void store_part(float* p, int64_t count, T v) {
        if (count >= lanes) return store(p, v);
        for (int64_t i = 0; i < count; ++i) p[i] = v[i];
    }
    static T add(T a, T b) { return a + b; }
    static T sub(T a, T b) { return a - b; }
    static T mul(T a, T b) { return a * b; }
    static T div(T a, T b) { return a / b; }
    static T fma(T a, T b, T c) { return a * b + c; }
    static T max(T a, T b) { return a > b ? a : b; }  // b where either is NaN
    static T min(T a, T b) { return a < b ? a : b; }
    static T exp2_bits(T v) { return T(Bits(v) << 23); }  // low 8 bits of v, moved to the exponent
    // Groups of four lanes: load_fours puts four floats of every fourth row into each, store_fours takes them back, and
    // turn_fours transposes a 4 x 4 matrix in each. Together they turn `lanes` rows of four columns, either way.
    static T load_fours(const float* p, int64_t) { return load(p); }
    static void store_fours(float* p, int64_t, T v) { store(p, v); }
    static void turn_fours(T& a, T& b, T& c, T& d) {
        const T w = {a[0], b[0], c[0], d[0]}, x = {a[1], b[1], c[1], d[1]};
        const T y = {a[2], b[2], c[2], d[2]}, z = {a[3], b[3], c[3], d[3]};
        a = w, b = x, c = y, d = z;
    }
    // pick takes lanes from 2 * lanes floats, those at at[i] + offset.
    using Pair = const float*;
    static Pair load_pair(const float* p) { return p; }
    static T pick(Pair p, const int32_t* at, int32_t offset) {
        p += offset;
        return T{p[at[0]], p[at[1]], p[at[2]], p[at[3]]};
    }
    static T evens(T a, T b) { return T{a[0], a[2], b[0], b[2]}; }
    static T odds(T a, T b) { return T{a[1], a[3], b[1], b[3]}; }
    static float first(T v) { return v[0]; }
    static float sum(T v) { return (v[0] + v[2]) + (v[1] + v[3]); }
    static float largest(T v) { return larger(larger(v[0], v[2]), larger(v[1], v[3])); }
};

}  // namespace
}  // namespace merfast
