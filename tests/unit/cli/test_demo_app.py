"""The demo's client app: its settings, its two kinds of fit, and its secret coins."""

import itertools
from typing import Any

import numpy as np
import pytest

from fedmq.cli.demo import app as demo_app
from fedmq.cli.demo import data, torch_network
from fedmq.cli.demo.settings import HIDDEN
from fedmq.fedcore.errors import ConfigError, FedmqError
from fedmq.worker.client import TaskContext, check_evaluation, check_fit, load_app

CONFIG = {"versions": 10, "epochs": 1, "batch": 16, "lr": 0.2}
PRIVATE = {"private": True, "sampling_rate": 0.5, "max_grad_norm": 0.25}
FIT = TaskContext(kind="fit", version=3, seed=9, config=CONFIG)
TWINS = pytest.mark.parametrize("make", [demo_app.app, torch_network.app], ids=["numpy", "torch"])


def private(version: int = 3, seed: int = 9) -> TaskContext:
    """A private fit task."""
    return TaskContext(kind="fit", version=version, seed=seed, config=PRIVATE)


def delta(app: demo_app.DemoApp, task: TaskContext) -> dict[str, Any]:
    """What a fit changes, as the worker takes it."""
    base = app.initial()
    fit = check_fit(app.fit({name: array.copy() for name, array in base.items()}, task), base)
    return {name: fit.weights[name] - base[name] for name in base}


@TWINS
def test_it_is_a_client_app(make: Any) -> None:
    """Fit, evaluation and initial weights pass a worker's checks."""
    app = make({"shard": "2/5"})
    weights = app.initial()
    fit = check_fit(app.fit({name: array.copy() for name, array in weights.items()}, FIT), weights)
    assert fit.examples == len(app.train_shard)
    before = check_evaluation(app.evaluate(weights, FIT)).metrics
    after = check_evaluation(
        app.evaluate({n: a.astype(np.float32) for n, a in fit.weights.items()}, FIT)
    ).metrics
    assert after["loss"] < before["loss"]
    assert set(after) == {"loss", "accuracy"}


def test_it_loads_by_the_name_that_the_demo_uses() -> None:
    """`fedmq worker --app fedmq.cli.demo.app:app --node shard=3/5`."""
    loaded: Any = load_app("fedmq.cli.demo.app:app", node={"shard": "3/5", "seed": "4"})
    assert len(loaded.train_shard) in (287, 288)


def test_workers_share_the_images_and_the_first_weights() -> None:
    """Shards are disjoint and complete, of training and of test images; version 0 is the same everywhere."""
    apps = [demo_app.app({"shard": f"{i}/3", "partition": "dirichlet:0.5", "seed": "1"}) for i in (1, 2, 3)]
    dataset = data.load("digits")
    for shards, whole in (
        ([app.train_shard for app in apps], dataset.train),
        ([app.test_shard for app in apps], dataset.test),
    ):
        assert sum(map(len, shards)) == len(whole)
        dealt = np.concatenate([shard.x for shard in shards])
        assert sorted(map(bytes, dealt)) == sorted(map(bytes, whole.x))
    first = apps[0].initial()
    assert first["fc1.weight"].shape == (HIDDEN["digits"], 64)
    assert all(np.array_equal(first[name], app.initial()[name]) for app in apps for name in first)


def test_a_fit_is_a_function_of_weights_and_task() -> None:
    """A task that is handed out again, after a crash, gives the same update."""
    first, again = (delta(demo_app.app({"shard": "1/5"}), FIT) for _ in range(2))
    other = delta(demo_app.app({"shard": "1/5"}), TaskContext(kind="fit", version=3, seed=10, config=CONFIG))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_the_rate_falls_with_the_version() -> None:
    """Along a cosine that never reaches zero."""
    rates = [demo_app.cosine(0.4, version, 10) for version in range(12)]
    assert rates[0] == 0.4
    assert all(a >= b > 0 for a, b in itertools.pairwise(rates))
    assert rates[-1] == rates[9]


