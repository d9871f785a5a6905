"""Chance and tally of a round of chaos; a long round that passed writes its table into docs/reliability.md."""

import os
import random
from pathlib import Path

import pytest

from .rounds import LONG, again, chance
from .tally import Tally, rewrite
from .volumes import INSIDE

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
TALLY = pytest.StashKey[Tally]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLY] = Tally()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Where a test counts the faults that it injects."""
    return request.config.stash[TALLY]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """The test's chance; a test that fails shows how to run it again."""
    print("once more with the same seed:", again(request.node.nodeid))
    return chance(request.node.nodeid)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode, config: pytest.Config
) -> None:
    """Show what was injected; write it down where the round was a whole one."""
    tally = config.stash[TALLY]
    if INSIDE in os.environ:  # part of another round, which adds it to its own
        Path(os.environ[INSIDE]).write_text(tally.dump(), encoding="utf-8")
        return
    lines = tally.table()
    if not lines:
        return
    terminalreporter.section("chaos")
    for line in lines:
        terminalreporter.line(line)
    if not LONG:
        return
    if exitstatus == pytest.ExitCode.OK and tally.complete:
        rewrite(PAGE, lines)
        terminalreporter.line(f"written to {PAGE.name}")
    else:
        terminalreporter.line(f"{PAGE.name} stays as it is: not every fault was injected, or a test failed")
