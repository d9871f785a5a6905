"""Staleness factors and dyadic weights: the invariants that the papers leave to the reader."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore.errors import ConfigError
from fedmq.fedcore.strategy.staleness import SMALLEST_WEIGHT, Constant, Hinge, Polynomial, dyadic, make

factors = st.one_of(
    st.just(Constant()),
    st.builds(Polynomial, st.floats(0, 100)),
    st.builds(Hinge, st.floats(0, 1e6), st.integers(0, 100)),
)


@given(factors)
def test_a_fresh_update_counts_fully(s: Any) -> None:
    """s(0) = 1 exactly: neither 0.5 nor √2."""
    assert s(0) == 1.0


@given(factors, st.integers(0, 10_000))
def test_a_factor_never_grows_and_is_never_above_one(s: Any, tau: int) -> None:
    """Older is never worth more."""
    assert 0 <= s(tau + 1) <= s(tau) <= 1


def test_the_formulas_are_the_papers() -> None:
    """(1+τ)^−a, and 1 up to b, then 1/(a(τ−b)+1)."""
    assert [make("constant")(tau) for tau in (0, 1, 20)] == [1, 1, 1]
    assert make("polynomial")(3) == 0.5
    assert make("polynomial", exponent=1.0)(3) == 0.25
    assert [make("hinge")(tau) for tau in (4, 5, 6)] == [1.0, 1 / 11, 1 / 21]
    assert make("hinge", slope=1.0, threshold=0)(1) == 0.5


def test_what_makes_no_sense_is_refused() -> None:
    """Negative staleness, exponents, slopes and thresholds."""
    for s in (Constant(), Polynomial(), Hinge()):
        with pytest.raises(ValueError, match="≥ 0, got -1"):
            s(-1)
    for bad in (
        lambda: Polynomial(-0.5),
        lambda: Polynomial(float("nan")),
        lambda: Hinge(-1.0),
        lambda: Hinge(1.0, -1),
    ):
        with pytest.raises(ConfigError, match="must be"):
            bad()


@given(st.floats(1e-9, 2**32))
def test_a_dyadic_weight_is_near_and_on_the_grid(weight: float) -> None:
    """A multiple of 2⁻²⁰ within half a step, but never zero."""
    rounded = dyadic(weight)
    assert rounded * 2**20 == int(rounded * 2**20) >= 1
    assert abs(rounded - weight) <= SMALLEST_WEIGHT / 2 or rounded == SMALLEST_WEIGHT


@given(st.lists(st.floats(1e-6, 1e6), max_size=50), st.randoms())
def test_sums_of_dyadic_weights_do_not_depend_on_their_order(weights: list[float], random: Any) -> None:
    """They are exact."""
    rounded = [dyadic(weight) for weight in weights]
    shuffled = random.sample(rounded, len(rounded))
    total = 0.0
    for weight in rounded:
        total += weight
    again = 0.0
    for weight in shuffled:
        again += weight
    assert total == again


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 2.0**33])
def test_a_weight_is_positive_and_bounded(weight: float) -> None:
    """Anything else never reaches a sum."""
    with pytest.raises(ValueError, match="weight"):
        dyadic(weight)
