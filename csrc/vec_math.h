// tanh, exp and GELU over a vector type V (see vec_generic.h for what V offers). Coefficients are merfast's own fits.
#pragma once

namespace merfast {
namespace {

// x P(x^2) / Q(x^2), a weighted least-squares fit of the relative error over |x| <= 9.02 (2.1e-8). All coefficients
// are positive, so nothing cancels; beyond the clamp fp32 tanh is 1. max/min return their second operand when
// either is NaN, which lets a NaN through.
template <class V>
inline typename V::T tanh(typename V::T value) {
    using T = typename V::T;
    const T x = V::min(V::set1(9.02f), V::max(V::set1(-9.02f), value));
    const T y = V::mul(x, x);
    T p = V::fma(V::set1(1.33189070e-08f), y, V::set1(2.05833577e-05f));
    T q = V::fma(V::set1(7.76195046e-07f), y, V::set1(3.28308044e-04f));
    p = V::fma(p, y, V::set1(3.49402694e-03f));
    q = V::fma(q, y, V::set1(2.58710442e-02f));
    p = V::fma(p, y, V::set1(1.33797115e-01f));
    q = V::fma(q, y, V::set1(4.67130268e-01f));
    p = V::fma(p, y, V::set1(9.99999979e-01f));
    q = V::fma(q, y, V::set1(1.0f));
    return V::div(V::mul(x, p), q);
}

// exp of x <= 0: x = n ln 2 + r with ln 2 in two parts, a Taylor polynomial of degree 7 in |r| <= 0.35 (error 5e-9
// of about 1), 2^n from the exponent bits. Below -88 the result is 0, and exp(0) is exactly 1. With kScale it is
// 2^kScale exp(x): numbers down to exp(-88) 2^-kScale, subnormal ones too, then come with all their digits.
template <class V, int kScale = 0>
inline typename V::T exp_negative(typename V::T value) {
    using T = typename V::T;
    const T x = V::max(V::set1(-88.0f - 0.693147181f * kScale), value);
    // Adding 1.5 * 2^23 rounds to an integer; the 127 more leave n + 127 in the low bits, where exp2_bits wants it.
    const T magic = V::set1(12582912.0f + 127.0f + kScale);
    const T shifted = V::fma(x, V::set1(1.44269504f), magic);
    const T n = V::sub(shifted, magic);
    T r = V::fma(n, V::set1(-0.693359375f), x);
    r = V::fma(n, V::set1(2.12194440e-4f), r);
    T p = V::fma(r, V::set1(1.0f / 5040), V::set1(1.0f / 720));
    p = V::fma(p, r, V::set1(1.0f / 120));
    p = V::fma(p, r, V::set1(1.0f / 24));
    p = V::fma(p, r, V::set1(1.0f / 6));
    p = V::fma(p, r, V::set1(0.5f));
    p = V::fma(p, r, V::set1(1.0f));
    p = V::fma(p, r, V::set1(1.0f));
    return V::mul(p, V::exp2_bits(shifted));
}

// Exact GELU, x Phi(x) with the normal distribution Phi. Its tail is Phi(-a) = exp(-a^2 / 2) R(a) for a = |x|, and
// Phi(a) = 1 - Phi(-a); so the result is good to a few units in the last place on both sides, where 1 + erf cancels.
// R is a rational minimax fit on a <= 13.5 (relative error 3.1e-8, csrc/fit_gelu.py) with positive coefficients only;
// beyond, the exponential is 0. Infinity gives infinity, minus infinity and NaN give NaN, as x (1 + erf) / 2 does.
template <class V>
inline typename V::T gelu(typename V::T x) {
    using T = typename V::T;
    const T a = V::min(V::set1(13.5f), V::max(x, V::sub(V::zero(), x)));
    T p = V::fma(V::set1(4.03699744e-03f), a, V::set1(4.00980525e-02f));
    T q = V::fma(V::set1(1.01191131e-02f), a, V::set1(1.00518115e-01f));
    p = V::fma(p, a, V::set1(1.81645796e-01f));
    q = V::fma(q, a, V::set1(4.65275139e-01f));
    p = V::fma(p, a, V::set1(4.36146200e-01f));
    q = V::fma(q, a, V::set1(1.19589603e+00f));
    p = V::fma(p, a, V::set1(0.5f));
    q = V::fma(q, a, V::set1(1.67017734e+00f));
    q = V::fma(q, a, V::set1(1.0f));
    const T raised = exp_negative<V>(V::mul(V::mul(V::set1(-0.5f), a), a));
    const T tail = V::div(V::mul(raised, p), q);
    // 1 where x > 0, 0 where x < 0; what lies between near 0 does not matter, both are 1/2 there.
    const T above = V::min(V::set1(1.0f), V::max(V::zero(), V::mul(x, V::set1(1e30f))));
    return V::mul(x, V::fma(above, V::fma(V::set1(-2.0f), tail, V::set1(1.0f)), tail));
}

}  // namespace
}  // namespace merfast
