"""The kernels' benchmark around its turns: what fits into memory, what is computed, shown, drawn and refused."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.cli.bench.kernels import machine, plot, report
from fedmq.cli.bench.kernels.contest import Contestant
from fedmq.cli.bench.kernels.folds import CONVERT
from fedmq.cli.bench.kernels.means import wrong_mean
from fedmq.cli.bench.kernels.run import Found
from fedmq.cli.bench.kernels.vectors import numpy_adam
from fedmq.cli.bench.kernels.workload import (
    Workload,
    check_memory,
    exact_mean,
    make_updates,
    needed_bytes,
)
from fedmq.fedcore import kernels
from fedmq.fedcore.errors import ConfigError

from .conftest import Run
from .kernel_results import bar, called, result


@given(
    st.integers(16, 10**9),
    st.integers(4, 1000),
    st.integers(10**6, 10**12),
)
def test_what_does_not_fit_is_refused_with_what_would(n: int, k: int, free: int) -> None:
    """One line, whose hints fit."""
    try:
        check_memory(Workload(n=n, k=k), free)
    except ConfigError as error:
        words = str(error).split()
        hints = words[words.index("free;") + 1 :]
        smaller = int(hints[hints.index("--n") + 1])
        check_memory(Workload(n=smaller, k=k), free)
        if "--k" in hints:
            check_memory(Workload(n=n, k=int(hints[hints.index("--k") + 1])), free)
        assert needed_bytes(n, k) > 0.9 * free
    else:
        assert needed_bytes(n, k) <= free


def test_unknown_memory_is_taken_to_be_enough() -> None:
    """Where the system does not say."""
    check_memory(Workload(n=10**9, k=1000), None)


def test_free_memory_and_processor_are_read_from_proc(tmp_path: Path) -> None:
    """In bytes; unknown where there is no such file or line."""
    path = tmp_path / "meminfo"
    assert machine.free_bytes(path) is None
    path.write_text("MemTotal: 9 kB\n")
    assert machine.free_bytes(path) is None
    path.write_text("MemTotal:  24000 kB\nMemAvailable:   2000 kB\n")
    assert machine.free_bytes(path) == 2_048_000
    path.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n\nmodel name\t: Some CPU @ 2 GHz\n")
    assert machine.cpu(path) == "Some CPU @ 2 GHz"
    assert machine.cpu(tmp_path / "none") != ""


def test_updates_are_one_block_and_can_be_summed_exactly() -> None:
    """Rows and layers are views; F has room for all of them."""
    updates = make_updates(1000, 5)
    assert (updates.n, updates.k) == (1000, 5)
    assert all(np.shares_memory(row, updates.block) for row in updates.rows)
    layers = updates.layers(updates.rows[1])
    assert np.concatenate(layers).tolist() == updates.rows[1].tolist()
    mean = kernels.weighted_mean(updates.rows, updates.weights, frac_bits=updates.frac_bits)
    np.testing.assert_allclose(mean, exact_mean(updates.rows, updates.weights), atol=1e-6)
    assert make_updates(1000, 5).block.tolist() == updates.block.tolist()


def test_a_mean_that_is_off_is_found() -> None:
    """As one array or as layers; a roofline computes no mean."""
    expected = np.linspace(-1, 1, 100, dtype=np.float32)
    wrong = wrong_mean(expected)
    one = Contestant(kernel="weighted_mean", impl="flwr", run=list)
    assert wrong(one, expected + np.float32(1e-6)) == ""
    assert wrong(one, [expected[:30], expected[30:]]) == ""
    assert wrong(one, expected + np.float32(1e-3)) == "its result differs by 0.001"
    assert wrong(one, expected * np.float32("nan")) != ""
    assert wrong(Contestant(kernel="_read4", impl="native", run=list), 17) == ""


@given(n=st.integers(1, 3000), encoding=st.sampled_from(["f16", "bf16", "i8"]))
def test_numpy_converts_as_the_kernels_decode(n: int, encoding: str) -> None:
    """A contestant that decoded something else would be compared with nothing."""
    x = np.random.default_rng(n).standard_normal(n, dtype=np.float32)
    payload = kernels.encode(x, encoding, key=bytes(32))
    np.testing.assert_array_equal(CONVERT[encoding](payload, n), kernels.decode(payload, encoding, n))


def test_numpys_adam_is_the_kernels() -> None:
    """With the kernels' defaults, over several steps."""
    delta = np.linspace(-1, 1, 100, dtype=np.float32)
    mine, theirs = ([np.zeros(100, np.float32) for _ in range(3)] for _ in range(2))
    for _ in range(3):
        kernels.adam_(*mine, delta, lr=0.1)
        numpy_adam(*theirs, delta)
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_times_are_shown_in_fitting_units() -> None:
    """Three units are enough."""
    assert [report.time(s) for s in (2.5e-6, 0.0125, 1.234)] == ["2.5 µs", "12.5 ms", "1.23 s"]


