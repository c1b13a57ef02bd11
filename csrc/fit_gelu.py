"""Fits the coefficients of `gelu` in vec_math.h: P(a) / Q(a) for Phi(-a) exp(a^2 / 2) on 0 <= a <= 13.5.

    python csrc/fit_gelu.py

Weighted least squares of the linearised relative error; the weights grow where the error is largest (Lawson), which
leads to the minimax fit. Prints the coefficients, lowest power first, and the largest relative error once rounded.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial.polynomial import polyval

LIMIT, P, Q = 13.5, 4, 5


def tail(a: np.ndarray) -> np.ndarray:
    """Phi(-a) exp(a^2 / 2)."""
    return np.array([0.5 * math.erfc(v / math.sqrt(2)) * math.exp(v * v / 2) for v in a])


def fit() -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of P, and of Q with its first one fixed to 1."""
    s = np.sin(np.linspace(0, math.pi / 2, 3000)) ** 2
    f = tail(LIMIT * s)
    weight, q = np.ones_like(s), np.ones_like(s)
    found = []
    for step in range(300):
        scale = np.sqrt(weight) / (q * f)
        terms = np.hstack([s[:, None] ** np.arange(P + 1), -f[:, None] * s[:, None] ** np.arange(1, Q + 1)])
        solved = np.linalg.lstsq(terms * scale[:, None], f * scale, rcond=1e-17)[0]
        top, bottom = solved[: P + 1], np.concatenate([[1.0], solved[P + 1 :]])
        q = polyval(s, bottom)
        error = np.abs(polyval(s, top) / (q * f) - 1)
        found.append((error.max(), step, top / LIMIT ** np.arange(P + 1), bottom / LIMIT ** np.arange(Q + 1)))
        if step > 5:
            weight = np.maximum(weight * error / (weight * error).max(), 1e-9)
    return min(found)[2:]


if __name__ == "__main__":
    p, q = (c.astype(np.float32) for c in fit())
    a = np.linspace(0, LIMIT, 100_001)
    print("P", *(f"{c:.9g}" for c in p))
    print("Q", *(f"{c:.9g}" for c in q))
    print(f"relative error {np.abs(polyval(a, p.astype(float)) / polyval(a, q.astype(float)) / tail(a) - 1).max():.2e}")
