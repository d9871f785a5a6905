"""What a worker promises the people in its data.

Rules that hold here:

* Every number is chosen before anything is trained, and none of them depends on data: also the divisor is a constant,
  and not the number of records that there are.
* Neighbours differ in one record more or less. ε is that of all the steps that the ledger allows, by the accountant
  of `fedmq.fedcore.privacy.accounting`; nothing is approximated here.
* dp-accounting is asked when noise is calibrated from ε, or when earlier steps had other noise. With a noise multiplier
  of one's own and a new ledger an edge box does without it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from fedmq.fedcore.errors import BudgetExhausted, ClientAppError, PrivacyError
from fedmq.fedcore.privacy.accounting import Spend, epsilon, poisson_noise

__all__ = ["GradientSum", "LocalPrivacy", "merged"]


class LocalPrivacy(msgspec.Struct, frozen=True, kw_only=True):
    """DP-SGD with noise in the worker: who sees every update of it, the broker included, learns (ε, δ) at most.

    Parameters
    ----------
    epsilon : float, optional
        The budget of this worker's records for its whole life, > 0.
    delta : float
        In (0, 1); well below one over the number of records.
    max_grad_norm : float
        S > 0, the norm that each record's gradient is clipped to.
    sampling_rate : float
        q in (0, 1], the probability with which each record is in a step's batch.
    divisor : float
        D > 0, what each noisy sum is divided by: a public constant, `sampling_rate` times about as many records as
        there are expected to be.
    max_steps : int
        The cap, ≥ 1: how many steps the budget is planned for.
    steps_per_task : int
        Steps in one fit, ≥ 1.
    noise_multiplier : float, optional
        z > 0. Left out, it is calibrated from ε; with ε as well, it is checked against that.

    Raises
    ------
    PrivacyError
        When a value is out of range, or neither `epsilon` nor `noise_multiplier` is given.

    Examples
    --------
    >>> plan = LocalPrivacy(noise_multiplier=2.0, delta=1e-5, max_grad_norm=1.0, sampling_rate=0.1, divisor=50,
    ...                     max_steps=100)
    >>> plan.spend
    Spend(noise_multiplier=2.0, sampling_rate=0.1, steps=1)

    References
    ----------
    Abadi et al., *Deep Learning with Differential Privacy*, arXiv:1607.00133.
    """

    delta: float
    max_grad_norm: float
    sampling_rate: float
    divisor: float
    max_steps: int
    steps_per_task: int = 1
    epsilon: float | None = None
    noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        if self.epsilon is None and self.noise_multiplier is None:
            raise PrivacyError("epsilon and noise_multiplier are both missing; give the budget, or the noise")
        for name in ("epsilon", "noise_multiplier"):
            value = getattr(self, name)
            if value is not None:
                _check_positive(name, value)
        if not 0 < self.delta < 1:
            raise PrivacyError(f"delta must be in (0, 1), got {self.delta}")
        _check_positive("divisor", self.divisor)
        _check_clipped_sample(self.max_grad_norm, self.sampling_rate)
        if not 1 <= self.steps_per_task <= self.max_steps:
            raise PrivacyError(
                f"steps_per_task must be in 1 … max_steps = {self.max_steps}, got {self.steps_per_task}"
            )

    def calibrated(self) -> "LocalPrivacy":
        """The same with a noise multiplier that keeps the budget; takes seconds where it is not given.

        Raises
        ------
        PrivacyError
            When the given noise costs more than ε, or dp-accounting is needed and not installed.
        """
        if self.noise_multiplier is None:
            assert self.epsilon is not None  # one of the two is there
            noise = poisson_noise(
                epsilon_target=self.epsilon,
                delta=self.delta,
                sampling_rate=self.sampling_rate,
                steps=self.max_steps,
            )
            return msgspec.structs.replace(self, noise_multiplier=noise)
        if self.epsilon is not None and (cost := self.planned_epsilon()) > self.epsilon:
            raise PrivacyError(
                f"with noise_multiplier {self.noise_multiplier:g} max_steps = {self.max_steps} cost epsilon "
                f"{cost:.3g}, and epsilon is {self.epsilon:g}; raise it, or leave it out to have it calibrated"
            )
        return self

    @property
    def spend(self) -> Spend:
        """What one task costs each record. The plan must be calibrated."""
        if self.noise_multiplier is None:
            raise PrivacyError("the noise is not calibrated yet; see LocalPrivacy.calibrated")
        return Spend(self.noise_multiplier, self.sampling_rate, self.steps_per_task)

    @property
    def sigma(self) -> float:
        """The noise's standard deviation on a sum, z·S. The plan must be calibrated."""
        return self.spend.noise_multiplier * self.max_grad_norm

    @property
    def records(self) -> int:
        """About how many records there are, as the public numbers say."""
        return max(1, round(self.divisor / self.sampling_rate))

    def planned_epsilon(self) -> float:
        """The ε of all `max_steps`, at `delta`."""
        return epsilon([msgspec.structs.replace(self.spend, steps=self.max_steps)], self.delta)

    def check_affords(self, spent: Iterable[Spend]) -> None:
        """Refuse a task after which everything that `spent` lists would have been spent.

        Where all of it had this plan's noise, the cap is `max_steps`. Otherwise it is the ε of all together.

        Raises
        ------
        BudgetExhausted
            When that is too much. Its message begins with ``privacy_budget``.
        """
        total = merged(spent)
        own = msgspec.structs.replace(self.spend, steps=self.max_steps)
        if len(total) <= 1 and all(kind_of(each) == kind_of(own) for each in total):
            steps = sum(each.steps for each in total)
            if steps > own.steps:
                raise BudgetExhausted(f"privacy_budget: {own.steps} steps are all that was planned")
            return
        budget = self.epsilon if self.epsilon is not None else self.planned_epsilon()
        if epsilon(total, self.delta) > budget:
            raise BudgetExhausted(f"privacy_budget: with earlier steps epsilon would pass {budget:g}")


