"""Server optimizers beside torch.optim, which descends along a gradient: −d is one.

Adam and AMSGrad of torch correct their bias and add ε to the corrected root, so that its ε is ours over √(1 − β₂^t)
(ε̂ in section 2 of Adam's paper): they are compared where ε is next to nothing.
"""

from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from fedmq.fedcore import config
from fedmq.fedcore.strategy import optimizers

TINY = 1e-12
STEPS = 30


def fadas(**hyper: Any) -> optimizers.ServerOptimizer:
    """FADAS with Adam's correction: AMSGrad, as torch has it."""
    made, adam = (
        optimizers.make(config.Fadas(**hyper)),
        optimizers.make(config.Adam(**hyper, bias_correction=True)),
    )
    assert isinstance(made, optimizers.ServerOptimizer)
    assert isinstance(adam, optimizers.ServerOptimizer)
    return msgspec.structs.replace(made, rate=adam.rate)


BETAS = {"beta1": 0.8, "beta2": 0.95, "eps": TINY}
PAIRS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sgd": (optimizers.make(config.Sgd(lr=0.3)), torch.optim.SGD, {"lr": 0.3}),
    "momentum": (
        optimizers.make(config.Momentum(lr=0.3, beta=0.8)), torch.optim.SGD, {"lr": 0.3, "momentum": 0.8},
    ),
    "adagrad": (
        optimizers.make(config.Adagrad(lr=0.1, eps=1e-3)), torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-3},
    ),
    "adam": (
        optimizers.make(config.Adam(lr=0.01, bias_correction=True, **BETAS)),
        torch.optim.Adam,
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": TINY},
    ),
    "amsgrad": (
        fadas(lr=0.01, **BETAS),
        torch.optim.Adam,
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": TINY, "amsgrad": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_steps(name: str) -> None:
    """Thirty of them, torch in float64, ours with float32 between the steps."""
    optimizer, kind, options = PAIRS[name]
    rng = np.random.default_rng(2)
    w = rng.normal(size=64).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(w.astype(np.float64)))
    peer, state = kind([parameter], **options), optimizer.init(64)
    for step in range(1, STEPS + 1):
        d = (rng.normal(size=64) * rng.choice([0.1, 3.0])).astype(np.float32)
        optimizer.apply(w, state, d, step=step)
        parameter.grad = torch.from_numpy(-d.astype(np.float64))
        peer.step()
        np.testing.assert_allclose(w, parameter.detach().numpy(), rtol=1e-5, atol=1e-5)
