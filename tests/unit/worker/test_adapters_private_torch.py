"""Torch modules under record-level privacy: per-example gradients against a plain loop, and what cannot have any."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedmq.fedcore.errors import BudgetExhausted, ClientAppError, PrivacyError
from fedmq.fedcore.layout import Layout
from fedmq.fedcore.privacy.accounting import Spend
from fedmq.fedcore.state_dict import delta, flatten
from fedmq.worker.adapters.private_torch import PrivateTorchApp, TorchGradients
from fedmq.worker.client import TaskContext, check_fit, make_initial, resolve_app
from fedmq.worker.privacy import GradientSum
from fedmq.worker.privacy.ledger import Ledger
from fedmq.worker.privacy.training import PrivateTraining

from .private import Keys, all_rows, clipped_by_hand, plan, task

INIT = TaskContext(kind="init", seed=5)
EVERYBODY = GradientSum(max_grad_norm=0.5, sampling_rate=1.0)
WORDS = torch.randint(0, 3, (10, 6), generator=torch.Generator().manual_seed(0))
LABELS = WORDS[:, 0].clone()


class Net(nn.Module):
    """What is awkward, but has per-example gradients: tied, frozen, 0-d, half precision, group norm, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 4)
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 3, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.low = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        self.register_buffer("shift", torch.full((4,), 0.25))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(self.embed(words).transpose(1, 2))).mean(2)
        out: torch.Tensor = self.head((self.frozen(x) + self.shift) * self.scale * self.low.float())
        return out


def loss(model: Any, words: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(words), labels)


