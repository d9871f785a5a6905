"""An edge program with a worker inside: a line through this machine's own readings, fitted by everybody together.

    fedmq broker federation.toml                    # model.initial = "first-worker"
    python edge_numpy.py tcp://127.0.0.1:5560       # on each machine, beside whatever else it does

or as a daemon: fedmq worker --connect tcp://127.0.0.1:5560 --app edge_numpy:Line --node machine=3
"""

import sys

import numpy as np

from fedmq import Evaluation, Fit, TaskContext, Worker

Weights = dict[str, np.ndarray]


def readings(machine: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """What a sensor would give: temperature, and a pressure that follows it with some noise."""
    rng = np.random.default_rng(machine)
    temperature = rng.uniform(-1, 1, count)
    return temperature, 3.0 * temperature + 1.0 + rng.normal(0, 0.1, count)


class Line:
    """The client app: numpy is all that it needs."""

    def __init__(self, node: dict[str, str]) -> None:
        self.x, self.y = readings(int(node.get("machine", 0)))

    def initial(self) -> Weights:
        return {"slope": np.zeros((), np.float32), "offset": np.zeros((), np.float32)}

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        for _ in range(20):
            error = weights["slope"] * self.x + weights["offset"] - self.y
            weights["slope"] -= 0.3 * (error * self.x).mean()
            weights["offset"] -= 0.3 * error.mean()
        return Fit(weights, examples=len(self.x))

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        error = weights["slope"] * self.x + weights["offset"] - self.y
        return Evaluation(len(self.x), {"loss": float((error**2).mean())})


if __name__ == "__main__":
    broker, machine = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "0"
    app = Line({"machine": machine})
    with Worker(app, connect=broker, state=f"edge-{machine}", name=f"edge-{machine}") as worker:
        worker.wait()  # a real program would go on with its own work here
