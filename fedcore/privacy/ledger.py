"""Who has spent how much privacy, and whether more may be spent.

Pure logic: the broker's journal keeps the rows and commits each in the transaction of the version that spent
it; this module decides. Rules that hold here:

* Spending only grows. Nothing refunds.
* Whoever asks counts what is promised, too: updates frozen or buffered will be spent, whatever happens.
* A step that would pass the cap is refused before it is taken, never reported after it.
"""

from typing import Final

import msgspec

from ..errors import BudgetExhausted, PrivacyError
from .accounting import Spend, epsilon, poisson_steps

__all__ = ["FEDERATION", "Ledger", "open_ledger"]

FEDERATION: Final = "federation"
"""The subject of a record-level ledger: all records spend together. A worker-level one has a subject a worker."""


class Ledger(msgspec.Struct, frozen=True):
    """A cap on equal steps, and how many each subject has taken.

    Parameters
    ----------
    step : Spend
        What one step costs.
    delta : float
        The δ at which ε is stated.
    cap : int
        Steps that a subject may take.
    spent : dict of str to int
        Steps taken so far; whoever is not in it has taken none.

    Examples
    --------
    >>> ledger = Ledger(Spend(noise_multiplier=6.3), delta=1e-5, cap=10)
    >>> ledger = ledger.charge("ward-3").charge("ward-3")
    >>> ledger.remaining("ward-3"), ledger.would_exceed("ward-3", promised=8)
    (8, True)
    """

    step: Spend
    delta: float
    cap: int
    spent: dict[str, int] = {}

    def __post_init__(self) -> None:
        if self.cap < 0:
            raise PrivacyError(f"a cap must be ≥ 0 steps, got {self.cap}")

    def steps(self, subject: str = FEDERATION) -> int:
        """How many steps `subject` has taken."""
        return self.spent.get(subject, 0)

    def remaining(self, subject: str = FEDERATION) -> int:
        """How many more steps `subject` may take."""
        return max(0, self.cap - self.steps(subject))

    def would_exceed(self, subject: str = FEDERATION, *, promised: int = 0) -> bool:
        """Whether one more step would pass the cap, given `promised` steps frozen or buffered already."""
        return self.steps(subject) + promised + 1 > self.cap

    def charge(self, subject: str = FEDERATION, steps: int = 1) -> "Ledger":
        """The ledger after `subject` took `steps` more.

        Raises
        ------
        BudgetExhausted
            When that passes the cap; this ledger stays as it was.
        PrivacyError
            When `steps` is negative.
        """
        if steps < 0:
            raise PrivacyError(f"privacy is not refunded: steps must be ≥ 0, got {steps}")
        if steps > self.remaining(subject):
            raise BudgetExhausted(
                f"{subject} has taken {self.steps(subject)} of {self.cap} private steps; "
                f"{steps} more would pass the cap"
            )
        return msgspec.structs.replace(self, spent={**self.spent, subject: self.steps(subject) + steps})

    def epsilon(self, subject: str = FEDERATION) -> float:
        """The ε that `subject` has spent, at the ledger's δ. Takes up to a second under Poisson sampling."""
        return epsilon([msgspec.structs.replace(self.step, steps=self.steps(subject))], self.delta)


def open_ledger(
    step: Spend, *, epsilon_budget: float, delta: float, planned: int, spent: dict[str, int] | None = None
) -> Ledger:
    """A ledger whose cap is what the budget affords of the planned steps.

    Parameters
    ----------
    step : Spend
        What one step costs.
    epsilon_budget, delta : float
        The budget (ε, δ).
    planned : int
        Steps that the federation means to take; the cap is not above it.
    spent : dict of str to int, optional
        What the journal holds.

    Raises
    ------
    BudgetExhausted
        When the budget does not afford a single step.
    PrivacyError
        When a value is out of range, or dp-accounting is needed and not installed.
    """
    cap = poisson_steps(
        epsilon_budget=epsilon_budget,
        delta=delta,
        noise_multiplier=step.noise_multiplier,
        sampling_rate=step.sampling_rate,
        at_most=planned,
    )
    if cap == 0:
        raise BudgetExhausted(
            f"ε = {epsilon_budget} at δ = {delta} does not afford one step with noise_multiplier "
            f"{step.noise_multiplier}; raise the noise or the budget"
        )
    return Ledger(step, delta, cap, dict(spent or {}))
