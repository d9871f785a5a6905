"""The compiled kernels, called from C++, give the bits of the numpy reference: on every level and every machine."""

import re

import pytest

from .building import ROOT
from .driver import LEVELS, Driver
from .reference import digests


@pytest.mark.parametrize("level", LEVELS)
def test_level(driver: Driver, level: str) -> None:
    """Each case of a level has the digest of the reference; a level that is not there says so and computes nothing."""
    if driver.has(level):
        report = driver.report(level)
        assert report["isa"] == level
        assert report["digests"] == digests()
    else:
        done = driver.run(level)
        assert done.returncode != 0
        assert done.stdout == ""
        assert "FEDMQ_ISA" in done.stderr


def test_every_kernel_has_a_case() -> None:
    """A kernel that joins the table joins the driver and its twin, too."""
    table = (ROOT / "csrc" / "dispatch.h").read_text(encoding="utf-8")
    kernels = set(re.findall(r"\(\*(\w+)\)\(", table))
    assert "fold_exact" in kernels
    assert kernels == {case.split()[0] for case in digests()}
