"""FedProx's term: its value and gradient by hand, what it leaves out, and the page's example."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedmq.fedcore.errors import ClientAppError
from fedmq.worker.adapters.proximal import ProximalTerm
from fedmq.worker.client import TaskContext

from .test_adapters_torch import Net

PAGE = (Path(__file__).parents[3] / "docs" / "strategies.md").read_text(encoding="utf-8")


def moved(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter and buffer another value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_((torch.randn(tensor.shape, generator=generator) * 3).to(tensor.dtype))


def test_by_hand() -> None:
    """μ/2 ‖w − w_base‖² with w_base = (1, 2), w = (4, −2), μ = 0.5: 0.25 · (9 + 16), and μ (w − w_base)."""
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 2.0]])
    term = ProximalTerm(model, 0.5)
    assert term().item() == 0
    model.weight.data = torch.tensor([[4.0, -2.0]])
    value = term()
    value.backward()
    assert value.item() == 6.25
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [[1.5, -2.0]]


def test_the_gradient_is_mu_times_the_way_from_the_base() -> None:
    """Of every parameter of any float type, a tied one once; it adds to the loss's own."""
    model = Net()
    base = {name: parameter.detach().clone().double() for name, parameter in model.named_parameters()}
    term = ProximalTerm(model, 0.1)
    moved(model)
    loss = model(torch.arange(3)).sum()
    alone = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    (loss + term()).backward()
    total = 0.0
    for (name, parameter), own in zip(model.named_parameters(), alone, strict=True):
        way = parameter.detach().double() - base[name]
        total += float((way**2).sum())
        assert parameter.grad is not None
        grain = 2**-7 if parameter.dtype is torch.bfloat16 else 1e-5
        torch.testing.assert_close(parameter.grad.double(), own.double() + 0.1 * way, rtol=grain, atol=grain)
    assert term().item() == pytest.approx(0.05 * total, rel=1e-5)


def test_what_is_not_trained_does_not_count() -> None:
    """Buffers, integers among them, and frozen parameters may move as they like."""
    model = Net()
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.scale.requires_grad = True
    term = ProximalTerm(model, 2.0)
    scale = model.scale.item()
    moved(model)
    assert model.norm.num_batches_tracked is not None
    assert term().item() == pytest.approx((model.scale.item() - scale) ** 2, rel=1e-12)


def test_without_mu_it_is_nothing() -> None:
    """Then no copy is made, and the loss is the loss."""
    model = nn.Linear(2, 1)
    term = ProximalTerm(model, 0)
    moved(model)
    loss = model(torch.ones(1, 2)).sum()
    assert (loss + term()).item() == loss.item()
    assert term._pairs == []


@pytest.mark.parametrize("mu", [-1, math.nan, math.inf, "0.1", None, True])
def test_mu_comes_from_a_file_and_is_checked(mu: Any) -> None:
    """[task] is free: what it holds may be anything."""
    with pytest.raises(ClientAppError, match="mu must be a finite number ≥ 0"):
        ProximalTerm(nn.Linear(1, 1), mu)


def test_many_steps_end_between_the_optimum_and_the_base() -> None:
    """Of ½ (w − c)² with the term, at (c + μ b) / (1 + μ)."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data = torch.tensor([[1.0]])
    term = ProximalTerm(model, 3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        ((model.weight - 5).square().sum() / 2 + term()).backward()
        optimizer.step()
    assert model.weight.item() == pytest.approx((5 + 3 * 1) / 4, rel=1e-5)


def test_the_example_of_the_page_runs() -> None:
    """As it stands; the larger μ, the nearer its updates stay."""
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "ProximalTerm" in block
    )
    module: dict[str, Any] = {}
    exec(compile(code, "strategies.md", "exec"), module)
    app = module["app"]
    weights = {name: array.copy() for name, array in app.initial(TaskContext(kind="init", seed=1)).items()}
    far = []  # how far each μ lets it go
    for mu in (0.0, 0.1, 10.0):
        task = TaskContext(kind="fit", seed=2, config={"lr": 0.05, "mu": mu})
        fit = app.fit({name: array.copy() for name, array in weights.items()}, task)
        far.append(math.sqrt(sum(float(np.sum((fit.weights[n] - weights[n]) ** 2)) for n in weights)))
    assert far[0] > far[1] > far[2] > 0
