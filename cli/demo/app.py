"""The demo's client app: what a worker of `fedmq demo` runs.

    fedmq worker --connect … --app fedmq.cli.demo.app:app \
        --node data=digits --node shard=3/5 --node partition=iid --node seed=0

It is an ordinary client app. What it knows of the demo comes from its ``--node`` settings:

=============  ==========================================================================
``data``       ``digits`` (default) or ``fashion-mnist``
``data_dir``   where fashion-mnist's files are, when they are not in Debian's place
``shard``      which part of the images is this worker's, ``3/5`` for the third of five
``partition``  ``iid`` (default) or ``dirichlet:ALPHA``
``seed``       deals the shards and makes the first weights; 0 by default
``secret``     what this worker's private coins are thrown with, see below
=============  ==========================================================================

and from the federation's ``[task]`` table: ``versions``, ``epochs``, ``batch``, ``lr`` (which falls with the
version along a cosine), or for the private arm ``private = true``, ``max_grad_norm`` and ``sampling_rate``.

In the private arm a fit is *one* sum of clipped per-example gradients over a Poisson sample of the shard, with the
sign of a step: trained − base = −Σ clip(g). It reports neither metrics nor how many examples there were: both are
private. Who is in the sample is decided by coins that nobody else may predict, and that fall the same way when a
task is repeated: two draws for one version would be two releases. So the coins come from a secret and the version.
The demo's secret follows from its public seed, so that a run can be repeated; where privacy is meant, give every
worker a long random one and keep it.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Final, Protocol, cast

import numpy as np

from fedmq.fedcore.errors import ConfigError
from fedmq.worker.client import Evaluation, Fit, TaskContext

from . import data, network
from .network import Measured, Weights
from .settings import HIDDEN

__all__ = ["DemoApp", "Network", "app", "cosine"]

NODE_KEYS: Final = frozenset({"data", "data_dir", "shard", "partition", "seed", "secret"})


class Network(Protocol):
    """What the numpy and the torch twin of the demo's network have in common."""

    def train(
        self,
        weights: Weights,
        shard: data.Shard,
        *,
        epochs: int,
        batch: int,
        lr: float,
        rng: np.random.Generator,
    ) -> float:
        """Train in place; return the last epoch's mean loss."""
        ...

    def clipped_gradient_sum(self, weights: Weights, shard: data.Shard, *, max_norm: float) -> Weights:
        """Sum per-example gradients, each clipped."""
        ...

    def measure(self, weights: Weights, shard: data.Shard) -> Measured:
        """Loss and accuracy."""
        ...


def app(node: dict[str, str]) -> "DemoApp":
    """The client app of one worker, on numpy."""
    return DemoApp(node, cast(Network, network))


class DemoApp:
    """A worker's share of the images, and a network to train on them.

    Parameters
    ----------
    node : mapping of str to str
        The worker's ``--node`` settings, as in the module's table.
    twin : Network
        What trains: `network` or `torch_network`.

    Raises
    ------
    ConfigError
        When a setting is unknown or out of range, or the images are not on this machine.
    """

    def __init__(self, node: Mapping[str, str], twin: Network) -> None:
        if unknown := sorted(node.keys() - NODE_KEYS):
            raise ConfigError(
                f"the demo's app does not know --node {unknown[0]}; it knows {', '.join(sorted(NODE_KEYS))}"
            )
        self._network = twin
        self._seed = _whole("seed", node.get("seed", "0"), 0)
        index, shards = _shard(node.get("shard", "1/1"))
        dataset = data.load(node.get("data", "digits"), data_dir=node.get("data_dir"))
        scheme = node.get("partition", "iid")
        dealt = data.partition(dataset.train.y, workers=shards, scheme=scheme, seed=self._seed)
        # Test images are dealt evenly: the mean over the workers, weighted by examples, is the whole test set's.
        measured = data.partition(dataset.test.y, workers=shards, seed=self._seed)
        self.train_shard = dataset.train.take(dealt[index])
        self.test_shard = dataset.test.take(measured[index])
        self._features, self._classes = dataset.train.x.shape[1], dataset.classes
        self._hidden = HIDDEN[dataset.name]
        self._secret = node.get("secret", f"demo {self._seed} {index}").encode()

    def initial(self) -> Weights:
        """The same first weights from every worker."""
        return network.initial_weights(
            self._features, classes=self._classes, hidden=self._hidden, seed=self._seed
        )

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        """Train on the shard, or sum clipped gradients where the task is private."""
        return (
            self._private_fit(weights, task) if task.config.get("private") else self._plain_fit(weights, task)
        )

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        """Loss and accuracy on this worker's share of the test images."""
        measured = self._network.measure(weights, self.test_shard)
        return Evaluation(len(self.test_shard), {"loss": measured.loss, "accuracy": measured.accuracy})

    def _plain_fit(self, weights: Weights, task: TaskContext) -> Fit:
        config = task.config
        rng = np.random.default_rng(task.seed)
        lr = cosine(_number(config, "lr"), task.version, int(_number(config, "versions")))
        loss = 0.0
        for _ in range(int(_number(config, "epochs"))):
            task.check_cancelled()
            loss = self._network.train(
                weights, self.train_shard, epochs=1, batch=int(_number(config, "batch")), lr=lr, rng=rng
            )
        return Fit(weights, len(self.train_shard), {"loss": loss})

    def _private_fit(self, weights: Weights, task: TaskContext) -> Fit:
        coins = _coins(self._secret, task.version).random(len(self.train_shard))
        sample = self.train_shard.take(np.flatnonzero(coins < _number(task.config, "sampling_rate")))
        max_norm = _number(task.config, "max_grad_norm")
        gradient = self._network.clipped_gradient_sum(weights, sample, max_norm=max_norm)
        # In float64, so that subtracting the base again gives the sum back and not its rounding.
        trained = {name: weights[name].astype(np.float64) - gradient[name] for name in weights}
        return Fit(cast(dict[str, Any], trained), examples=1)


def cosine(lr: float, version: int, versions: int) -> float:
    """A rate that falls from `lr` at version 0 to almost nothing at the last: η ½ (1 + cos(π v / V))."""
    return lr * 0.5 * (1 + math.cos(math.pi * min(version, versions - 1) / versions))


def _coins(secret: bytes, version: int) -> np.random.Generator:
    seed = hashlib.sha256(secret + b" coins of version " + str(version).encode()).digest()
    return np.random.default_rng(list(seed))


def _number(config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"the demo's app needs a positive number in [task] {key}, got {value!r}")
    return float(value)


def _whole(key: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"--node {key} must be a whole number of {least} or more, got {text!r}")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    """``3/5`` is (2, 5): the index from 0, and of how many."""
    index, slash, shards = text.partition("/")
    if not (slash and index.isdecimal() and shards.isdecimal() and 1 <= int(index) <= int(shards)):
        raise ConfigError(f"--node shard must be such as 3/5, the third of five, got {text!r}")
    return int(index) - 1, int(shards)
