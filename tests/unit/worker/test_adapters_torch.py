"""A torch module as a client app: its state dict, its dtypes, its randomness."""

import numpy as np
import pytest
import torch
from torch import nn

from fedmq.fedcore.errors import ClientAppError
from fedmq.worker.adapters.torch import Metrics, TorchApp
from fedmq.worker.client import TaskContext, check_fit, make_initial, resolve_app

FIT = TaskContext(kind="fit", seed=11)
INIT = TaskContext(kind="init", seed=5)


class Net(nn.Module):
    """Everything that is awkward in one module: tied, bfloat16, float64, 0-d, and batch norm's integer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 4)
        self.head = nn.Linear(4, 3, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(4)
        self.low = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.norm(self.embed(x))) * self.scale.float() * self.low.float().mean()
        return out


def train(model: nn.Module, task: TaskContext) -> tuple[int, Metrics]:
    """One step on random examples."""
    assert model.training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randint(0, 3, (8,))
    loss = nn.functional.cross_entropy(model(x), x)
    loss.backward()
    optimizer.step()
    return len(x), {"loss": loss.item()}


def evaluate(model: nn.Module, task: TaskContext) -> tuple[int, Metrics]:
    """Whatever the first output is."""
    assert not model.training
    assert not torch.is_grad_enabled()
    return 3, {"loss": float(model(torch.arange(3)).mean())}


def test_a_fit_trains_what_it_was_given() -> None:
    """It passes the check, moves the parameters, and leaves the given weights alone."""
    app = TorchApp(Net, train, evaluate)
    weights = make_initial(app, INIT)
    before = {name: array.copy() for name, array in weights.items()}
    given = {name: array.copy() for name, array in weights.items()}
    fit = check_fit(app.fit(given, FIT), before)
    assert fit.examples == 8
    assert set(fit.metrics) == {"loss"}
    for name in before:
        np.testing.assert_array_equal(given[name], before[name])
    assert not np.array_equal(fit.weights["embed.weight"], before["embed.weight"])
    assert app.evaluate(weights, FIT).examples == 3


def test_tied_weights_stay_tied() -> None:
    """Both names hold one memory, in and out."""
    app = TorchApp(Net, train, evaluate)
    fit = app.fit(app.initial(INIT), FIT)
    assert np.shares_memory(fit.weights["embed.weight"], fit.weights["head.weight"])


def test_floats_of_all_widths_are_arrays_and_come_back() -> None:
    """bfloat16 travels as float32 and is bfloat16 again in the module; 0-d stays 0-d."""
    app = TorchApp(Net, train, evaluate)
    weights = app.initial(INIT)
    assert weights["low"].dtype == np.float32
    assert weights["scale"].shape == ()
    weights["low"] = np.array([0.5, 2.0], np.float32)
    weights["scale"] = np.array(3.0, np.float32)
    seen: dict[str, torch.Tensor] = {}

    def look(model: nn.Module, task: TaskContext) -> int:
        seen.update({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        return 1

    fit = TorchApp(Net, look, evaluate).fit(weights, FIT)
    assert fit.metrics == {}
    assert seen["low"].dtype == torch.bfloat16
    assert seen["low"].tolist() == [0.5, 2.0]
    assert seen["scale"].dtype == torch.float64
    assert seen["scale"].item() == 3.0


def test_integer_buffers_are_loaded_with_every_model() -> None:
    """Batch norm counts on from what came, not from what this worker did before."""
    app = TorchApp(Net, train, evaluate)
    weights = app.initial(INIT)
    weights["norm.num_batches_tracked"] = np.array(41)
    for _ in range(2):
        assert app.fit(weights, FIT).weights["norm.num_batches_tracked"] == 42


def test_a_task_can_be_repeated_and_leaves_the_callers_randomness_alone() -> None:
    """Equal seeds give equal bits, other seeds others, and the program's own generator does not notice."""
    results = []
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    for seed in (7, 7, 8):
        app = TorchApp(Net, train, evaluate)
        weights = app.initial(INIT)
        results.append(app.fit(weights, TaskContext(kind="fit", seed=seed)).weights["embed.weight"].copy())
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    assert torch.equal(torch.rand(3), expected)


def test_the_largest_seed_is_a_seed() -> None:
    """Seeds are uint64; torch takes them all."""
    app = TorchApp(Net, train, evaluate)
    assert app.fit(app.initial(INIT), TaskContext(kind="fit", seed=2**64 - 1)).examples == 8


def test_a_model_that_does_not_fit_is_said_by_name() -> None:
    """Missing names and wrong shapes come from torch, in one line."""
    app = TorchApp(lambda: nn.Linear(2, 1), train, evaluate)
    with pytest.raises(ClientAppError, match=r"does not fit the module.*bias") as raised:
        app.fit({"weight": np.zeros((1, 2), np.float32)}, FIT)
    assert "\n" not in str(raised.value)


def test_wrong_functions_are_told_what_is_expected() -> None:
    """A model that is none, and an evaluate that returns a bare loss."""
    with pytest.raises(ClientAppError, match=r"must be a torch.nn.Module, got int"):
        TorchApp(lambda: 3, train, evaluate).initial(INIT)  # type: ignore[arg-type,return-value]
    app = TorchApp(nn.Linear(1, 1), train, lambda model, task: 0.5)  # type: ignore[arg-type,return-value]
    with pytest.raises(ClientAppError, match=r"must return \(examples, metrics\), got 0.5"):
        app.evaluate(app.initial(INIT), FIT)


def test_a_read_only_model_is_loaded() -> None:
    """Views of a mapped file are read-only; torch would warn."""
    app = TorchApp(nn.Linear(2, 1), lambda model, task: 4, evaluate)
    weights = {name: array.copy() for name, array in app.initial(INIT).items()}
    for array in weights.values():
        array.flags.writeable = False
    assert app.fit(weights, FIT).examples == 4


def test_it_is_an_app_as_it_stands() -> None:
    """`--app module:attribute` may name it."""
    app = TorchApp(Net, train, evaluate)
    assert resolve_app(app) is app
