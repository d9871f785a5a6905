"""What taking part costs a worker: dp-accounting's figures, the published table, and never on the wrong side."""

import builtins
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.privacy.accounting import Spend, epsilon
from fedmq.fedcore.privacy.participation import (
    fixed_size_epsilon,
    least_noise,
    participations_epsilon,
    participations_noise,
)

DELTA = 1e-5
TABLE = {1: (3.73, 1.99, 1.08, 0.60), 10: (11.8, 6.30, 3.42, 1.90), 50: (26.4, 14.1, 7.64, 4.24)}
CASES = [(k, target, z) for k, row in TABLE.items() for target, z in zip((1, 2, 4, 8), row, strict=True)]


@pytest.mark.parametrize(("k", "target", "z"), CASES)
def test_noise_is_what_is_published(k: int, target: float, z: float) -> None:
    """z for ε = 1, 2, 4, 8 at δ = 1e-5 and k = 1, 10, 50, to the digits of the table."""
    last = 0.1 if z >= 10 else 0.01
    assert abs(participations_noise(target, k, DELTA) - z) <= 0.505 * last


@pytest.mark.parametrize("k", [1, 3, 10, 50, 1000])
@pytest.mark.parametrize("z", [0.6, 3.73, 26.4])
def test_epsilon_is_the_librarys(z: float, k: int) -> None:
    """dp_accounting.get_epsilon_gaussian(z/√k, δ), to nine digits."""
    import dp_accounting as dp

    assert participations_epsilon(z, k, DELTA) == pytest.approx(
        dp.get_epsilon_gaussian(z / math.sqrt(k), DELTA), rel=1e-9
    )


@pytest.mark.parametrize("k", [1, 10, 50])
def test_noise_is_the_librarys(k: int) -> None:
    """dp_accounting.get_sigma_gaussian, times √k."""
    import dp_accounting as dp

    assert participations_noise(2.0, k, DELTA) == pytest.approx(
        dp.get_sigma_gaussian(2.0, DELTA) * math.sqrt(k), rel=1e-9
    )


def test_participations_compose_as_the_ledger_does() -> None:
    """k in one go, or one after another, with the accountant of the versions."""
    one_by_one = epsilon([Spend(5.0)] * 7, DELTA)
    assert participations_epsilon(5.0, 7, DELTA) == pytest.approx(one_by_one, rel=1e-12)
    assert participations_epsilon(5.0, 0, DELTA) == 0.0


def test_a_sampled_round_is_the_librarys() -> None:
    """The privacy-loss distribution of Poisson rounds, and its claim beside the honest figure for arrivals."""
    import dp_accounting as dp
    from dp_accounting import pld

    accountant = pld.PLDAccountant()
    accountant.compose(dp.PoissonSampledDpEvent(0.05, dp.GaussianDpEvent(1.0)), 200)
    assert epsilon([Spend(1.0, 0.05, 200)], DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-12)
    assert participations_epsilon(1.0, 10, DELTA) == pytest.approx(17.86, abs=0.01)


@pytest.mark.parametrize(("z", "workers", "cohort", "rounds"), [(4.0, 1000, 50, 200), (8.0, 100, 10, 50)])
def test_a_fixed_cohort_is_the_librarys_with_twice_the_sensitivity(
    z: float, workers: int, cohort: int, rounds: int
) -> None:
    """RDP under REPLACE_ONE, asked with z/2."""
    import dp_accounting as dp
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    accountant.compose(
        dp.SampledWithoutReplacementDpEvent(workers, cohort, dp.GaussianDpEvent(z / 2)), rounds
    )
    found = fixed_size_epsilon(z, workers=workers, cohort=cohort, rounds=rounds, delta=DELTA)
    assert found == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-12)
    assert found > epsilon([Spend(z, cohort / workers, rounds)], DELTA)


@pytest.mark.parametrize("z", [1.0, 4.0, 8.0])
def test_a_cohort_of_everybody_is_the_gaussian_with_twice_the_sensitivity(z: float) -> None:
    """Not below the exact ε of 2S, and near it. A library that doubled by itself would be far above."""
    found = fixed_size_epsilon(z, workers=100, cohort=100, rounds=1, delta=DELTA)
    exact = participations_epsilon(z / 2, 1, DELTA)
    assert exact <= found < 1.2 * exact


@given(st.floats(0.2, 50), st.integers(1, 300), st.floats(0.01, 50))
def test_planned_noise_is_the_least_hundredth_that_keeps_the_budget(
    target: float, k: int, guess: float
) -> None:
    """Rounded up, wherever the search begins; one hundredth less would cost more."""
    z = least_noise(lambda z: participations_epsilon(z, k, DELTA), target, guess)
    assert z == round(z, 2)
    assert participations_epsilon(z, k, DELTA) <= target
    if z > 0.01:
        assert participations_epsilon(round(z - 0.01, 2), k, DELTA) > target


def test_a_budget_that_no_noise_keeps_is_said() -> None:
    """And not searched for ever."""
    with pytest.raises(PrivacyError, match="no noise multiplier up to 1e6"):
        least_noise(lambda _: 2.0, 1.0)


def test_only_sampling_needs_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Participations are plain Python; a fixed cohort says what to install."""
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "dp_accounting":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "dp_accounting", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    assert participations_epsilon(4.0, 3, DELTA) > 0
    with pytest.raises(PrivacyError, match=r"pip install fedmq\[privacy\]"):
        fixed_size_epsilon(4.0, workers=10, cohort=2, rounds=1, delta=DELTA)


@pytest.mark.parametrize(
    "call",
    [
        lambda: participations_epsilon(0.0, 1, DELTA),
        lambda: participations_epsilon(1.0, -1, DELTA),
        lambda: participations_epsilon(1.0, 1, 0.0),
        lambda: participations_noise(1.0, 0, DELTA),
        lambda: participations_noise(0.0, 1, DELTA),
        lambda: fixed_size_epsilon(1.0, workers=5, cohort=6, rounds=1, delta=DELTA),
        lambda: fixed_size_epsilon(1.0, workers=5, cohort=0, rounds=1, delta=DELTA),
        lambda: fixed_size_epsilon(1.0, workers=5, cohort=1, rounds=1, delta=1.0),
        lambda: least_noise(lambda z: 1 / z, math.nan),
    ],
)
def test_values_out_of_range_are_refused(call: Any) -> None:
    """Each with a sentence that names the value."""
    with pytest.raises(PrivacyError, match="must be"):
        call()
