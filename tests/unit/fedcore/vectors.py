"""A buffer of updates in memory, for tests of the combination rules."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmq.fedcore import config
from fedmq.fedcore.strategy import robust
from fedmq.fedcore.strategy.combination import Combination, Coordinates, Mixture

F64 = NDArray[np.float64]


class Vectors:
    """Updates in memory, all fresh unless `weights` says otherwise, and what a combination makes of them."""

    def __init__(self, u: Any, weights: Any = None, previous: Any = None) -> None:
        self.delta = np.array(u, np.float32)
        self.n = self.delta.shape[1]
        self.weights = tuple(weights or [1.0] * len(self.delta))
        self.masses = (1,) * len(self.delta)
        self.u = self.delta.astype(np.float64) * np.array(self.weights)[:, None]
        self.norms = tuple(np.linalg.norm(self.u, axis=1).tolist())
        self.previous = np.zeros(self.n) if previous is None else np.array(previous, float)

    def __len__(self) -> int:
        return len(self.delta)

    def sq_distances(self) -> F64:
        difference = self.u[:, None] - self.u
        return np.asarray((difference**2).sum(axis=2))

    def sq_distances_to(self, mixture: Mixture) -> F64:
        return np.asarray(((self.u - self.combined(mixture)) ** 2).sum(axis=1))

    def combined(self, combination: Combination) -> F64:
        if isinstance(combination, Coordinates):
            rows = combination.rows or range(len(self))
            return np.asarray(combination.function(self.u[list(rows)].astype(np.float32)), np.float64)
        norms = np.linalg.norm(self.delta.astype(float), axis=1)
        bound = combination.max_norm or math.inf
        factor = np.minimum(1, bound / np.maximum(norms, 1e-300)) * np.array(combination.weights)
        total = (factor[:, None] * self.delta).sum(axis=0) + combination.previous * self.previous
        return np.asarray(total / combination.denominator)

    def by(self, rule: config.Rule) -> F64:
        return self.combined(robust.make(rule).prepare(self))


def column(*values: float) -> list[list[float]]:
    return [[value] for value in values]
