"""Correlated noise: its matrices built another way, every pattern of participation tried, its covariance measured."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.privacy.accounting import gaussian_epsilon
from fedmq.fedcore.privacy.correlated import Bisr, Participation, best_bandwidth, inverse_square_root

F64 = NDArray[np.float64]
DELTA = 1e-5


def bisr(bandwidth: int, versions: int, most: int, separation: int, z: float = 1.0) -> Bisr:
    pattern = Participation(versions=versions, most=most, separation=separation)
    return Bisr(bandwidth=bandwidth, noise_multiplier=z, participation=pattern)


def dense(mechanism: Bisr) -> tuple[F64, F64]:
    """C⁻¹ and C as matrices: the square root of the difference matrix by power series of matrices, then cut."""
    n = mechanism.participation.versions
    shift = np.eye(n, k=-1)
    root, power, binomial = np.zeros((n, n)), np.eye(n), 1.0
    for j in range(n):
        root += binomial * power
        power, binomial = power @ shift, -binomial * (0.5 - j) / (j + 1)
    cut = np.where(np.subtract.outer(range(n), range(n)) < mechanism.bandwidth, root, 0.0)
    return cut, np.linalg.inv(cut)


def patterns(participation: Participation) -> list[tuple[int, ...]]:
    """All sets of at most k versions that are b apart."""
    return [
        chosen
        for size in range(1, participation.most + 1)
        for chosen in itertools.combinations(range(participation.versions), size)
        if all(b - a >= participation.separation for a, b in itertools.pairwise(chosen))
    ]


def test_the_coefficients_are_those_of_the_square_root() -> None:
    """Their series, times itself, is 1 − x."""
    c = inverse_square_root(12)
    np.testing.assert_allclose(np.convolve(c, c)[:12], [1, -1] + [0] * 10, atol=1e-15)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(1, 13))
def test_no_pattern_moves_it_farther(versions: int, bandwidth: int, most: int, separation: int) -> None:
    """The sensitivity is the largest over every pattern of participations, of the inverse that numpy finds."""
    mechanism = bisr(bandwidth, versions, most, separation)
    _, c = dense(mechanism)
    farthest = max(np.linalg.norm(c[:, chosen].sum(axis=1)) for chosen in patterns(mechanism.participation))
    assert mechanism.sensitivity >= farthest
    assert mechanism.sensitivity == pytest.approx(farthest, rel=1e-9)


@given(st.integers(1, 80), st.integers(1, 80))
def test_the_pattern_argument_holds(versions: int, bandwidth: int) -> None:
    """C is non-negative, so that pushes the same way move it farthest, and falls along its columns."""
    _, c = dense(bisr(bandwidth, versions, 1, 1))
    assert (c >= -1e-12).all()
    assert (np.diff(c[:, 0]) <= 1e-12).all()


def test_pushes_in_other_directions_move_it_less() -> None:
    """Updates are vectors: no choice of directions of unit length does more than all the same."""
    mechanism = bisr(3, 8, 3, 2)
    _, c = dense(mechanism)
    rng = np.random.default_rng(5)
    for chosen in patterns(mechanism.participation):
        x = np.zeros((8, 4))
        directions = rng.normal(size=(len(chosen), 4))
        x[list(chosen)] = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        assert np.linalg.norm(c @ x) <= mechanism.sensitivity


def test_what_a_worker_moved_is_known_from_the_versions_that_it_was_in() -> None:
    """By brute force: no updates in just these versions move C x farther, and pushing all one way comes as far."""
    mechanism = bisr(3, 8, 3, 2)
    _, c = dense(mechanism)
    rng = np.random.default_rng(6)
    for chosen in patterns(mechanism.participation):
        if not chosen:
            continue
        bound = mechanism.sensitivity_of([t + 1 for t in chosen])
        assert bound <= mechanism.sensitivity * (1 + 1e-9)
        for _ in range(20):
            x = np.zeros((8, 3))
            directions = rng.normal(size=(len(chosen), 3))
            x[list(chosen)] = directions / np.linalg.norm(directions, axis=1, keepdims=True)
            assert np.linalg.norm(c @ x) <= bound
        one_way = np.zeros((8, 3))
        one_way[list(chosen), 0] = 1.0
        assert np.linalg.norm(c @ one_way) == pytest.approx(bound, rel=1e-9)
    with pytest.raises(PrivacyError, match="different ones from 1 to 8"):
        mechanism.sensitivity_of([9])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(1, 9))
def test_the_error_is_that_of_the_matrices(versions: int, bandwidth: int, most: int, separation: int) -> None:
    """The sums' noise is A C⁻¹ Z, A the lower triangle of ones."""
    mechanism = bisr(bandwidth, versions, most, separation, z=2.5)
    inverse, _ = dense(mechanism)
    sums = np.tril(np.ones((versions, versions))) @ inverse
    np.testing.assert_allclose(
        mechanism.model_error(), mechanism.deviation * np.linalg.norm(sums, axis=1), rtol=1e-9
    )


