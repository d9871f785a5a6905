"""Federations as people run them: one broker process, three worker processes, the `fedmq` commands."""

import csv
import io
import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from .federation import Federation, Tables, log_of, wait_for, write_model

ASYNC: Tables = {"mode": {"kind": "async", "buffer": 3, "concurrency": 8}}
SYNC: Tables = {"mode": {"kind": "sync", "min_available": 3}}


@pytest.mark.parametrize("encoding", ["f32", "f16", "bf16", "i8", "topk"])
def test_rounds_with_every_encoding_give_the_known_model(tmp_path: Path, encoding: str) -> None:
    """Half of the way to one, from a file of zeros: 1 − 2⁻ᵏ, exactly, however it is encoded."""
    zeros = write_model(tmp_path / "zeros.safetensors", {"w": np.zeros((10, 100), np.float32)})
    tables: Tables = {
        **SYNC,
        "model": {"initial": zeros.name},
        "aggregate": {"encoding": encoding, "density": 1.0, "weight": "uniform"},
        "stop": {"versions": 4},
    }
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        f.start_workers(3, "tiny:Halving")
        f.finish()
        if encoding == "i8":  # rounds at random, without bias, by at most one step of largest / 127
            np.testing.assert_allclose(f.weights(4), 1 - 2**-4, atol=0.02)
        else:
            assert np.array_equal(f.weights(4), np.full(1000, 1 - 2**-4, np.float32))
        sizes = {row[0] for row in f.query("SELECT size FROM updates")}
        assert sizes == {{"f32": 4000, "f16": 2000, "bf16": 2000, "i8": 1004, "topk": 3006}[encoding]}
        f.cli("export", "out.safetensors")
        assert load_file(tmp_path / "out.safetensors")["w"].shape == (10, 100)


def test_what_topk_leaves_out_comes_later(tmp_path: Path) -> None:
    """Half of the values in each update: the first half, then the other with both its steps, then the first again."""
    zeros = write_model(tmp_path / "zeros.safetensors", {"w": np.zeros(100_000, np.float32)})
    tables: Tables = {
        **SYNC,
        "model": {"initial": zeros.name},
        "aggregate": {"encoding": "topk", "density": 0.5, "weight": "uniform"},
        "stop": {"versions": 3},
    }
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        f.start_workers(3, "tiny:Halving")
        f.finish()
        assert np.array_equal(f.weights(2), np.repeat(np.array([0.5, 1], np.float32), 50_000))
        assert np.array_equal(f.weights(3), np.ones(100_000, np.float32))
        assert {row[0] for row in f.query("SELECT size FROM updates")} < set(range(150_000, 150_100))


def test_an_asynchronous_federation_finishes(tmp_path: Path) -> None:
    """First model from the first worker, federated evaluation, and every worker exits 0."""
    tables: Tables = {
        **ASYNC,
        "stop": {"versions": 6},
        "evaluate": {"every": 2},
        "optimizer": {"kind": "momentum"},
    }
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        with f.together():
            f.start_workers(3, delay=0.01)
        f.finish()
        history = f.history()
        assert [row["version"] for row in history] == list(range(7))
        assert [row["updates"] for row in history] == [0] + [3] * 6
        logs = [log_of(worker) for worker in f.workers.values()]
        assert all("finished" in log for log in logs)
        # An evaluation ends when the next one begins: on a slow machine maybe before anybody has answered.
        answered = {
            int(v) for log in logs for v in re.findall(r"accepted .* kind=evaluate version=(\d+)", log)
        }
        assert {row["version"] for row in history if row["federated"]} == answered
        assert 6 in answered <= {0, 2, 4, 6}
        assert f.query("SELECT count(*) FROM updates WHERE version IS NULL") == [(0,)]


def test_weights_of_a_round_are_examples(tmp_path: Path) -> None:
    """Three workers with 10, 20 and 30 examples: the mean of their updates, weighted so, and of their metrics."""
    tables: Tables = {
        **SYNC,
        "evaluate": {"every": 1},
        "stop": {"versions": 2},
        "model": {"initial": "tiny:App"},
    }
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        f.start_workers(3)
        f.finish()
        assert f.query("SELECT worker, examples, weight FROM updates WHERE version = 1 ORDER BY worker") == [
            ("w1", 10, 10.0),
            ("w2", 20, 20.0),
            ("w3", 30, 30.0),
        ]
        measured = f.history()[1]["federated"]
        assert measured["n"] == pytest.approx((100 + 400 + 900) / 60)
        assert measured["accuracy"] == pytest.approx(0.1)


def test_the_broker_evaluates_with_an_app_and_stops_at_a_target(tmp_path: Path) -> None:
    """`evaluate.app` measures beside the broker; at accuracy 0.8 it is enough, whatever `stop.versions` says."""
    tables: Tables = {
        **SYNC,
        "model": {"initial": "tiny:Zeros"},
        "aggregate": {"weight": "uniform"},
        "evaluate": {"every": 1, "fraction": 0.0, "app": "tiny:Zeros"},
        "stop": {"versions": 500, "metric": "accuracy", "target": 0.8},
    }
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        f.start_workers(3, "tiny:Zeros", delay=0.1)
        f.finish()
        history = f.history()
        by_version = {row["version"]: row["broker"]["accuracy"] for row in history if row["broker"]}
        # A busy machine may make another version while one is measured: then the newest is measured next.
        assert all(accuracy == 1 - 2.0**-version for version, accuracy in by_version.items())
        first = min(version for version, accuracy in by_version.items() if accuracy >= 0.8)
        assert f.query("SELECT value FROM facts WHERE name = 'finished'") == [
            (f"accuracy reached {by_version[first]:.6g} at version {first}",)
        ]
        f.cli("export", "--best", "broker.accuracy", "best.safetensors")
        best = max(by_version, key=by_version.__getitem__)
        assert load_file(tmp_path / "best.safetensors")["w"][0] == np.float32(1 - 2.0**-best)