class GradientSum(msgspec.Struct, frozen=True, kw_only=True):
    """One sum of clipped per-example gradients a task; the broker adds the noise, and must be trusted to.

    Only for federations with a ``[privacy]`` table, whose `max_grad_norm` and `sampling_rate` these are.

    Parameters
    ----------
    max_grad_norm : float, optional
        S > 0. Left out, the key of this name in the federation's ``[task]`` table; given, that may not differ.
    sampling_rate : float, optional
        q in (0, 1], likewise.
    """

    max_grad_norm: float | None = None
    sampling_rate: float | None = None

    def of(self, config: Mapping[str, Any]) -> tuple[float, float]:
        """S and q for a task with this ``[task]`` table.

        Raises
        ------
        ClientAppError
            When a number is nowhere, or is another one in the table.
        PrivacyError
            When one is out of range.
        """
        max_grad_norm = _agreed("max_grad_norm", self.max_grad_norm, config)
        sampling_rate = _agreed("sampling_rate", self.sampling_rate, config)
        _check_clipped_sample(max_grad_norm, sampling_rate)
        return max_grad_norm, sampling_rate


def merged(spends: Iterable[Spend]) -> list[Spend]:
    """Steps of equal noise and sampling counted together."""
    steps: Counter[tuple[float, float]] = Counter()
    for spend in spends:
        steps[kind_of(spend)] += spend.steps
    return [Spend(noise, rate, count) for (noise, rate), count in sorted(steps.items())]


def kind_of(spend: Spend) -> tuple[float, float]:
    """Noise and sampling, which decide what one step costs."""
    return spend.noise_multiplier, spend.sampling_rate


def _agreed(name: str, own: float | None, config: Mapping[str, Any]) -> float:
    told = config.get(name)
    if told is not None and (isinstance(told, bool) or not isinstance(told, int | float)):
        raise ClientAppError(f"[task] {name} must be a number, got {told!r}")
    if own is None and told is None:
        raise ClientAppError(f"{name} is neither given to this app nor in the federation's [task] table")
    if own is not None and told is not None and told != own:
        raise ClientAppError(f"this worker was given {name} = {own:g}, and the [task] table says {told:g}")
    return float(own if own is not None else told)  # type: ignore[arg-type]


def _check_clipped_sample(max_grad_norm: float, sampling_rate: float) -> None:
    _check_positive("max_grad_norm", max_grad_norm)
    if not 0 < sampling_rate <= 1:
        raise PrivacyError(f"sampling_rate must be in (0, 1], got {sampling_rate}")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise PrivacyError(f"{name} must be positive and finite, got {value}")
