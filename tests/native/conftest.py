"""The kernels without Python around them: a C++ driver calls each over fixed inputs.

Where there is no compiler nothing here is collected and the summary says so; with ``FEDMQ_REQUIRE_NATIVE=1``, as in
CI, that fails instead. ``FEDMQ_DRIVER`` is the command of a driver that somebody else has built: for another
processor, behind an emulator, or with a sanitizer.
"""

import os
import shlex

import pytest

from .building import missing_tools
from .driver import Driver

REQUIRED = os.environ.get("FEDMQ_REQUIRE_NATIVE") == "1"

_MISSING = [] if os.environ.get("FEDMQ_DRIVER") else missing_tools()
collect_ignore_glob = ["test_*.py"] if _MISSING and not REQUIRED else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say that nothing was run; a silent pass would look like a proof."""
    if collect_ignore_glob:
        terminalreporter.write_line(f"native: the driver needs {', '.join(_MISSING)}", yellow=True)


@pytest.fixture(scope="session")
def driver() -> Driver:
    """The driver, built if need be."""
    given = os.environ.get("FEDMQ_DRIVER")
    if given:
        return Driver(shlex.split(given))
    assert not _MISSING, f"FEDMQ_REQUIRE_NATIVE is 1, but the driver needs {', '.join(_MISSING)}"
    return Driver.built()
