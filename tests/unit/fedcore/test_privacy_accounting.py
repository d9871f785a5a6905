"""Accounting: against known figures, against the library, and never on the wrong side."""

import builtins
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.privacy.accounting import (
    Spend,
    epsilon,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_noise,
    poisson_noise,
)

DELTA = 1e-5


@pytest.mark.parametrize(
    ("k", "target", "z"),
    [(1, 1, 3.73), (1, 2, 1.99), (1, 4, 1.08), (1, 8, 0.60), (10, 1, 11.8), (10, 4, 3.42), (50, 2, 14.1)],
)
def test_gaussian_noise_is_what_is_published(k: int, target: float, z: float) -> None:
    """Exact composition: k releases with z are one with z/√k."""
    assert gaussian_noise(target, DELTA) * math.sqrt(k) == pytest.approx(z, rel=5e-3)
    assert epsilon([Spend(z, steps=k)], DELTA) == pytest.approx(target, rel=2e-2)


@given(st.floats(0.05, 100), st.sampled_from([1e-3, 1e-5, 1e-9, 1e-30]))
def test_calibrated_noise_keeps_its_budget_and_wastes_none(target: float, delta: float) -> None:
    """What is calibrated costs at most ε; a little less noise costs more."""
    z = gaussian_noise(target, delta)
    assert gaussian_delta(z, target) <= delta
    assert gaussian_delta(z * (1 - 1e-6), target) > delta


@given(st.floats(0.1, 1000), st.sampled_from([1e-3, 1e-5, 1e-9]))
def test_epsilon_is_the_inverse_of_delta_and_not_below_it(z: float, delta: float) -> None:
    """The reported ε satisfies the (ε, δ) curve."""
    reported = gaussian_epsilon(z, delta)
    assert gaussian_delta(z, reported) <= delta
    assert reported == 0 or gaussian_delta(z, reported * (1 - 1e-6)) > delta


@pytest.mark.parametrize("z", [0.05, 0.3, 1.0, 3.73, 40.0])
def test_the_gaussian_curve_agrees_with_the_library(z: float) -> None:
    """dp-accounting's exact formula, to nine digits, also where ε is large."""
    import dp_accounting as dp

    assert gaussian_epsilon(z, DELTA) == pytest.approx(dp.get_epsilon_gaussian(z, DELTA), rel=1e-9)


def test_sampling_that_is_none_is_the_gaussian() -> None:
    """Rate 1 needs no library; steps of different noise add up exactly."""
    mixed = epsilon([Spend(3.0, steps=4), Spend(5.0), Spend(9.0, steps=0)], DELTA)
    assert mixed == pytest.approx(gaussian_epsilon(1 / math.sqrt(4 / 9 + 1 / 25), DELTA))
    assert epsilon([], DELTA) == 0.0


def test_poisson_sampling_is_accounted_by_the_library() -> None:
    """The figure that claiming amplification would report, and the honest one without."""
    assert epsilon([Spend(1.0, 0.05, 200)], DELTA) == pytest.approx(4.77, abs=0.01)
    without = epsilon([Spend(1.0, 1.0, round(0.05 * 200))], DELTA)
    assert without == pytest.approx(17.86, abs=0.01)


def test_calibrated_poisson_noise_keeps_its_budget_and_wastes_little() -> None:
    """Rounded up to four digits: at most ε, and two digits less would be too little."""
    z = poisson_noise(epsilon_target=3.0, delta=DELTA, sampling_rate=0.5, steps=80)
    assert z == pytest.approx(6.334, abs=2e-3)
    assert epsilon([Spend(z, 0.5, 80)], DELTA) <= 3.0
    assert epsilon([Spend(z * 0.999, 0.5, 80)], DELTA) > 3.0
    assert z == float(f"{z:.4g}")


def test_without_sampling_calibration_is_exact_and_rounded_up() -> None:
    """No library, the same guarantee."""
    z = poisson_noise(epsilon_target=1.0, delta=DELTA, sampling_rate=1.0, steps=10)
    assert gaussian_noise(1.0, DELTA) * math.sqrt(10) <= z <= 11.8
    assert epsilon([Spend(z, steps=10)], DELTA) <= 1.0


def test_a_missing_library_is_said_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only where it is needed."""
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "dp_accounting":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "dp_accounting", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PrivacyError, match=r"pip install fedmq\[privacy\]"):
        epsilon([Spend(1.0, 0.5)], DELTA)
    assert epsilon([Spend(4.0)], DELTA) > 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: Spend(0.0),
        lambda: Spend(math.nan),
        lambda: Spend(1.0, 0.0),
        lambda: Spend(1.0, 1.5),
        lambda: Spend(1.0, 1.0, -1),
        lambda: epsilon([], 0.0),
        lambda: gaussian_epsilon(1.0, 1.0),
        lambda: gaussian_noise(0.0, DELTA),
        lambda: gaussian_noise(math.inf, DELTA),
        lambda: gaussian_noise(1.0, math.nan),
        lambda: poisson_noise(epsilon_target=1.0, delta=DELTA, sampling_rate=0.1, steps=0),
        lambda: poisson_noise(epsilon_target=1.0, delta=DELTA, sampling_rate=2.0, steps=1),
    ],
)
def test_values_out_of_range_are_refused(call: Any) -> None:
    """Each with a sentence that names the value."""
    with pytest.raises(PrivacyError, match="must be"):
        call()
