"""Client apps so small that a test of the machinery is not a test of training."""

import os
import time
from typing import Any

import numpy as np

from fedmq.worker.client import Evaluation, Fit, TaskContext

N = 1000
Weights = dict[str, np.ndarray[Any, Any]]


class App:
    """A step that the task's seed alone decides, and a loss that the weights alone decide.

    Its node may say ``examples``, ``delay`` (seconds of a fit) and ``n`` (elements of the first model).
    """

    def __init__(self, node: dict[str, str]) -> None:
        self._examples = int(node.get("examples", 10 * int(node.get("number", 1))))
        self._delay = float(node.get("delay", 0))
        self._n = int(node.get("n", N))

    def initial(self) -> Weights:
        return {
            "layer.weight": np.linspace(-1, 1, self._n - 10, dtype=np.float32).reshape(-1, 10),
            "layer.bias": np.zeros(10, np.float32),
            "steps": np.array(7, np.int64),
        }

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        time.sleep(self._delay)
        rng = np.random.default_rng(task.seed)
        for name in sorted(weights):
            if weights[name].dtype == np.float32:
                weights[name] += rng.normal(0, 0.01, weights[name].shape).astype(np.float32)
        return Fit(weights, self._examples, {"seen": float(task.version)})

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        size = float(np.square(weights["layer.weight"], dtype=np.float64).mean())
        return Evaluation(self._examples, {"loss": size, "accuracy": task.version / 10, "n": self._examples})


class Halving:
    """Half of the way to one: version k of a federation from zeros is 1 − 2⁻ᵏ everywhere, exactly."""

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        return Fit({"w": weights["w"] + (1 - weights["w"]) / 2}, 1)

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        return Evaluation(1, {"loss": 1 - float(weights["w"].mean()), "accuracy": float(weights["w"].mean())})


class Still:
    """A fit that takes its node's ``delay`` seconds and changes nothing."""

    def __init__(self, node: dict[str, str]) -> None:
        self._delay = float(node.get("delay", 0))

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        time.sleep(self._delay)
        return Fit(weights, 1)

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        return Evaluation(1, {"loss": 0.0})


class Zeros(Halving):
    """The same, and it makes the first model."""

    def initial(self) -> Weights:
        return {"w": np.zeros(N, np.float32)}


class Broken:
    """A fit that raises as often as its node's ``failures`` says, and then works."""

    def __init__(self, node: dict[str, str]) -> None:
        self._left = int(node.get("failures", 1))

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        if self._left:
            self._left -= 1
            raise RuntimeError("the patient's name is in here")
        return Fit(weights, 1)

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        return Evaluation(1, {"loss": 0.0})


class Wrong:
    """Results that break the contract, in the way that its node's ``way`` says."""

    def __init__(self, node: dict[str, str]) -> None:
        self._way = node["way"]

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        match self._way:
            case "nan":
                weights["w"][3] = np.nan
            case "shape":
                weights["w"] = weights["w"][:-1]
            case "name":
                weights["v"] = weights.pop("w")
            case "huge":
                weights["w"] += 1e30
            case "negative":
                return Fit(weights, -1)
            case "many":
                return Fit(weights, 10**12)
            case "exit":
                raise SystemExit("not like this")
        return Fit(weights, 1)

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        return Evaluation(1, {"loss": 0.0})


class Large:
    """A step of a model that is worth a transfer, with little memory: it adds its number in place."""

    def __init__(self, node: dict[str, str]) -> None:
        self._number = float(node.get("number", 1))

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        for array in weights.values():
            array += self._number
        return Fit(weights, 1)

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        return Evaluation(1, {"loss": 0.0})


if os.environ.get("TINY_BREAKS"):
    raise OSError("no data on this machine")