@TWINS
def test_a_private_fit_is_one_clipped_gradient_sum(make: Any) -> None:
    """Δ = −Σ clip(g): never longer than the sample times the clip norm; no metrics, no count."""
    app = make({"shard": "1/5"})
    base = app.initial()
    fit = check_fit(app.fit({name: array.copy() for name, array in base.items()}, private()), base)
    assert (fit.examples, fit.metrics) == (1, {})
    norm = np.sqrt(sum(np.square(fit.weights[name] - base[name]).sum() for name in base))
    assert 0 < norm <= 0.25 * len(app.train_shard)
    stepped = {
        name: (base[name] + 0.01 * (fit.weights[name] - base[name])).astype(np.float32) for name in base
    }
    twin = demo_app.app({"shard": "1/5"})
    before, after = twin.evaluate(base, private()), twin.evaluate(stepped, private())
    assert after.metrics["loss"] < before.metrics["loss"]


def test_the_sum_comes_back_unrounded() -> None:
    """Subtracting the base again gives the sum's own digits, however large the base."""
    app = demo_app.app({"shard": "1/5"})
    shifted = {name: array + np.float32(1000) for name, array in app.initial().items()}
    fit = app.fit({name: array.copy() for name, array in shifted.items()}, private())
    sums = fit.weights["fc2.bias"] - shifted["fc2.bias"]
    assert sums.dtype == np.float64
    assert np.abs(sums - sums.astype(np.float32)).max() < 1e-9


def test_coins_come_from_the_secret_and_the_version_alone() -> None:
    """The broker knows seed and version of a task and must not know who is sampled."""
    app = demo_app.app({"shard": "1/5", "secret": "a"})
    first = delta(app, private())
    assert all(np.array_equal(first[name], part) for name, part in delta(app, private(seed=10)).items())
    others = [delta(app, private(version=4)), delta(demo_app.app({"shard": "1/5", "secret": "b"}), private())]
    for other in others:
        assert not np.array_equal(first["fc1.weight"], other["fc1.weight"])


def test_workers_throw_coins_of_their_own() -> None:
    """Two shards under one public seed are not sampled alike."""
    samples = []
    for index in (1, 2):
        app = demo_app.app({"shard": f"{index}/2"})
        samples.append(demo_app._coins(app._secret, 1).random(50))
    assert not np.array_equal(*samples)


def test_a_cancelled_fit_is_left() -> None:
    """Between two epochs."""
    app = demo_app.app({"shard": "1/5"})
    task = TaskContext(kind="fit", config=CONFIG, is_cancelled=lambda: True)
    with pytest.raises(FedmqError, match="no longer wanted"):
        app.fit(app.initial(), task)


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"shard": "0/5"}, "third of five"),
        ({"shard": "6/5"}, "third of five"),
        ({"shard": "3"}, "third of five"),
        ({"shard": "a/b"}, "third of five"),
        ({"seed": "-1"}, "--node seed must be a whole number"),
        ({"seed": "x"}, "--node seed must be a whole number"),
        ({"data": "mnist"}, "unknown data 'mnist'"),
        ({"partition": "sorted"}, 'partition is "sorted"'),
        ({"shards": "3/5"}, "does not know --node shards; it knows data,"),
    ],
)
def test_wrong_settings_are_named(node: dict[str, str], says: str) -> None:
    """When the worker starts, not in its first task."""
    with pytest.raises(ConfigError, match=says):
        demo_app.app(node)


@pytest.mark.parametrize("value", [None, 0, -1, "0.1", True, float("nan")])
def test_a_task_without_its_numbers_is_refused(value: Any) -> None:
    """By the key of the [task] table."""
    app = demo_app.app({"shard": "1/5"})
    for key in ("lr", "versions", "epochs", "batch"):
        with pytest.raises(ConfigError, match=rf"\[task\] {key}"):
            app.fit(app.initial(), TaskContext(kind="fit", config={**CONFIG, key: value}))