def test_tables_compare_everybody_with_ours() -> None:
    """With as many threads; the exact fold is what a broker does."""
    found = Found(workload=Workload(), machine=machine.facts(), complete=True)
    found.titles, found.ours = {"mean": "means"}, {"mean": ("weighted_mean", "exact")}
    found.results = [
        result(kernel="_read4", median_s=0.05, gbps=25.6, of_roofline=1.0),
        result(mode="exact", median_s=0.1, gbps=12.8, of_roofline=0.5),
        result("flwr", 0.42, variant="aggregate", gbps=3.0, of_roofline=0.12),
        result("torch", 0.2, variant="_foreach_add_", threads=2),
    ]
    shown = [" ".join(line.split()) for line in report.lines(found)]
    assert "means; n = 10,000,000, K = 32; medians of 7" in shown
    assert "roofline: read4 1 50.0 ms 25.6 1.00" in shown
    assert "native exact 1 100.0 ms 12.8 0.50 1.0 x" in shown
    assert "flwr aggregate 1 420.0 ms 3.0 0.12 4.2 x" in shown
    assert "torch _foreach_add_ 2 200.0 ms 1.0" in shown  # ours was not measured with two
    assert "3 weighted mean exact, 1 T ≥ 0.75 × read4 0.50 NOT MET" in shown
    assert "4 exact, 1 T ≥ 4 × Flower's aggregate 4.20 met" in shown
    assert not any("interrupted" in line for line in shown)


def test_an_interrupted_run_says_so() -> None:
    """Even when there is nothing yet."""
    found = Found(workload=Workload(), machine=machine.facts())
    assert report.lines(found)[1].startswith("interrupted:")
    assert found.document()["complete"] is False


def test_the_document_has_no_infinity() -> None:
    """Which JSON does not know: native that never pays has no figure, and a verdict."""
    found = Found(workload=Workload(), machine={})
    found.results = called("sgd_", {16: 2.0}, {16: 1.0})
    assert bar(found.bars, "sgd_ never slower").measured == math.inf
    (never,) = [one for one in found.document()["bars"] if one["what"].startswith("sgd_")]
    assert (never["measured"], never["met"]) == (None, False)


def test_a_plot_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, fedmq: Run) -> None:
    """One line, at once, that says how to get it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    code, out, err = fedmq("bench", "kernels", "--plot", "x.png")
    assert (code, out) == (2, "")
    assert err == "fedmq: --plot needs matplotlib; install it with: pip install 'fedmq[bench]'\n"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("x.txt", "must end in .png"),
        ("none/x.png", "there is no folder"),
        ("folder.png", r"folder\.png: cannot be written"),
    ],
)
def test_a_plot_that_cannot_be_written_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, says: str
) -> None:
    """Before minutes of work."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match=says):
        plot.check(tmp_path / name)
    plot.check(tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
    plot.check(None)


@pytest.mark.parametrize("threads", ["0", "1,", "two", "1;2", "-1", "1000"])
def test_threads_are_a_list_of_numbers(fedmq: Run, threads: str) -> None:
    """Anything else is a usage error."""
    code, _, err = fedmq("bench", "kernels", "--threads", threads)
    assert code == 2
    assert "is no list of numbers from 1 to 256" in err


def test_the_picture(tmp_path: Path) -> None:
    """Drawn from whatever there is, native or not."""
    pytest.importorskip("matplotlib")
    found = Found(workload=Workload(), machine=machine.facts())
    found.titles, found.ours = {"mean": "means", "calls": "calls"}, {"mean": ("weighted_mean", "exact")}
    found.results = [
        result(kernel="_read4", of_roofline=1.0),
        result(mode="exact", of_roofline=0.5),
        result("numpy"),
        *called("sgd_", {16: 1.0, 64: 1.0}, {16: 2.0, 64: 1.0}),
    ]
    plot.draw(found, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
