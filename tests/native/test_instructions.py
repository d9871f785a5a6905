"""A kernel takes the instructions that its budget grants: what would slow it down shows here, without a clock."""

import pytest

from . import instructions
from .conftest import REQUIRED
from .driver import Driver

TOLERANCE = 0.02


@pytest.mark.parametrize("level", instructions.LEVELS)
def test_budget(driver: Driver, level: str) -> None:
    """Each case stays within ±2 %; an improvement is written down: ``python -m tests.native.instructions``."""
    tools = instructions.tools(driver)
    budget = instructions.budgets().get(tools)
    if budget is None:
        why = f"no budget for {tools or 'a machine without valgrind'}, only for {', '.join(instructions.budgets())}"
        assert not REQUIRED, why
        pytest.skip(why)
    if not driver.has(level):
        pytest.skip(f"this CPU lacks {level}")
    counted = instructions.count(driver, level)
    assert counted.keys() == budget[level].keys()
    off = {
        case: f"{found:,} instead of {budget[level][case]:,}"
        for case, found in counted.items()
        if abs(found - budget[level][case]) > TOLERANCE * budget[level][case]
    }
    assert not off
