"""`fedmq bench` as it is typed: real processes, and figures that can be true."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedmq.fedcore import kernels

from .federation import run

SMALL = ("bench", "kernels", "--n", "2000", "--k", "4")


def test_the_fold_benchmark(tmp_path: Path) -> None:
    """Both durabilities, beside the roofline where kernels were compiled; nothing is left behind."""
    command = [sys.executable, "-m", "fedmq.cli.main", "bench", "fold", "--n", "20000", "--k", "3"]
    done = subprocess.run(
        [*command, "--optimizer", "adam", "--json", "-"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["n"], found["k"], found["optimizer"]) == (20000, 3, "adam")
    assert [one["durability"] for one in found["runs"]] == ["os", "fsync"]
    for one in found["runs"]:
        assert one["gbps"] == pytest.approx(4e-6 * 20000 * 3 / one["ms"])
        assert one["cpu_ms"] > 0
        if kernels.backend == "native":
            assert one["of_roofline"] == pytest.approx(one["gbps"] / found["read4_gbps"])
        else:
            assert one["of_roofline"] is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_federation_benchmark(tmp_path: Path, mode: str) -> None:
    """Both durabilities, each with its figures; nothing is left behind, and the bar is for rounds alone."""
    command = [
        sys.executable,
        "-m",
        "fedmq.cli.main",
        "bench",
        "federation",
        "--rounds",
        "20",
        "--mode",
        mode,
        "--flower" if mode == "sync" else "--no-flower",
    ]
    done = subprocess.run(
        [*command, "--json", "-"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["n"], found["workers"], found["mode"]) == (1000, 2, mode)
    assert [one["durability"] for one in found["runs"]] == ["os", "fsync"]
    for one in found["runs"]:
        assert one["rounds"] == 20
        assert 0 < one["round_ms_median"] <= one["round_ms_p99"]
        assert one["updates_per_s"] > 2
        # 4,000 bytes of weights up from each worker in a version, and down to each.
        assert one["bytes_up_per_s"] >= 4000 * one["updates_per_s"] / 2
        assert one["bytes_down_per_s"] > 0
        assert 5e6 < one["rss_anon_peak"] < 100e6
        assert one["fsync_ms"] > 0
        assert (one["bar_ms"] is not None) == (mode == "sync")
        assert one["within_bar"] == (None if mode == "async" else one["round_ms_median"] <= one["bar_ms"])
    assert (found["flower"] is None) == (mode == "async")
    if found["flower"] is not None:
        assert found["flower"]["rounds"] == 17
        assert found["flower"]["updates_per_s"] > 2
    assert list(tmp_path.iterdir()) == []


def test_a_small_run_for_people(tmp_path: Path) -> None:
    """Figures with units on stdout; progress on stderr."""
    command = [sys.executable, "-m", "fedmq.cli.main", "bench", "federation", "--n", "10", "--rounds", "5"]
    done = subprocess.run(
        [*command, "--workers", "1", "--durability", "os", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "10 floats, 1 worker, sync, f32 up, f32 down, no training\n\ndurability  os\nround  "
    )
    assert "RssAnon" in done.stdout
    assert "bar" not in done.stdout
    assert "os: version 6 of 6" in done.stderr


def test_the_load_benchmark(tmp_path: Path) -> None:
    """A small crowd through all phases: everybody comes back, and nothing that was acknowledged is lost."""
    document = tmp_path / "load.json"
    size = ("--workers", "40", "--processes", "2", "--rate", "100", "--seconds", "1", "--idle", "1")
    ended = run("bench", "load", *size, "--json", document, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(document.read_text())
    assert found["lost"] == 0
    assert found["journalled"] >= found["acknowledged"] > 0
    assert 0 < found["latency_ms_p50"] <= found["latency_ms_p99"]
    assert "everybody back" in ended.stdout


def test_the_kernels_benchmark(tmp_path: Path) -> None:
    """Every contestant is there or listed as absent, computes the same, and has its figures; no bar is judged."""
    document = tmp_path / "kernels.json"
    ended = run(*SMALL, "--threads", "1,2", "--json", document, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(document.read_text())
    assert found["complete"] is True
    assert (found["n"], found["k"]) == (2000, 4)
    assert found["machine"]["kernels"]["backend"] == kernels.backend
    absent = {one["who"] for one in found["absent"]}
    assert not any("differs" in one["reason"] or "another" in one["reason"] for one in found["absent"])

    for one in found["results"]:
        assert one["kernel"] in kernels.__all__
        assert one["impl"] in ("native", "python", "numpy", "torch", "flwr")
        assert one["threads"] in (1, 2)
        assert one["rounds"] == 7
        assert one["median_s"] > 0
        assert one["gbps"] > 0
        assert (one["of_roofline"] is None) == ("roofline" in absent or one["topic"] == "calls")
    topics = {one["topic"] for one in found["results"]}
    assert topics == {
        "calls", "mean", "clip", "f16", "bf16", "i8", "noise", "adam", "median 2", "median 4",
        "trimmed mean 4", "distances",
    }  # fmt: skip
    means = {
        (one["impl"], one["variant"], one["threads"]) for one in found["results"] if one["topic"] == "mean"
    }
    for impl in {"python", "numpy", "native", "torch", "flwr"} - absent:
        assert any(who == impl for who, _, _ in means)
    if "torch" not in absent:
        ways = ("_foreach_add_", "stack + mv", "mv, stacked before", "dictionary loop")
        assert {("torch", way, count) for way in ways for count in (1, 2)} <= means
    if "flwr" not in absent:
        assert {("flwr", "aggregate", 1), ("flwr", "aggregate_inplace", 1)} <= means

    limits = found["roofline"]
    assert (
        set(limits["read4_gbps"])
        == set(limits["memcpy_gbps"])
        == (set() if "roofline" in absent else {"1", "2"})
    )
    assert {one["number"] for one in found["bars"]} == set(range(1, 13))
    assert all(one["met"] is None for one in found["bars"])
    assert found["relative_errors"]["python reference"] < 1e-12
    if "native" not in absent:
        assert "sum_squares" in found["crossover_n"]
        assert "native pays, against numpy, from" in ended.stdout
    assert "at another size than theirs: no verdict" in ended.stdout
    assert "mean: getting ready" in ended.stderr


def test_kernels_without_the_native_backend(tmp_path: Path) -> None:
    """There is no roofline, and it is said; the others are measured all the same."""
    ended = run(*SMALL, "--threads", "1", "--json", "-", cwd=tmp_path, env={"FEDMQ_KERNELS": "python"})
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    absent = {one["who"]: one["reason"] for one in found["absent"]}
    assert absent["native"] == "FEDMQ_KERNELS is python" or "not compiled" in absent["native"]
    assert absent["roofline"] == "no roofline without the native backend"
    assert found["roofline"]["read4_gbps"] == {}
    assert found["crossover_n"] == {}
    assert {one["impl"] for one in found["results"]} >= {"python", "numpy"}
    assert all(one["impl"] != "native" and one["of_roofline"] is None for one in found["results"])


def test_more_than_the_machine_holds_is_refused(tmp_path: Path) -> None:
    """At once, in one line, with sizes that fit."""
    ended = run("bench", "kernels", "--n", 10**9, "--k", 1000, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("fedmq: --n 1000000000 --k 1000 needs about 12.2 TB of memory")
    assert ended.stderr.count("\n") == 1
    assert "would fit" in ended.stderr


def test_an_interrupted_kernels_benchmark_shows_what_it_has(tmp_path: Path) -> None:
    """Ctrl-C during the second contest: the first one's table, and what there is of the second."""
    command = [sys.executable, "-m", "fedmq.cli.main", "bench", "kernels", "--n", "500000", "--threads", "1"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("mean: "):
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate()
    assert process.returncode == 130, err
    assert "interrupted: these are medians of what was measured until then" in out
    assert "one call, in µs" in out
    assert "squared distances of" not in out
