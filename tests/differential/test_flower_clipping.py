"""Adaptive clipping beside Flower's server-side wrapper (flwr 1.41): the same rule, the other bit.

Flower's split of the noise is the same to the last digits. Its bit is 1 for an update that *was clipped*, and goes into
the paper's step as if it were 1 for one that was not: C shrinks when all updates are longer, and grows when all are
shorter. At the quantile γ = ½ the median is where it leaves from, instead of where it ends. And it adds the noise of
the next C to a sum that was clipped to this one: while C shrinks, less than was accounted for.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedmq.fedcore.privacy.adaptive import AdaptiveClipping, centred_count

from .flower import Code, FitRes, Status, ndarrays_to_parameters, strategy

LENGTHS = (1.0, 2.0, 3.0, 4.0, 5.0)
RULE = AdaptiveClipping(quantile=0.5, rate=0.2, count_noise=1.0)


def theirs(first: float, noise: float = 0.0, **options: Any) -> Any:
    """Flower's wrapper around FedAvg, without noise unless it is asked for."""
    return strategy.DifferentialPrivacyServerSideAdaptiveClipping(
        strategy.FedAvg(), noise, len(LENGTHS), initial_clipping_norm=first, **options
    )


def step(wrapper: Any) -> float:
    """One round of updates of these lengths; the clip norm after it."""
    wrapper.configure_fit(
        1,
        ndarrays_to_parameters([np.zeros(3)]),
        SimpleNamespace(num_available=lambda: 0, sample=lambda **_: []),
    )
    results = [
        (None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters([np.array([x, 0.0, 0.0])]), 1, {}))
        for x in LENGTHS
    ]
    wrapper.aggregate_fit(1, results, [])
    return float(wrapper.clipping_norm)


def ours(clip_norm: float) -> float:
    return RULE.next_clip_norm(
        clip_norm, count=centred_count(LENGTHS, clip_norm), denominator=float(len(LENGTHS))
    )


@pytest.mark.parametrize(("z", "count_noise"), [(1.0, 5.0), (1.9, 1.0), (0.1, 0.06)])
def test_the_noise_is_split_the_same_way(z: float, count_noise: float) -> None:
    """z_Δ = (z⁻² − (2σ_b)⁻²)^−½."""
    rule = AdaptiveClipping(quantile=0.5, rate=0.2, count_noise=count_noise)
    wrapper = theirs(1.0, z, clipped_count_stddev=count_noise)
    assert rule.update_noise(z) == pytest.approx(wrapper.noise_multiplier, rel=1e-12)


@pytest.mark.parametrize("first", [0.5, 2.5, 10.0])
def test_flowers_step_is_the_inverse(first: float) -> None:
    """The product of both steps is C²: what one multiplies by, the other divides by."""
    assert ours(first) * step(theirs(first)) == pytest.approx(first**2, rel=1e-12)


def test_flowers_clip_norm_collapses() -> None:
    """From a third of the median it falls below any update, where this one comes to the median."""
    wrapper, mine = theirs(1.0), 1.0
    for _ in range(150):
        step(wrapper)
        mine = ours(mine)
    assert wrapper.clipping_norm < 1e-4
    assert 2.9 < mine < 3.1


def test_flowers_noise_is_that_of_the_next_clip_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum was clipped to C; σ is z_Δ C′. Here it is z_Δ C (`test_adaptive_clip`)."""
    drawn = []

    def normal(loc: float, scale: float, size: Any = None) -> Any:
        drawn.append(scale)
        return loc if size is None else np.zeros(size)

    wrapper = theirs(0.5, 1.0, clipped_count_stddev=5.0)
    monkeypatch.setattr(np.random, "normal", normal)
    after = step(wrapper)
    assert after < 0.5
    assert drawn[-1] == pytest.approx(wrapper.noise_multiplier * after / len(LENGTHS), rel=1e-12)