def test_a_federation_stops_after_its_time(tmp_path: Path) -> None:
    """`stop.seconds`: finished, with a version that somebody can use."""
    with Federation(tmp_path, {**ASYNC, "stop": {"seconds": 4.0}}) as f:
        f.start_broker()
        with f.together():
            f.start_workers(2, delay=0.05)
        f.finish()
        assert f.query("SELECT value FROM facts WHERE name = 'finished'") == [("ran for 4 s",)]
        assert len(f.history()) > 1


def test_an_export_is_the_model_that_went_in(tmp_path: Path) -> None:
    """Names, shapes and dtypes of the first model; what is not float32 is as it was."""
    with Federation(tmp_path, {**SYNC, "stop": {"versions": 2}}) as f:
        f.start_broker()
        f.start_workers(3)
        f.finish()
        assert "wrote version 2" in f.cli("export", "last.safetensors")
        f.cli("export", "--version", "0", "first.safetensors")
        first, last = load_file(tmp_path / "first.safetensors"), load_file(tmp_path / "last.safetensors")
        assert {name: (array.dtype, array.shape) for name, array in last.items()} == {
            "layer.weight": (np.float32, (99, 10)),
            "layer.bias": (np.float32, (10,)),
            "steps": (np.int64, ()),
        }
        assert np.array_equal(first["layer.weight"].ravel(), np.linspace(-1, 1, 990, dtype=np.float32))
        assert last["steps"] == 7
        assert not np.array_equal(first["layer.bias"], last["layer.bias"])
        flat = f.weights(2)
        both = np.sort(np.concatenate([last["layer.weight"].ravel(), last["layer.bias"]]))
        assert np.array_equal(np.sort(flat), both)
        f.cli("export", "last.safetensors", code=2)  # is there already
        f.cli("export", "--version", "9", "none.safetensors", code=6)


def test_a_history_is_one_table_in_three_forms(tmp_path: Path) -> None:
    """Text, CSV and JSON hold the same versions and metrics."""
    with Federation(tmp_path, {**SYNC, "evaluate": {"every": 1}, "stop": {"versions": 3}}) as f:
        f.start_broker()
        f.start_workers(3)
        f.finish()
        as_json = json.loads(f.cli("history", "--json"))
        as_csv = list(csv.DictReader(io.StringIO(f.cli("history", "--csv"))))
        text = f.cli("history").splitlines()
        assert [row["version"] for row in as_json] == [0, 1, 2, 3]
        assert [int(row["version"]) for row in as_csv] == [0, 1, 2, 3]
        assert [float(row["federated.loss"]) for row in as_csv] == [
            row["federated"]["loss"] for row in as_json
        ]
        assert "federated.loss" in text[0]
        assert len(text) == 5


def test_an_operator_steers_from_the_command_line(tmp_path: Path) -> None:
    """Status live and from the journal; pause stops the versions, also over a restart; evict, admit, stop."""
    with Federation(tmp_path, ASYNC) as f:
        f.start_broker()
        f.start_workers(3, delay=0.02)
        f.wait_for_version(2)
        live = json.loads(f.cli("status", "--json"))
        assert live["state"] == "running"
        assert {worker["name"] for worker in live["workers"]} == {"w1", "w2", "w3"}
        assert "w2" in f.cli("status")

        f.cli("pause")

        def at_rest() -> dict[str, Any] | None:
            found = f.status()
            idle = all(worker["state"] == "idle" for worker in found["workers"])
            return found if idle and not found["buffer"]["frozen"] else None  # and nothing is being folded

        paused = wait_for("all is at rest", at_rest)
        f.stop_broker(signal.SIGTERM)
        stopped = json.loads(f.cli("status", "--json"))
        assert (stopped["state"], stopped["reason"]) == ("stopped", "paused")
        assert stopped["version"] == paused["version"]
        assert [stopped["buffer"][key] for key in ("number", "have", "of")] == [
            paused["buffer"][key] for key in ("number", "have", "of")
        ]
        f.start_broker()
        wait_for("workers are back", lambda: len(f.status()["workers"]) == 3)
        assert (f.status()["state"], f.status()["version"]) == ("paused", paused["version"])
        f.cli("resume")
        f.wait_for_version(paused["version"] + 2)

        f.cli("evict", "w3")
        assert f.workers["w3"].join(30)
        assert f.workers["w3"].code == 7
        again = f.start_worker("w3", number=3)
        assert again.join(30)
        assert again.code == 7
        assert "evicted" in log_of(again)
        f.cli("admit", "w3")
        f.start_worker("w3", number=3)
        wait_for(
            "w3 is back", lambda: "w3" in {w["name"] for w in f.status()["workers"] if w["state"] != "gone"}
        )
        f.cli("evict", "nobody", code=6)

        f.cli("stop", "--finish")
        f.finish()
        assert json.loads(f.cli("status", "--json"))["state"] == "finished"
        f.cli("pause", code=7)
