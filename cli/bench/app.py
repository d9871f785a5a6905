"""The client app of `fedmq bench federation`: training that does nothing, so that all else is what is measured.

How large the model is stands in the federation's ``[task]`` table: ``n`` elements of float32.
"""

import numpy as np

from fedmq.fedcore.errors import ConfigError
from fedmq.worker.client import Evaluation, Fit, TaskContext, Weights

__all__ = ["NoTraining", "app"]


class NoTraining:
    """Gives back what it was given, in the smallest way changed.

    Were it the same, every version would have the digest of the one before, and a worker that holds a model
    already does not fetch it again.
    """

    def initial(self, task: TaskContext) -> Weights:
        """Zeros."""
        n = task.config.get("n")
        if not isinstance(n, int) or n < 1:
            raise ConfigError(f"the benchmark's app needs a positive integer in [task] n, got {n!r}")
        return {"weights": np.zeros(n, np.float32)}

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        """The weights, one of them higher by one, from one example."""
        weights["weights"][0] += 1
        return Fit(weights, 1)

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        """Nothing to see; the benchmark asks for no evaluation."""
        return Evaluation(1, {"loss": 0.0})


app = NoTraining()
