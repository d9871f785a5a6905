"""docs/security.md is true at least in this: the tests that it names are there."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "security.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_exists() -> None:
    """A claim whose test was renamed or deleted is a claim without a test."""
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    defined = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 20
    assert named <= defined


def test_every_file_that_is_named_exists() -> None:
    """So are the folders and scripts."""
    paths = re.findall(r"`(?:python )?((?:tests|benchmarks)/[\w/.*]+)`", PAGE)
    assert paths
    assert all(list(TESTS.parent.glob(path)) for path in paths)
