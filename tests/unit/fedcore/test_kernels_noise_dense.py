"""The transforms from words to normals, on dense grids over everything that a word can be.

test_kernels_noise.py compares chosen words with exact arithmetic; here a million words of each kind must keep to the
bounds, the order and the identities of the functions, so that no stretch between the chosen ones is wrong.
"""

import numpy as np

from fedmq.fedcore.kernels import reference_noise as noise

ULP = 2.0**-52
N = 1 << 20


def test_the_radius_falls_over_a_grid_of_words() -> None:
    """A million evenly spaced words, and as many evenly spaced exponents down to the smallest word."""
    even = np.arange(N, dtype=np.uint64) << np.uint64(44)
    steep = np.unique(np.exp2(np.linspace(0, 63.999, N)).astype(np.uint64))
    for words in (even, steep):
        made = noise.radius(words)
        assert (np.diff(made) <= ULP * made[:-1]).all()
        assert made[0] < noise.MAX_RADIUS
        assert made[-1] >= 0.0


def test_the_radius_has_the_probability_of_its_word() -> None:
    """exp(−radius²/2) is u; an error of an ulp of the radius is one of radius² ulps of u."""
    rng = np.random.default_rng(11)
    words = rng.integers(0, 2**64, N, np.uint64) >> rng.integers(0, 64, N, np.uint64)
    u = (words.astype(np.float64) + 0.5) / 2.0**64
    made = noise.radius(words)
    assert (np.abs(np.exp(-made * made / 2) / u - 1) <= (3 * made * made + 4) * ULP).all()


def test_every_angle_of_a_grid_is_a_point_of_the_circle() -> None:
    """A million angles of one arc: x² + y² = 1, y rises, x turns once and is never below √½."""
    words = (np.arange(N, dtype=np.uint64) << np.uint64(32)) << np.uint64(10)
    x, y = noise.unit_vectors(words)
    assert np.abs(x * x + y * y - 1).max() <= 3 * ULP
    assert (np.diff(y) > 0).all()
    assert (np.diff(x[: N // 2 + 1]) > 0).all()
    assert (np.diff(x[N // 2 :]) < 0).all()
    assert x.min() >= np.sqrt(0.5) - ULP
    assert (x[N // 2], y[N // 2]) == (1.0, 0.0)
    angle = (np.arange(N) / N - 0.5) * (np.pi / 2)
    assert np.abs(y - np.sin(angle)).max() <= 2 * ULP
    assert np.abs(x - np.cos(angle)).max() <= 2 * ULP
