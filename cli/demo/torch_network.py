"""The demo's network in torch: `network`'s twin, for ``fedmq demo --app torch``.

The same names, shapes and formulas; the numbers differ in their last digits. Per-example gradients come from
``torch.func``, as in any private app on torch, where the numpy twin knows this one by heart.
"""

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedmq.worker.adapters.private_torch import TorchGradients
from fedmq.worker.privacy.gradients import clipped_sum

from .app import DemoApp, Network
from .data import Shard
from .network import Measured, Weights

__all__ = ["Net", "app"]

_EXAMPLES_AT_ONCE = 1024  # per-example gradients of so many are held at a time


def app(node: dict[str, str]) -> DemoApp:
    """The client app of one worker, on torch."""
    torch.set_num_threads(1)  # the demo's workers share a machine
    return DemoApp(node, cast(Network, TorchNetwork()))


class Net(nn.Module):
    """Linear – ReLU – Linear."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, [n, classes]."""
        return cast(torch.Tensor, self.fc2(torch.relu(self.fc1(x))))


class TorchNetwork:
    """`app.Network` on torch; arguments and results are `network`'s."""

    def train(
        self, weights: Weights, shard: Shard, *, epochs: int, batch: int, lr: float, rng: np.random.Generator
    ) -> float:
        """Minibatch SGD in place; returns the last epoch's mean loss."""
        net = _net(weights)
        parameters = list(net.parameters())
        loss = 0.0
        for _ in range(epochs):
            loss = 0.0
            order = rng.permutation(len(shard))
            for start in range(0, len(order), batch):
                part = shard.take(order[start : start + batch])
                mean = cross_entropy(net(torch.from_numpy(part.x)), torch.from_numpy(part.y))
                # Plain SGD by hand: torch.optim would import torch's compiler, seconds in every worker.
                gradients = torch.autograd.grad(mean, parameters)
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter.sub_(gradient, alpha=lr)
                loss += float(mean.detach()) * len(part)
        for name, parameter in net.named_parameters():
            weights[name][...] = parameter.detach().numpy()
        return loss / len(shard)

    def clipped_gradient_sum(self, weights: Weights, shard: Shard, *, max_norm: float) -> Weights:
        """Sum of per-example gradients, each clipped to `max_norm`."""
        data = (torch.from_numpy(shard.x), torch.from_numpy(shard.y))
        model = TorchGradients(_net(weights), data, _loss, microbatch=_EXAMPLES_AT_ONCE)
        rows = model.rows(model.trained.flatten(weights), np.arange(len(shard)))
        sums, _ = clipped_sum(rows, model.trained.n, max_grad_norm=max_norm, at_most=max(1, len(shard)))
        return model.trained.unflatten(sums.mean(1.0), {})

    def measure(self, weights: Weights, shard: Shard) -> Measured:
        """Loss and accuracy."""
        net = _net(weights)
        loss, correct = 0.0, 0
        with torch.no_grad():
            for x, y in _batches(shard, 4096):
                logits = net(x)
                loss += float(cross_entropy(logits, y, reduction="sum"))
                correct += int((logits.argmax(1) == y).sum())
        return Measured(loss / len(shard), correct / len(shard))


def _loss(net: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return cross_entropy(net(x), y)


def _net(weights: Weights) -> Net:
    classes, hidden = weights["fc2.weight"].shape
    net = Net(weights["fc1.weight"].shape[1], hidden, classes)
    net.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return net


def _batches(shard: Shard, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(shard), size):
        stop = start + size
        yield torch.from_numpy(shard.x[start:stop]), torch.from_numpy(shard.y[start:stop])
