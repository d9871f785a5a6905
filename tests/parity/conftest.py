"""Parity: the native kernels give the same bits as the numpy reference.

An install without a compiler has no native kernels, so nothing here is collected then and the summary says so. Where
``FEDMQ_REQUIRE_NATIVE=1``, as in CI, their absence fails every test instead.
"""

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

REQUIRED = os.environ.get("FEDMQ_REQUIRE_NATIVE") == "1"


def _native() -> ModuleType | None:
    try:
        return importlib.import_module("fedmq.fedcore.kernels._native")
    except ImportError:
        return None


collect_ignore_glob = [] if REQUIRED or _native() is not None else ["test_*.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say that nothing was compared; a silent pass would look like parity."""
    if collect_ignore_glob:
        terminalreporter.write_line("parity: no native kernels in this install", yellow=True)


@pytest.fixture(scope="session")
def native() -> ModuleType:
    """The compiled kernels."""
    found = _native()
    assert found is not None, (
        "FEDMQ_REQUIRE_NATIVE is 1, but fedmq.fedcore.kernels._native cannot be imported"
    )
    return found


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The numpy kernels, which define the bits."""
    return importlib.import_module("fedmq.fedcore.kernels.reference")


@pytest.fixture(scope="session")
def vector() -> Callable[..., Any]:
    """Make the float32 vector of a kind, a size and a seed."""

    def make(kind: str, n: int, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        match kind:
            case "normal":
                x = rng.standard_normal(n) * 10.0 ** rng.uniform(-6, 3)
            case "ties":  # halves: rounding decides
                x = rng.integers(-50, 50, n) * 0.5
            case "wide":  # many magnitudes, subnormals too
                x = rng.standard_normal(n) * 10.0 ** rng.uniform(-44, 3.5, n)
            case "zeros":
                x = np.where(rng.random(n) < 0.5, 0.0, -0.0)
            case "anything":  # every bit pattern, NaNs and infinities among them
                return rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
            case _:
                raise ValueError(kind)
        return x.astype(np.float32)

    return make


@pytest.fixture(scope="session")
def unaligned() -> Callable[[bytes, int], memoryview]:
    """Copy bytes to an address that is `shift` beyond an aligned one."""

    def move(data: bytes, shift: int) -> memoryview:
        room = np.zeros(len(data) + 64 + shift, np.uint8)
        start = -room.ctypes.data % 64 + shift
        room[start : start + len(data)] = np.frombuffer(data, np.uint8)
        return memoryview(room)[start : start + len(data)]

    return move


@pytest.fixture(scope="session")
def same_bits() -> Callable[[Any, Any], None]:
    """Assert that two arrays are equal bit by bit; which NaN a NaN is, no kernel promises."""

    def check(a: Any, b: Any) -> None:
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype.kind == "f":
            a, b = (np.where(np.isnan(x), np.array(np.nan, x.dtype), x) for x in (a, b))
        integer = f"u{a.dtype.itemsize}"
        different = np.flatnonzero(a.view(integer) != b.view(integer))
        assert different.size == 0, (different[:5], a[different[:5]], b[different[:5]])

    return check