def test_bandwidth_one_is_independent_noise() -> None:
    """Of the standard deviation that exact composition asks for, √k · z."""
    mechanism = bisr(1, 50, 10, 5, z=1.9)
    assert mechanism.deviation == pytest.approx(1.9 * math.sqrt(10), rel=1e-9)
    assert mechanism.root_mean_square_error() == pytest.approx(1.9 * math.sqrt(10 * 51 / 2), rel=1e-9)


def test_the_error_is_a_third_of_independent_noise() -> None:
    """k = 10 in T = 200 versions, evenly spread, at the same ε."""
    mechanism = bisr(16, 200, 10, 20, z=3.73)
    independent = 3.73 * math.sqrt(10 * 201 / 2)
    assert mechanism.epsilon(DELTA) == gaussian_epsilon(3.73, DELTA)
    assert 2.8 < independent / mechanism.root_mean_square_error() < 3.0


def test_the_best_bandwidth_wastes_least() -> None:
    """Short where participations are close together, long where they are far apart."""
    chosen = [
        best_bandwidth(Participation(versions=200, most=most, separation=separation))
        for most, separation in ((50, 4), (10, 20), (1, 200))
    ]
    assert chosen == sorted(chosen)
    assert chosen[0] < chosen[-1]


def test_terms_pair_coefficients_with_keys_from_the_newest_back() -> None:
    """The first versions have fewer."""
    mechanism = bisr(3, 10, 1, 1)
    keys = [bytes([i]) * 32 for i in range(4)]
    assert mechanism.terms(8.0, keys) == [(8.0, keys[0]), (-4.0, keys[1]), (-1.0, keys[2])]
    assert mechanism.terms(8.0, keys[:1]) == [(8.0, keys[0])]


def test_a_key_is_never_mixed_with_itself() -> None:
    """Two versions with one stream would cancel in a way that nobody accounted for."""
    mechanism = bisr(3, 10, 1, 1)
    with pytest.raises(PrivacyError, match="all different"):
        mechanism.terms(1.0, [bytes(32), bytes(32)])
    with pytest.raises(PrivacyError, match="got none"):
        mechanism.terms(1.0, [])


@pytest.mark.parametrize(
    ("versions", "most", "separation", "bandwidth", "z"),
    [
        (0, 1, 1, 1, 1.0),
        (1, 0, 1, 1, 1.0),
        (1, 1, 0, 1, 1.0),
        (1, 1, 1, 0, 1.0),
        (1, 1, 1, 5000, 1.0),
        (1, 1, 1, 1, 0.0),
        (1, 1, 1, 1, math.nan),
    ],
)
def test_values_out_of_range_are_refused(
    versions: int, most: int, separation: int, bandwidth: int, z: float
) -> None:
    """With the name and the value."""
    with pytest.raises(PrivacyError, match="must be"):
        bisr(bandwidth, versions, most, separation, z)
