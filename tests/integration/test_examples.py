"""The examples, run as their own docstrings say."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.broker.store.versions import VersionStore
from fedmq.fedcore.layout import Layout
from fedmq.fedcore.state_dict import unpack

from .federation import APPS, Federation, Tables

EXAMPLES = Path(__file__).parents[2] / "examples"
TABLES: Tables = {
    "mode": {"kind": "sync", "min_available": 2},
    "stop": {"versions": 8},
    "evaluate": {"every": 8},
}


@pytest.fixture
def path() -> dict[str, str]:
    """The examples' folder, where a user would stand."""
    return {"PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(APPS), os.environ.get("PYTHONPATH", "")])}


def tensors(f: Federation, version: int) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a kept version."""
    file = VersionStore(f.state / "versions", fsync=False).file(version)
    return unpack(Layout.from_file_prefix(file, len(file)), file)


def test_the_readmes_worker_joins_a_federation(tmp_path: Path) -> None:
    """The code that a newcomer copies runs as it stands, but for the address."""
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    tables: Tables = {"model": {"initial": "first-worker"}, "mode": {"kind": "sync", "min_available": 1}}
    with Federation(tmp_path, {**tables, "stop": {"versions": 3}}) as f:
        f.start_broker()
        assert "tcp://127.0.0.1:5560" in code
        program = subprocess.Popen(
            [sys.executable, "-c", code.replace("tcp://127.0.0.1:5560", f.endpoint)], cwd=tmp_path
        )
        try:
            f.finish()
            assert program.wait(20) == 0
        finally:
            program.kill()
            program.wait()
        assert np.abs(tensors(f, 3)["mean"] - 0.5).max() < 0.1


def test_the_edge_program_learns_the_line(tmp_path: Path, path: dict[str, str]) -> None:
    """Two machines, each with readings of its own, end with the slope and the offset that both follow."""
    with Federation(tmp_path, TABLES, path) as f:
        f.start_broker()
        command = [sys.executable, str(EXAMPLES / "edge_numpy.py"), f.endpoint]
        programs = [
            subprocess.Popen([*command, machine], cwd=tmp_path, env={**os.environ, **path})
            for machine in ("1", "2")
        ]
        try:
            f.finish()
            assert [program.wait(20) for program in programs] == [0, 0]
        finally:
            for program in programs:
                program.kill()
                program.wait()
        weights = tensors(f, 8)
        assert abs(float(weights["slope"]) - 3) < 0.05
        assert abs(float(weights["offset"]) - 1) < 0.05


def test_the_torch_worker_learns(tmp_path: Path, path: dict[str, str]) -> None:
    """The adapter's module is trained, and the count of batches of its batch norm is not averaged."""
    with Federation(tmp_path, TABLES, path) as f:
        f.start_broker()
        for name in ("w1", "w2"):
            f.start_worker(name, "torch_worker:app")
        f.finish(110)
        assert f.history()[-1]["federated"]["accuracy"] > 0.9
        assert tensors(f, 8)["1.num_batches_tracked"] == tensors(f, 0)["1.num_batches_tracked"]


def test_the_flower_client_runs_unchanged(tmp_path: Path, path: dict[str, str]) -> None:
    """`context.node_config` comes from --node, `context.run_config` from the [task] table."""
    with Federation(tmp_path, {**TABLES, "task": {"lr": 1.0}}, path) as f:
        f.start_broker()
        for partition in (1, 2):
            f.start_worker(f"w{partition}", "flower_client:client_fn", "--node", f"partition-id={partition}")
        f.finish(110)
        measured = f.history()[-1]["federated"]
        assert measured["accuracy"] > 0.9
        assert measured["loss"] < 0.3


def test_the_private_edge_program_learns_under_its_noise(tmp_path: Path, path: dict[str, str]) -> None:
    """Two machines with noise of their own; each has spent its tasks' steps, and they cost what the example says."""
    with Federation(tmp_path, {**TABLES, "model": {"initial": "first-worker"}}, path) as f:
        f.start_broker()
        for machine in ("1", "2"):
            f.start_worker(f"w{machine}", "private_edge:app", "--node", f"machine={machine}")
        f.finish(110)
        assert f.history()[-1]["federated"]["accuracy"] > 0.9
        spent = json.loads((tmp_path / "w1" / "app" / "privacy.json").read_text())["spent"]
    (steps,) = {each["steps"] for each in spent}
    assert steps in (80, 90), "eight versions of ten steps, and perhaps a ninth task that came to nothing"
    text = (EXAMPLES / "private_edge.py").read_text(encoding="utf-8")
    (claim,) = re.findall(r"^# ε < ([0-9.]+) for every reading", text, flags=re.MULTILINE)
    plan = runpy.run_path(str(EXAMPLES / "private_edge.py"))["PRIVACY"]
    assert float(claim) - 0.01 < plan.planned_epsilon() < float(claim)
