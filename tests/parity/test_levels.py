"""Parity of every instruction-set level that this CPU has, at one to three threads, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DIGESTS = Path(__file__).with_name("digests.py")
LEVELS = ("base", "avx2", "avx512")


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program with only these of our variables set."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FEDMQ_")}
    return subprocess.run(
        [sys.executable, str(DIGESTS)], env=clean | environment, capture_output=True, text=True, timeout=100
    )


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What the reference makes."""
    done = run(FEDMQ_KERNELS="python")
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = json.loads(done.stdout)
    assert made["info"]["backend"] == "python"
    return made


@pytest.fixture(scope="module")
def best(native: ModuleType) -> str:
    """The level that is chosen here where nobody says."""
    done = run(FEDMQ_KERNELS="native")
    assert done.returncode == 0, done.stderr
    level: str = json.loads(done.stdout)["info"]["isa"]
    return level


@pytest.mark.parametrize(("level", "threads"), [("base", 2), ("avx2", 3), ("avx512", 1)])
def test_level(best: str, expected: dict[str, Any], level: str, threads: int) -> None:
    """A level gives the bits of the reference; one that the CPU lacks says so and computes nothing."""
    done = run(FEDMQ_KERNELS="native", FEDMQ_ISA=level, FEDMQ_NUM_THREADS=str(threads))
    if LEVELS.index(level) <= LEVELS.index(best):
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        assert (made["info"]["isa"], made["info"]["threads"]) == (level, threads)
        assert made["digests"] == expected["digests"]
    else:
        assert done.returncode != 0
        assert "FEDMQ_ISA" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("name", "value"), [("FEDMQ_ISA", "sse9"), ("FEDMQ_NUM_THREADS", "many")])
def test_a_wish_that_cannot_be_granted(native: ModuleType, name: str, value: str) -> None:
    """An unknown level or number of threads is an error that names the variable and what it holds."""
    done = run(FEDMQ_KERNELS="native", **{name: value})
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert name in last
    assert value in last
