"""The ledger: spending only grows, and is refused before it passes the cap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore.errors import BudgetExhausted, PrivacyError
from fedmq.fedcore.privacy.accounting import Spend, gaussian_epsilon
from fedmq.fedcore.privacy.ledger import FEDERATION, Ledger, open_ledger

STEP = Spend(6.31)


@given(st.integers(0, 20), st.lists(st.integers(0, 5)))
def test_a_ledger_never_passes_its_cap(cap: int, charges: list[int]) -> None:
    """What would pass it is refused and changes nothing."""
    ledger = Ledger(STEP, 1e-5, cap)
    for steps in charges:
        before = ledger.steps()
        if steps > cap - before:
            with pytest.raises(BudgetExhausted):
                ledger.charge(steps=steps)
            assert ledger.steps() == before
        else:
            ledger = ledger.charge(steps=steps)
            assert ledger.steps() == before + steps
        assert ledger.remaining() == cap - ledger.steps()
        assert ledger.would_exceed() == (ledger.remaining() == 0)


def test_promised_steps_count_before_they_are_spent() -> None:
    """What is frozen or buffered will be spent, whatever happens."""
    ledger = Ledger(STEP, 1e-5, cap=3).charge("a")
    assert not ledger.would_exceed("a", promised=1)
    assert ledger.would_exceed("a", promised=2)
    assert not ledger.would_exceed("b", promised=2)


def test_subjects_have_accounts_of_their_own() -> None:
    """One worker at its cap stops no other."""
    ledger = Ledger(STEP, 1e-5, cap=1).charge("a")
    with pytest.raises(BudgetExhausted, match="a has taken 1 of 1"):
        ledger.charge("a")
    assert ledger.charge("b").spent == {"a": 1, "b": 1}
    assert ledger.spent == {"a": 1}


def test_nothing_is_refunded() -> None:
    """A negative charge is a mistake."""
    with pytest.raises(PrivacyError, match="not refunded"):
        Ledger(STEP, 1e-5, cap=3).charge(steps=-1)
    with pytest.raises(PrivacyError, match="cap"):
        Ledger(STEP, 1e-5, cap=-1)


def test_epsilon_follows_what_was_spent() -> None:
    """Nothing spent is ε = 0; ten steps compose."""
    ledger = Ledger(STEP, 1e-5, cap=10)
    assert ledger.epsilon() == 0
    assert ledger.charge(steps=10).epsilon(FEDERATION) == pytest.approx(
        gaussian_epsilon(6.31 / 10**0.5, 1e-5)
    )


def test_the_cap_is_what_the_budget_affords() -> None:
    """But not more than was planned; and a budget for nothing does not open."""
    ledger = open_ledger(STEP, epsilon_budget=2.0, delta=1e-5, planned=50, spent={FEDERATION: 4})
    assert (ledger.cap, ledger.remaining()) == (10, 6)
    assert open_ledger(STEP, epsilon_budget=2.0, delta=1e-5, planned=5).cap == 5
    with pytest.raises(BudgetExhausted, match="does not afford one step"):
        open_ledger(STEP, epsilon_budget=0.1, delta=1e-5, planned=50)
