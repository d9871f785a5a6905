"""The notebook's DifferentialPrivacy: joint clipping, calibrated noise, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.privacy import DifferentialPrivacy


class Model(nn.Module):
    """A matrix, a 0-d parameter, one that is frozen."""

    def __init__(self, n: int = 3) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(n, 2))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


def norm(model: nn.Module) -> float:
    """Of all gradients together."""
    squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
    return math.sqrt(float(sum(squares)))


def with_gradients(matrix: float, scale: float) -> Model:
    """A model after backward()."""
    model = Model()
    model.matrix.grad = torch.full((3, 2), matrix)
    model.scale.grad = torch.tensor(scale)
    return model


def test_gradients_are_clipped_together() -> None:
    """Their joint norm, 0-d parameters included, keeping their direction; the norm before is returned."""
    model = with_gradients(1.0, 10.0)
    before = norm(model)
    assert DifferentialPrivacy(1.0, 1e-5, 0.5).clip_gradients(model) == pytest.approx(before)
    assert norm(model) == pytest.approx(0.5, rel=1e-6)
    assert model.scale.grad is not None
    assert model.matrix.grad is not None
    assert float(model.scale.grad / model.matrix.grad[0, 0]) == pytest.approx(10.0)


def test_small_and_zero_gradients_stay_as_they_are() -> None:
    """Nothing is scaled up, nothing is divided by zero."""
    privacy = DifferentialPrivacy(1.0, 1e-5, 100.0)
    for model in (with_gradients(1.0, 2.0), with_gradients(0.0, 0.0)):
        before = norm(model)
        assert privacy.clip_gradients(model) == pytest.approx(before)
        assert norm(model) == before


def test_noise_has_the_calibrated_deviation() -> None:
    """z·S with the z of one release, on every parameter that is trained, and on no other."""
    model = Model(20_000)
    privacy = DifferentialPrivacy(epsilon=1.0, delta=1e-5, max_grad_norm=2.0)
    assert privacy.noise_multiplier == pytest.approx(3.7306, abs=1e-4)
    assert "for one release" in repr(privacy)
    sigma = privacy.add_noise(model)
    assert sigma == pytest.approx(2 * 3.7306, abs=1e-3)
    assert model.matrix.grad is not None
    noise = model.matrix.grad.numpy()
    assert abs(noise.std() / sigma - 1) < 5 / math.sqrt(2 * noise.size)
    assert abs(noise.mean()) < 5 * sigma / math.sqrt(noise.size)
    assert model.scale.grad is not None
    assert model.scale.grad.shape == ()
    assert model.frozen.grad is None


def test_noise_is_added_to_the_gradients_and_never_the_same() -> None:
    """A scale of zero adds nothing; two releases differ."""
    privacy = DifferentialPrivacy(1.0, 1e-5, 1.0)
    model = with_gradients(1.0, 2.0)
    assert privacy.add_noise(model, 0.0) == 0.0
    assert model.matrix.grad is not None
    assert model.matrix.grad.eq(1).all()
    assert privacy.add_noise(model, 0.5) == 0.5
    first = model.matrix.grad.numpy().copy()
    assert not np.array_equal(first, np.ones((3, 2)))
    privacy.add_noise(model, 0.5)
    assert not np.array_equal(model.matrix.grad.numpy() - first, first - 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_refused_untouched(bad: float) -> None:
    """NaN would pass a comparison with the norm, and Inf would make zeros of everything else."""
    privacy = DifferentialPrivacy(1.0, 1e-5, 0.1)
    for act in (privacy.clip_gradients, privacy.add_noise):
        model = with_gradients(1.0, bad)
        with pytest.raises(PrivacyError, match="NaN or Inf"):
            act(model)
        assert model.matrix.grad is not None
        assert model.matrix.grad.eq(1).all()


def test_half_precision_gradients_are_clipped_too() -> None:
    """The arithmetic is float32 and wider, the gradient keeps its type."""
    model = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    model.weight.grad = torch.full((4, 4), 8.0, dtype=torch.bfloat16)
    DifferentialPrivacy(1.0, 1e-5, 1.0).clip_gradients(model)
    assert model.weight.grad.dtype == torch.bfloat16
    assert norm(model) == pytest.approx(1.0, rel=1e-2)


def test_what_is_out_of_range_is_refused() -> None:
    """Budgets, clip norms, noise scales; and a model without gradients."""
    for values in (
        (0.0, 1e-5, 1.0),
        (1.0, 0.0, 1.0),
        (1.0, 1.0, 1.0),
        (1.0, 1e-5, 0.0),
        (1.0, 1e-5, math.nan),
    ):
        with pytest.raises(PrivacyError, match="must be"):
            DifferentialPrivacy(*values)
    privacy = DifferentialPrivacy(1.0, 1e-5, 1.0)
    with pytest.raises(PrivacyError, match="noise_scale"):
        privacy.add_noise(Model(), -1.0)
    with pytest.raises(PrivacyError, match="call backward"):
        privacy.clip_gradients(Model())
    with pytest.raises(PrivacyError, match="no parameter"):
        privacy.add_noise(nn.ReLU())
