"""Who takes part in a race: workers with a share of the images, some of which may be hostile.

An honest worker trains the demo's network (784–32–10 on Fashion-MNIST) on its own images. Those that are not do what
the literature tries first:

* ``label-flip``: trains as the others do, with every label y turned into 9 − y: data that were poisoned;
* ``sign-flip``: trains honestly and sends the step backwards, as far as `BACKWARDS` honest steps together.
"""

from typing import Any, Final, Literal, cast

import msgspec
import numpy as np

from fedmq.fedcore.apps import ClientApp, Evaluation, Fit, TaskContext, Weights

from ...demo import data, network
from ...demo.app import cosine

__all__ = ["ATTACKS", "BACKWARDS", "Attack", "Participants", "Training"]

Attack = Literal["none", "label-flip", "sign-flip"]
ATTACKS: Final[tuple[Attack, ...]] = ("none", "label-flip", "sign-flip")

BACKWARDS: Final = 4.0
"""A step backwards of the same length is lost among eight honest ones; attackers are not that polite."""


class Training(msgspec.Struct, frozen=True):
    """What one fit is: passes over the worker's images with a rate that falls along a cosine.

    Parameters
    ----------
    versions : int
        At which the rate is zero.
    lr : float
        At version 0.
    batch, epochs : int
    """

    versions: int
    lr: float
    batch: int
    epochs: int = 1


class Participants:
    """The workers of one race: `fedmq.cli.simulate.training.Work`.

    Parameters
    ----------
    dataset : Dataset
        Its test images measure every version.
    training : Training
    workers : int
    partition : str
        As `data.partition` takes it.
    hidden : int
        The network's width.
    seed : int
        Deals the images and makes the first weights.
    attack : {"none", "label-flip", "sign-flip"}
    attackers : int
        So many of the workers attack, the first ones.
    """

    def __init__(
        self,
        dataset: data.Dataset,
        training: Training,
        *,
        workers: int,
        partition: str,
        hidden: int,
        seed: int,
        attack: Attack = "none",
        attackers: int = 0,
    ) -> None:
        self.accuracies: list[float] = []
        """Of version 1, 2 …"""
        self._dataset = dataset
        self._hidden = hidden
        self._seed = seed
        self._training = training
        dealt = data.partition(dataset.train.y, workers=workers, scheme=partition, seed=seed)
        self._workers = [
            _Worker(dataset.train.take(own), training, attack if index < attackers else "none")
            for index, own in enumerate(dealt)
        ]

    def task(self) -> dict[str, Any]:
        """Workers know what to do."""
        return {}

    def initial(self) -> Weights:
        """Those of a linear layer in PyTorch."""
        features = self._dataset.train.x.shape[1]
        first = network.initial_weights(
            features, classes=self._dataset.classes, hidden=self._hidden, seed=self._seed
        )
        return cast(Weights, first)

    def app(self, device: int) -> ClientApp:
        """The worker of this number."""
        return self._workers[device]

    def accuracy(self, weights: Weights) -> float:
        """On the test images."""
        return network.measure(cast(network.Weights, weights), self._dataset.test).accuracy

    def made(self, version: int, weights: Weights) -> None:
        """Measure every version."""
        self.accuracies.append(self.accuracy(weights))


class _Worker:
    """A `ClientApp` that trains in memory."""

    def __init__(self, shard: data.Shard, training: Training, attack: Attack) -> None:
        if attack == "label-flip":
            shard = data.Shard(shard.x, 9 - shard.y)
        self._shard = shard
        self._training = training
        self._factor = np.float32(-BACKWARDS if attack == "sign-flip" else 1)

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        training = self._training
        trained = {name: weights[name].copy() for name in weights}
        network.train(
            cast(network.Weights, trained),
            self._shard,
            epochs=training.epochs,
            batch=training.batch,
            lr=cosine(training.lr, task.version, training.versions),
            rng=np.random.default_rng(task.seed),
        )
        if self._factor != 1:
            trained = {
                name: weights[name] + self._factor * (trained[name] - weights[name]) for name in weights
            }
        return Fit(trained, len(self._shard))

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        measured = network.measure(cast(network.Weights, weights), self._shard)
        return Evaluation(len(self._shard), {"loss": measured.loss, "accuracy": measured.accuracy})
