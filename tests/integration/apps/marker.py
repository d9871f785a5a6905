"""A client app whose every fit leaves a mark of its own, and a worker program that takes one encoding.

The model has one element for every fit that there can be. The k-th fit of worker w adds 1 to element
(w − 1) · MARKS + k and to no other; what it is about to add it first appends to a file, and it says it in
the update's metrics. So a model whose elements are sums of updates tells which of them are in it, and how often.

    python marker.py tcp://127.0.0.1:5560 STATE NUMBER      # a worker that encodes f32, whatever is asked for
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from fedmq.worker.client import Evaluation, Fit, TaskContext

MARKS = 5000
WORKERS = 4
N = MARKS * WORKERS


class App:
    """Node settings: ``number`` (1 …), ``marks`` (the file), ``delay`` (seconds)."""

    def __init__(self, node: dict[str, str]) -> None:
        self._first = (int(node["number"]) - 1) * MARKS
        self._path = Path(node["marks"])
        self._delay = float(node.get("delay", 0))
        self._rng = np.random.default_rng()

    def initial(self) -> dict[str, np.ndarray[Any, Any]]:
        return {"marks": np.zeros(N, np.float32)}

    def fit(self, weights: dict[str, np.ndarray[Any, Any]], task: TaskContext) -> Fit:
        mark = self._first + self._next()
        time.sleep(self._rng.uniform(0.5, 1.5) * self._delay)
        weights["marks"][mark] += 1
        return Fit(weights, 1, {"mark": mark})

    def evaluate(self, weights: dict[str, np.ndarray[Any, Any]], task: TaskContext) -> Evaluation:
        return Evaluation(1, {"loss": 0.0})

    def _next(self) -> int:
        """A number that this worker has never used, also before it was killed: the lines of its file."""
        with self._path.open("ab") as file:
            used = os.fstat(file.fileno()).st_size
            file.write(b".")
        assert used < MARKS
        return used


def end_with_stdin() -> None:
    """Leave when whoever holds the other end of stdin is gone."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    from fedmq.cli import logs
    from fedmq.worker import daemon

    threading.Thread(target=end_with_stdin, daemon=True).start()
    connect, state, number = sys.argv[1:]
    logs.configure(style="json")
    node = {"number": number, "marks": f"marks-{number}", "delay": "0.05"}
    sys.exit(daemon.run(connect, App(node), state, name=f"w{number}", encodings=("f32",)))


if __name__ == "__main__":
    main()
