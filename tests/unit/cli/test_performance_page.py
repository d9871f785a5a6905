"""docs/performance.md and the script that fills it: every table has its place, and nothing else changes."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """benchmarks/performance_page.py, which is in no package."""
    spec = importlib.util.spec_from_file_location(
        "performance_page", ROOT / "benchmarks" / "performance_page.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def document(**changes: Any) -> dict[str, Any]:
    """What `fedmq bench kernels --json` writes, with one result for each of these topics."""
    topics = [
        "calls", "mean", "clip", "f16", "bf16", "i8", "noise", "adam", "median 16", "median 32", "trimmed mean 32",
        "distances",
    ]  # fmt: skip
    one = {
        "kernel": "weighted_mean", "mode": "exact", "impl": "native", "variant": "", "threads": 1, "n": 16,
        "median_s": 0.0125, "gbps": 12.34, "of_roofline": 0.871, "native_is": 1.0,
    }  # fmt: skip
    bar = {"at_most": False, "measured": 0.8, "met": True}
    made = {
        "machine": {
            "cpus": 2,
            "cpu": "AMD EPYC",
            "kernels": {"backend": "native", "isa": "avx512", "compiler": "gcc 12"},
            "libraries": {"numpy": "2.0", "flwr": None},
        },
        "complete": True,
        "n": 10_000_000,
        "k": 32,
        "roofline": {"read4_gbps": {"1": 12.0, "2": 23.0}, "memcpy_gbps": {"1": 10.0, "2": 15.0}},
        "results": [{**one, "topic": topic} for topic in topics],
        "relative_errors": {"native": 1.2e-16},
        "crossover_n": {"sgd_": 16, "clip_": None},
        "bars": [
            {**bar, "number": 3, "what": "exact", "needed": 0.75, "unit": "× read4"},
            {**bar, "number": 12, "what": "a call", "needed": 1.5, "unit": "µs", "at_most": True,
             "measured": None, "met": False},
        ],
    }  # fmt: skip
    return made | changes


def test_every_table_of_the_page_is_filled(script: ModuleType) -> None:
    """From one document; the text around the tables stays, and filling again changes nothing."""
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    filled = script.fill(page, document())
    assert filled.count("| native exact | 1 | 12.5 | 12.3 | 0.87 | 1.0 × |") == 11
    assert "| 3 | exact | ≥ 0.75 × read4 | 0.8 | met |" in filled
    assert "| 12 | a call | ≤ 1.5 µs | – | **not met** |" in filled
    assert "| clip_ | never here |" in filled
    assert "2 shared cores of an AMD EPYC" in filled
    assert "`read4` 12.0 and 23.0 GB/s, memcpy 10.0 and 15.0 GB/s" in filled
    bare = [script.MARKED.sub(r"\g<1>\g<3>", text) for text in (page, filled)]
    assert bare[0] == bare[1]
    assert script.fill(filled, document()) == filled


def test_a_table_that_cannot_be_filled_is_an_error(script: ModuleType) -> None:
    """Rather than an old table beside new ones."""
    with pytest.raises(KeyError, match="median 99"):
        script.fill("<!-- figures: median 99 -->\n<!-- end -->", document())


def test_without_native_there_is_no_roofline(script: ModuleType) -> None:
    """And the page says so."""
    none = {"read4_gbps": {}, "memcpy_gbps": {}}
    assert "No roofline." in script.table("machine", document(roofline=none))


def test_an_interrupted_run_is_called_one(script: ModuleType) -> None:
    """Beside the machine's name."""
    assert "interrupted" in script.table("machine", document(complete=False))
    assert "interrupted" not in script.table("machine", document())


def test_the_picture_of_the_page_is_there() -> None:
    """Drawn by the same command."""
    assert (ROOT / "docs" / "performance.png").read_bytes().startswith(b"\x89PNG")