def by_backward(module: nn.Module) -> np.ndarray[Any, Any]:
    """Every record's gradient by a backward pass of its own."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    rows = []
    for i in range(len(WORDS)):
        gradients = torch.autograd.grad(loss(module, WORDS[i : i + 1], LABELS[i : i + 1]), parameters)
        rows.append(torch.cat([g.reshape(-1).double() for g in gradients]).numpy())
    return np.array(rows)


@pytest.fixture
def weights() -> dict[str, Any]:
    return make_initial(PrivateTorchApp(Net, (WORDS, LABELS), loss, EVERYBODY), INIT)


def loaded(weights: dict[str, Any]) -> Net:
    module = Net()
    module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
    return module


@pytest.mark.parametrize("microbatch", [1, 3, 128])
def test_rows_are_what_a_backward_pass_for_each_record_gives(
    weights: dict[str, Any], microbatch: int
) -> None:
    """Whatever part of the records is held at a time; tied weights count once, frozen ones not at all."""
    model = TorchGradients(loaded(weights), (WORDS, LABELS), loss, microbatch=microbatch)
    assert set(model.trained.shapes) == {
        "embed.weight", "conv.weight", "conv.bias", "norm.weight", "norm.bias", "scale", "low",
    }  # fmt: skip
    # `low` is a bfloat16: its gradients have eight bits.
    np.testing.assert_allclose(all_rows(model, weights), by_backward(loaded(weights)), rtol=2e-2, atol=1e-5)


def test_a_sum_is_the_plain_loops(weights: dict[str, Any], tmp_path: Path) -> None:
    """A backward pass for each record, its joint norm clipped, added: what the broker gets, with the sign of a step."""
    app = PrivateTorchApp(Net, (WORDS, LABELS), loss, EVERYBODY, microbatch=4)
    fit = check_fit(app.fit({name: array.copy() for name, array in weights.items()}, task(tmp_path)), weights)
    assert (fit.examples, fit.metrics) == (1, {})
    layout = Layout.of(weights)
    trained = TorchGradients(loaded(weights), (WORDS, LABELS), loss).trained
    update = delta(layout, flatten(layout, weights), fit.weights)
    total = sum(clipped_by_hand(by_backward(loaded(weights)), 0.5), np.zeros(trained.n))
    zeros = {name: np.zeros_like(array) for name, array in weights.items()}
    expected = flatten(layout, trained.unflatten(-total, zeros))
    np.testing.assert_allclose(update, expected, rtol=1e-2, atol=2e-3)
    assert np.abs(update - expected).max() < 2e-3 < np.abs(expected).max()
    assert np.shares_memory(fit.weights["embed.weight"], fit.weights["head.weight"])


def test_local_steps_are_the_numpy_engines(tmp_path: Path) -> None:
    """A linear layer gives the same model in torch and in numpy, noise and coins included."""
    from fedmq.worker.adapters.linear import LinearGradients

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(0, 3, 40)
    start = {"weight": rng.normal(size=(3, 5)).astype(np.float32), "bias": np.zeros(3, np.float32)}
    module = nn.Linear(5, 3)
    data = (torch.from_numpy(x), torch.from_numpy(y))
    models = [LinearGradients((x, y), kind="softmax", classes=3), TorchGradients(module, data, loss)]
    fits = [
        PrivateTraining(plan(steps_per_task=5), random=Keys(1)).fit(model, start, task(tmp_path))
        for model in models
    ]
    for name in start:
        np.testing.assert_allclose(fits[0].weights[name], fits[1].weights[name], rtol=1e-4, atol=1e-5)


def test_a_local_fit_learns_and_is_capped(tmp_path: Path) -> None:
    """Weights move, the rest of the state dict does not; after the cap comes `privacy_budget`, evaluation goes on."""
    privacy = plan(max_steps=4, steps_per_task=2, noise_multiplier=0.01, sampling_rate=1.0, divisor=10.0)

    def evaluate(model: nn.Module, task: TaskContext) -> tuple[int, dict[str, float]]:
        return 10, {"loss": float(loss(model, WORDS, LABELS))}

    app = PrivateTorchApp(Net, (WORDS, LABELS), loss, privacy, evaluate, lr=0.5)
    weights = app.initial(INIT)
    before = {name: array.copy() for name, array in weights.items()}
    losses = [app.evaluate(weights, task(tmp_path)).metrics["loss"]]
    for _ in range(2):
        fit = app.fit(
            {name: np.asarray(array, np.float32) for name, array in weights.items()}, task(tmp_path)
        )
        weights = fit.weights
        losses.append(app.evaluate(weights, task(tmp_path)).metrics["loss"])
        assert (fit.examples, fit.metrics) == (10, {})
    assert losses[0] > losses[1] > losses[2]
    for name in ("frozen.weight", "frozen.bias", "shift"):
        np.testing.assert_array_equal(weights[name], before[name])
    assert Ledger(tmp_path).spent() == [Spend(0.01, 1.0, 4)]
    with pytest.raises(BudgetExhausted, match=r"^privacy_budget"):
        app.fit(weights, task(tmp_path))
    assert app.evaluate(weights, task(tmp_path)).metrics["loss"] == losses[2]


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(6),
        nn.BatchNorm2d(6),
        nn.SyncBatchNorm(6),
        nn.InstanceNorm1d(6, track_running_stats=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_mix_records_are_refused_by_name(layer: nn.Module, tmp_path: Path) -> None:
    """Before anything is spent, saying what to use."""
    app = PrivateTorchApp(nn.Sequential(nn.Linear(6, 6), layer), (WORDS.float(), LABELS), loss, plan())
    weights = app.initial(INIT)
    with pytest.raises(
        ClientAppError, match=rf"layer '1' is a {type(layer).__name__}, which mixes .*GroupNorm"
    ):
        app.fit(weights, task(tmp_path))
    assert Ledger(tmp_path).spent() == []


def test_a_module_that_remembers_its_batch_is_refused(tmp_path: Path) -> None:
    """A buffer that a forward pass writes would tell of the data past the noise; the text says nothing of it."""

    class Remembers(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 3)
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.mean.mul_(0.9).add_(x.mean(0))
            return super().forward(x)

    app = PrivateTorchApp(Remembers, (WORDS.float(), LABELS), loss, EVERYBODY)
    with pytest.raises(PrivacyError, match="no per-example gradients of this module and loss"):
        app.fit(app.initial(INIT), task(tmp_path))


def test_an_empty_sample_is_a_sum_of_zeros(weights: dict[str, Any], tmp_path: Path) -> None:
    """Nobody in the batch, or nobody at all; the module is not even called."""
    rare = GradientSum(max_grad_norm=1.0, sampling_rate=1e-12)
    for data in ((WORDS, LABELS), (WORDS[:0], LABELS[:0])):
        fit = PrivateTorchApp(Net, data, loss, rare).fit(weights, task(tmp_path))
        for name in weights:
            np.testing.assert_array_equal(fit.weights[name], weights[name])


def test_dropout_draws_for_each_record_from_the_tasks_seed(tmp_path: Path) -> None:
    """Records have masks of their own, and a task that comes again has the same."""
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))
    data = (torch.ones(10, 6), torch.zeros(10, dtype=torch.long))
    app = PrivateTorchApp(module, data, loss, EVERYBODY)
    weights = app.initial(INIT)
    first, again, other = (
        app.fit(weights, task(tmp_path, seed=seed)).weights["1.weight"] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    rows = all_rows(TorchGradients(module, data, loss), weights)
    assert len({row.tobytes() for row in rows}) > 1


def test_what_cannot_be_trained_is_said(tmp_path: Path) -> None:
    """Data of unequal lengths, none, a microbatch of none, a module without parameters; an app without evaluation."""
    module = nn.Linear(6, 3)
    for data in ((), (WORDS, LABELS[:3]), (torch.tensor(1.0),)):
        with pytest.raises(ClientAppError, match="same number of records"):
            TorchGradients(module, data, loss)
    with pytest.raises(ClientAppError, match="microbatch must be 1"):
        TorchGradients(module, (WORDS,), loss, microbatch=0)
    with pytest.raises(ClientAppError, match="no parameter that wants a gradient"):
        TorchGradients(nn.ReLU(), (WORDS,), loss)
    app = PrivateTorchApp(module, lambda: (WORDS.float(), LABELS), loss, EVERYBODY)
    assert app.kinds == ("fit",)
    assert resolve_app(app) is app
    weights = app.initial(INIT)
    app.fit(weights, task(tmp_path))
    with pytest.raises(ClientAppError, match="has no evaluate function"):
        app.evaluate(weights, task(tmp_path))
