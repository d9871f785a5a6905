"""Robust rules beside numpy and scipy: medians, trimmed means, and the geometric median as what it minimises."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from fedmq.fedcore import config

from ..unit.fedcore.vectors import Vectors

seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, k: int) -> np.ndarray:
    """Updates with a long tail, in three dimensions."""
    return np.random.default_rng(seed).standard_t(2, size=(k, 3)).astype(np.float32)


@given(seeds, st.integers(3, 20))
def test_median(seed: int, k: int) -> None:
    """numpy's, rounded to float32."""
    u = drawn(seed, k)
    np.testing.assert_array_equal(
        Vectors(u).by(config.Median()), np.median(u.astype(float), axis=0).astype(np.float32)
    )


@given(seeds, st.integers(5, 20))
def test_trimmed_mean(seed: int, k: int) -> None:
    """scipy's trim_mean, to a rounding of float32."""
    u = drawn(seed, k)
    expected = stats.trim_mean(u.astype(float), 0.2, axis=0)
    np.testing.assert_allclose(Vectors(u).by(config.TrimmedMean()), expected, rtol=1e-6, atol=1e-6)


@given(seeds, st.integers(4, 15))
@settings(max_examples=40)
def test_geometric_median(seed: int, k: int) -> None:
    """No minimiser finds a point with a smaller sum of distances, and the smoothed steps end next to it."""
    x = Vectors(drawn(seed, k))

    def cost(d: np.ndarray) -> float:
        return float(np.linalg.norm(x.u - d, axis=1).sum())

    best = min(
        optimize.minimize(cost, start, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).fun
        for start in (x.u.mean(axis=0), np.median(x.u, axis=0), x.u[np.argmin([cost(u) for u in x.u])])
    )
    found = cost(x.by(config.GeometricMedian(iterations=100, smoothing=1e-9)))
    assert best - 1e-6 <= found <= best * (1 + 1e-2)
    assert cost(x.by(config.GeometricMedian())) <= cost(x.u.mean(axis=0)) + 1e-9
