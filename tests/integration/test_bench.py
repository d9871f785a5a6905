"""`fedmq bench` as it is typed: real processes, and figures that can be true."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .federation import run


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
    assert done.stdout.startswith("10 floats, 1 worker, sync, no training\n\ndurability  os\nround  ")
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
