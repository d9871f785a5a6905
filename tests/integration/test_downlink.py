"""A federation whose models travel as halves: as good a model, for half of the bytes down."""

import contextlib
import statistics
from pathlib import Path
from typing import Any

import pytest

from fedmq import Broker, Worker
from fedmq.cli.demo import data, network
from fedmq.cli.demo.app import app
from fedmq.fedcore import model_file, state_dict
from fedmq.fedcore.layout import Layout

WORKERS = 3
ROUNDS = 6
HIDDEN = 32
MARGIN = 0.01
"""How much accuracy halves may cost on 360 test images: what three or four of them say."""


def accuracies(folder: Path, downlink: str) -> tuple[list[float], int]:
    """Of the last three versions of a federation on digits, and the bytes that its broker sent."""
    folder.mkdir()
    dataset = data.load("digits")
    first = network.initial_weights(dataset.train.x.shape[1], classes=dataset.classes, hidden=HIDDEN, seed=0)
    model_file.write_chunks(folder / "first.safetensors", model_file.from_arrays(first).chunks)
    settings: dict[str, Any] = {
        "federation": {"bind": "tcp://127.0.0.1:*", "state": str(folder / "state")},
        "model": {"initial": str(folder / "first.safetensors"), "downlink": downlink},
        "mode": {"kind": "sync", "min_available": WORKERS},
        "task": {"epochs": 5, "batch": 32, "lr": 0.1, "versions": ROUNDS},
        "evaluate": {"every": 0},
        "storage": {"durability": "os", "keep": 3},
        "stop": {"versions": ROUNDS},
    }
    with Broker(settings) as broker, contextlib.ExitStack() as stack:
        for i in range(WORKERS):
            node = {"data": "digits", "seed": "0", "partition": "iid", "shard": f"{i + 1}/{WORKERS}"}
            worker = Worker(app(node), broker.endpoint, name=f"w{i}", node=node)
            worker.start()
            stack.callback(worker.stop)
        assert broker.wait(30.0) == 0
    found = []
    for path in sorted((folder / "state" / "versions").glob("*.safetensors")):
        file = path.read_bytes()
        weights = state_dict.unpack(Layout.from_file_prefix(file), file)
        found.append(network.measure(weights, dataset.test).accuracy)
    return found, broker.status()["bytes_down"]


def test_halves_learn_as_well_for_half_of_the_bytes(tmp_path: Path) -> None:
    """Medians of the last versions; bytes by the broker's own count, which is of whole messages."""
    whole, whole_bytes = accuracies(tmp_path / "f32", "f32")
    halves, half_bytes = accuracies(tmp_path / "f16", "f16")
    assert statistics.median(whole) > 0.85
    assert statistics.median(halves) == pytest.approx(statistics.median(whole), abs=MARGIN)
    assert 0.5 <= half_bytes / whole_bytes < 0.6
