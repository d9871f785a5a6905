"""What a private worker promises: calibration, the cap, and what it refuses to promise."""

import sys
from typing import Any

import dp_accounting
import msgspec
import pytest
from dp_accounting import pld

from fedmq.fedcore.errors import BudgetExhausted, ClientAppError, PrivacyError
from fedmq.fedcore.privacy.accounting import Spend
from fedmq.worker.privacy import GradientSum

from .private import plan


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.05, 200), (0.7, 0.5, 10), (3.0, 1.0, 40)])
def test_the_epsilon_of_a_plan_is_dp_accountings(noise: float, rate: float, steps: int) -> None:
    """PLD over the worker's own steps, asked directly: the same number; for rate 1 the exact formula."""
    accountant = pld.PLDAccountant(value_discretization_interval=1e-4)
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    accountant.compose(event, steps)
    ours = plan(noise_multiplier=noise, sampling_rate=rate, max_steps=steps).planned_epsilon()
    theirs = accountant.get_epsilon(1e-5)
    if rate < 1:
        assert ours == theirs
    else:
        exact = dp_accounting.get_epsilon_gaussian(noise / steps**0.5, 1e-5)
        assert ours == pytest.approx(exact, rel=1e-9)


def test_calibrated_noise_keeps_the_budget_and_wastes_little() -> None:
    """From (ε, δ): the whole plan costs at most ε, and with 1 % less noise it would cost more."""
    calibrated = plan(noise_multiplier=None, epsilon=1.0, max_steps=20, sampling_rate=0.1).calibrated()
    assert calibrated.noise_multiplier is not None
    assert calibrated.planned_epsilon() <= 1.0
    less = plan(noise_multiplier=0.99 * calibrated.noise_multiplier, max_steps=20, sampling_rate=0.1)
    assert less.planned_epsilon() > 1.0
    assert calibrated.calibrated() == calibrated


def test_given_noise_is_checked_against_a_given_budget() -> None:
    """Both may be there; then they have to agree."""
    with pytest.raises(
        PrivacyError, match=r"noise_multiplier 0.5 max_steps = 10 cost epsilon .*epsilon is 1;"
    ):
        plan(noise_multiplier=0.5, epsilon=1.0).calibrated()
    assert plan(noise_multiplier=50.0, epsilon=1.0).calibrated().noise_multiplier == 50.0


def test_a_plan_of_its_own_noise_is_capped_by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step that was planned is allowed, the next is not; no accountant is asked for that."""
    monkeypatch.setitem(sys.modules, "dp_accounting", None)  # importing it raises
    plan().check_affords([])
    plan().check_affords([Spend(1.0, 0.5, 4), Spend(1.0, 0.5, 6)])
    with pytest.raises(BudgetExhausted, match=r"^privacy_budget: 10 steps"):
        plan().check_affords([Spend(1.0, 0.5, 4), Spend(1.0, 0.5, 7)])


def test_steps_of_other_noise_count_by_what_they_cost() -> None:
    """A plan that was changed goes on from what was spent before, by ε: its budget, or else what it would cost."""
    cheap, dear = Spend(30.0, 1.0, 5), Spend(0.3, 1.0, 5)
    own = plan(sampling_rate=1.0)
    for budgeted in (own, msgspec.structs.replace(own, epsilon=own.planned_epsilon())):
        budgeted.check_affords([cheap, Spend(1.0, 1.0, 9)])
        for spent in ([cheap, Spend(1.0, 1.0, 10)], [dear, Spend(1.0, 1.0, 1)], [dear]):
            with pytest.raises(BudgetExhausted, match=r"^privacy_budget: with earlier steps"):
                budgeted.check_affords(spent)
    sampled = plan(noise_multiplier=2.0, epsilon=3.0)
    sampled.check_affords([Spend(2.0, 0.5, 5), Spend(2.5, 0.25, 5)])
    with pytest.raises(BudgetExhausted):
        sampled.check_affords([Spend(2.0, 0.5, 5), Spend(1.0, 0.25, 20)])


def test_a_task_costs_all_of_its_steps() -> None:
    """What is committed for it, in the accountant's words; and how many records that is about."""
    assert plan(steps_per_task=3).spend == Spend(1.0, 0.5, 3)
    assert plan(max_grad_norm=0.5, noise_multiplier=3.0).sigma == 1.5
    assert plan(divisor=4.0, sampling_rate=0.5).records == 8
    with pytest.raises(PrivacyError, match="not calibrated"):
        plan(noise_multiplier=None, epsilon=1.0).spend


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"noise_multiplier": None}, "both missing"),
        ({"noise_multiplier": 0.0}, "noise_multiplier must be positive"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier must be positive"),
        ({"epsilon": -1.0}, "epsilon must be positive"),
        ({"delta": 0.0}, "delta must be in"),
        ({"delta": 1.0}, "delta must be in"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm must be positive"),
        ({"sampling_rate": 0.0}, "sampling_rate must be in"),
        ({"sampling_rate": 1.5}, "sampling_rate must be in"),
        ({"divisor": 0.0}, "divisor must be positive"),
        ({"max_steps": 0}, "steps_per_task must be in"),
        ({"steps_per_task": 0}, "steps_per_task must be in"),
        ({"steps_per_task": 11}, "steps_per_task must be in"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    """When the plan is made, not in its first task."""
    with pytest.raises(PrivacyError, match=says):
        plan(**changes)


def test_the_numbers_of_a_sum_are_the_federations() -> None:
    """From the [task] table, from this worker, or from both where they agree."""
    told = {"max_grad_norm": 0.5, "sampling_rate": 1}
    assert GradientSum().of(told) == (0.5, 1.0)
    assert GradientSum(max_grad_norm=0.5, sampling_rate=0.1).of({}) == (0.5, 0.1)
    assert GradientSum(max_grad_norm=0.5).of(told) == (0.5, 1.0)
    with pytest.raises(ClientAppError, match=r"given max_grad_norm = 0.4, and the \[task\] table says 0.5"):
        GradientSum(max_grad_norm=0.4).of(told)
    with pytest.raises(ClientAppError, match="sampling_rate is neither"):
        GradientSum(max_grad_norm=0.5).of({})
    with pytest.raises(ClientAppError, match="must be a number, got 'x'"):
        GradientSum().of({**told, "sampling_rate": "x"})
    with pytest.raises(PrivacyError, match="sampling_rate must be in"):
        GradientSum().of({**told, "sampling_rate": 2})
