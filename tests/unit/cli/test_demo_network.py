"""The demo's network: gradients are what calculus says, clipping is per example, and torch agrees."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.cli.demo import network
from fedmq.cli.demo.data import Shard
from fedmq.cli.demo.torch_network import TorchNetwork

RNG = np.random.default_rng(0)
SHARD = Shard(RNG.normal(size=(40, 6)).astype(np.float32), RNG.integers(0, 3, 40))
TWINS = pytest.mark.parametrize("twin", [network, TorchNetwork()], ids=["numpy", "torch"])


def weights(seed: int = 0) -> network.Weights:
    """Of a network of 6 – 5 – 3."""
    return network.initial_weights(6, classes=3, hidden=5, seed=seed)


def norm(gradient: network.Weights) -> float:
    """Of all tensors together."""
    return float(np.sqrt(sum(np.square(part, dtype=np.float64).sum() for part in gradient.values())))


def difference_quotient(loss: Callable[[network.Weights], float], at: network.Weights) -> network.Weights:
    """The gradient by central differences, in float64."""
    gradient = {}
    for name in at:
        gradient[name] = np.zeros_like(at[name])
        for index in np.ndindex(at[name].shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = {key: array.astype(np.float64) for key, array in at.items()}
                moved[name][index] += step
                sides.append(loss(moved))  # type: ignore[arg-type]
            gradient[name][index] = (sides[0] - sides[1]) / 2e-6
    return gradient


def test_initial_weights_are_torchs() -> None:
    """Names, shapes, float32, within ±1/√fan_in; the seed decides."""
    made = weights()
    assert {name: array.shape for name, array in made.items()} == {
        "fc1.weight": (5, 6),
        "fc1.bias": (5,),
        "fc2.weight": (3, 5),
        "fc2.bias": (3,),
    }
    assert all(array.dtype == np.float32 for array in made.values())
    assert np.abs(made["fc1.weight"]).max() <= 1 / np.sqrt(6)
    assert np.array_equal(made["fc1.weight"], weights()["fc1.weight"])
    assert not np.array_equal(made["fc1.weight"], weights(1)["fc1.weight"])


@TWINS
def test_the_sum_of_gradients_is_what_calculus_says(twin: Any) -> None:
    """Without a clip it is n times the gradient of the mean loss."""
    gradient = twin.clipped_gradient_sum(weights(), SHARD, max_norm=1e9)
    expected = difference_quotient(lambda w: network.measure(w, SHARD).loss * len(SHARD), weights())
    for name in gradient:
        np.testing.assert_allclose(gradient[name], expected[name], rtol=2e-3, atol=2e-3)


# BLAS may raise the flag by itself, of finite products that the test looks at: the same values do not do it again.
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
@TWINS
@given(max_norm=st.floats(1e-3, 10.0))
def test_every_example_is_clipped_by_itself(twin: Any, max_norm: float) -> None:
    """The sum over a batch is the sum over its examples, each no longer than the clip norm."""
    few = SHARD.take(np.arange(4))
    single = [
        twin.clipped_gradient_sum(weights(), few.take(np.array([i])), max_norm=max_norm) for i in range(4)
    ]
    for gradient, i in zip(single, range(4), strict=True):
        free = norm(network.clipped_gradient_sum(weights(), few.take(np.array([i])), max_norm=1e9))
        assert norm(gradient) == pytest.approx(min(free, max_norm), rel=1e-4)
    together = twin.clipped_gradient_sum(weights(), few, max_norm=max_norm)
    for name in together:
        np.testing.assert_allclose(together[name], sum(part[name] for part in single), rtol=1e-3, atol=1e-5)


@TWINS
def test_nobody_in_the_sample_is_a_sum_of_zeros(twin: Any) -> None:
    """A Poisson sample may be empty, and is released like any other."""
    gradient = twin.clipped_gradient_sum(weights(), SHARD.take(np.zeros(0, np.int64)), max_norm=1.0)
    assert {name: array.shape for name, array in gradient.items()} == {
        name: array.shape for name, array in weights().items()
    }
    assert norm(gradient) == 0


@TWINS
def test_training_is_minibatch_sgd_in_place(twin: Any) -> None:
    """One batch of everything is one step along the mean gradient; the loss falls; the generator decides."""
    trained, before = weights(), weights()
    twin.train(trained, SHARD, epochs=1, batch=40, lr=0.1, rng=np.random.default_rng(0))
    gradient = network.clipped_gradient_sum(before, SHARD, max_norm=1e9)
    for name in trained:
        np.testing.assert_allclose(
            trained[name], before[name] - 0.1 * gradient[name] / 40, rtol=1e-4, atol=1e-6
        )
    runs = []
    for seed in (1, 1, 2):
        runs.append(weights())
        loss = twin.train(runs[-1], SHARD, epochs=20, batch=7, lr=0.2, rng=np.random.default_rng(seed))
        assert loss < twin.measure(before, SHARD).loss
    assert np.array_equal(runs[0]["fc1.weight"], runs[1]["fc1.weight"])
    assert not np.array_equal(runs[0]["fc1.weight"], runs[2]["fc1.weight"])


def test_the_twins_agree() -> None:
    """After the same training they measure the same, up to rounding."""
    ours, theirs = weights(), weights()
    network.train(ours, SHARD, epochs=3, batch=8, lr=0.1, rng=np.random.default_rng(0))
    TorchNetwork().train(theirs, SHARD, epochs=3, batch=8, lr=0.1, rng=np.random.default_rng(0))
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5)
    assert network.measure(ours, SHARD).loss == pytest.approx(
        TorchNetwork().measure(ours, SHARD).loss, rel=1e-5
    )
    assert network.measure(ours, SHARD).accuracy == TorchNetwork().measure(ours, SHARD).accuracy


def test_large_logits_do_not_overflow() -> None:
    """The softmax is shifted by its largest logit."""
    huge = {name: array * np.float32(1e4) for name, array in weights().items()}
    assert np.isfinite(network.measure(huge, SHARD).loss)
