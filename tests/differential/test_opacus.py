"""Record-level DP-SGD beside Opacus: the same clipped sum, the same noise, the same price.

Where Opacus differs, this says so: its clip factor is S / (‖g‖ + 10⁻⁶), so that what it clips is a little shorter
than S, and its noise is float32 that is added to a float32 sum.
"""

import copy
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fedmq.fedcore.privacy.accounting import Spend, epsilon
from fedmq.worker.adapters.private_torch import TorchGradients
from fedmq.worker.privacy import LocalPrivacy
from fedmq.worker.privacy.gradients import clipped_sum
from fedmq.worker.privacy.training import noisy_mean

with warnings.catch_warnings():  # what Opacus and torch have to say about each other while they are imported
    warnings.simplefilter("ignore")
    from opacus import GradSampleModule
    from opacus.accountants import PRVAccountant, RDPAccountant
    from opacus.optimizers import DPOptimizer

S, D, RECORDS = 5.0, 20.0, 24


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4))


def wide() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 40), nn.LayerNorm(40), nn.ReLU(), nn.Linear(40, 4))


def loss(model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Records whose gradients are shorter and longer than S."""
    generator = torch.Generator().manual_seed(5)
    scale = torch.linspace(0.01, 3, RECORDS)[:, None, None, None]
    x = torch.randn(RECORDS, 1, 6, 6, generator=generator) * scale
    return x, torch.randint(4, (RECORDS,), generator=generator)


def ours(module: nn.Module) -> tuple[TorchGradients, np.ndarray]:
    gradients = TorchGradients(module, data(), loss)
    return gradients, gradients.trained.flatten({n: p.detach().numpy() for n, p in module.named_parameters()})


def opacus_gradient(module: nn.Module, noise_multiplier: float, seed: int = 0) -> np.ndarray:
    """What Opacus' optimizer would step along, for one batch of all records."""
    module = copy.deepcopy(module)  # Opacus leaves its hooks in it
    sampled = GradSampleModule(module, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(sampled.parameters(), lr=1.0),
        noise_multiplier=noise_multiplier,
        max_grad_norm=S,
        expected_batch_size=D,
        loss_reduction="mean",
        generator=torch.Generator().manual_seed(seed),
    )
    x, y = data()
    nn.functional.cross_entropy(sampled(x), y, reduction="sum").backward()
    optimizer.pre_step()
    return np.concatenate([p.grad.numpy().ravel() for p in module.parameters() if p.grad is not None])


@pytest.mark.filterwarnings("ignore")  # Opacus' backward hooks warn
@pytest.mark.parametrize("model", [small, wide])
def test_the_clipped_mean_is_opacus(model: Callable[[], nn.Module]) -> None:
    """Per-example gradients of convolutions, linear layers and norms, clipped jointly, over the same constant."""
    torch.manual_seed(1)
    module = model()
    gradients, flat = ours(module)
    everybody = np.arange(RECORDS)
    norms = [math.sqrt(float(row @ row)) for rows in gradients.rows(flat, everybody) for row in rows]
    assert min(norms) < S < max(norms)
    sums, left_out = clipped_sum(gradients.rows(flat, everybody), flat.size, max_grad_norm=S)
    theirs = opacus_gradient(module, 0.0)
    assert left_out == 0
    np.testing.assert_allclose(sums.mean(D), theirs, rtol=0, atol=3e-6 * RECORDS * S / D)


@pytest.mark.filterwarnings("ignore")
def test_a_step_is_opacus_in_expectation() -> None:
    """The same mean, and the same deviation z S / D in each coordinate: within 5 standard errors of many draws."""
    torch.manual_seed(2)
    module, z, draws = wide(), 1.3, 16
    gradients, flat = ours(module)
    plan = LocalPrivacy(
        delta=1e-5, max_grad_norm=S, sampling_rate=1.0, divisor=D, max_steps=1, noise_multiplier=z
    )
    mean = opacus_gradient(module, 0.0) * D
    mine = np.stack([noisy_mean(gradients, flat, plan) * D - mean for _ in range(draws)])
    theirs = np.stack([opacus_gradient(module, z, seed) * D - mean for seed in range(draws)])
    n = mine.size
    for noise in (mine, theirs):
        assert abs(noise.mean()) < 5 * z * S / math.sqrt(n)
        assert abs(noise.std() / (z * S) - 1) < 5 / math.sqrt(2 * n)
    assert abs(mine.mean(axis=0) - theirs.mean(axis=0)).max() < 6 * z * S * math.sqrt(2 / draws)


@pytest.mark.parametrize(("z", "rate", "steps"), [(1.1, 0.01, 500), (0.8, 0.1, 20)])
def test_the_price_is_opacus(z: float, rate: float, steps: int) -> None:
    """Its PRV accountant agrees within the error that it states; its Rényi accountant says more, never less."""
    delta, error = 1e-5, 0.01
    mine = epsilon([Spend(z, rate, steps)], delta)
    prv, rdp = PRVAccountant(), RDPAccountant()
    prv.history = rdp.history = [(z, rate, steps)]
    assert prv.get_epsilon(delta, eps_error=error) == pytest.approx(mine, abs=2 * error)
    assert mine <= rdp.get_epsilon(delta) + 1e-3
