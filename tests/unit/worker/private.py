"""What the tests of private training share: tasks with a folder, keys that repeat, and the sums done the plain way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmq.worker.client import TaskContext, Weights
from fedmq.worker.privacy import LocalPrivacy
from fedmq.worker.privacy.gradients import Gradients

Floats = NDArray[np.float64]


def plan(**changes: Any) -> LocalPrivacy:
    """Ten steps, one a task, every record with probability one half."""
    fields: dict[str, Any] = {
        "noise_multiplier": 1.0,
        "delta": 1e-5,
        "max_grad_norm": 1.0,
        "sampling_rate": 0.5,
        "divisor": 4.0,
        "max_steps": 10,
    }
    return LocalPrivacy(**{**fields, **changes})


def task(folder: Path | None, **changes: Any) -> TaskContext:
    """A fit with a folder of its own."""
    return TaskContext(**{"kind": "fit", "state": folder, **changes})


class Keys:
    """Stands for the operating system: keys that follow from a seed, each one once."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.drawn: list[bytes] = []

    def __call__(self, n: int) -> bytes:
        self.drawn.append(self._rng.bytes(n))
        return self.drawn[-1]


def all_rows(model: Gradients, weights: Weights) -> Floats:
    """Every record's gradient, float64[records, n]."""
    flat = model.trained.flatten(weights)
    parts = list(model.rows(flat, np.arange(model.records)))
    return np.concatenate(parts).astype(np.float64) if parts else np.empty((0, flat.size))


def clipped_by_hand(rows: Floats, max_norm: float) -> Iterator[Floats]:
    """One record after the other."""
    for row in rows:
        norm = float(np.sqrt(np.square(row).sum()))
        yield row if norm <= max_norm else row * (max_norm / norm)
