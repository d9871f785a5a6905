"""A black-box audit: run neighbours, guess which one it was, and hold the claim against what guessing achieves.

The adversary picks the records and sees the model after the training. One record, the canary, alone has a value in the
last feature, so that the weight of that feature moves for it and for noise. How well a threshold on it tells the two
worlds apart bounds ε from below (Jagielski et al., arXiv:2006.07709), with Clopper–Pearson intervals.
"""

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta

from fedmq.worker.adapters.linear import LinearGradients
from fedmq.worker.privacy import LocalPrivacy
from fedmq.worker.privacy.training import noisy_mean

from .private import Keys, plan

RUNS = 2500
DELTA = 1e-5
X = np.array([[1, 0, 0], [-1, 1, 0], [0, 1, 0], [0.5, -1, 0], [0, 0, 1]], np.float32)  # the last: the canary
Y = np.array([1, -1, 0.5, 2, 1000])


class Heavy(LinearGradients):
    """A model that hands each record over five times, as if it had been clipped to five times the norm."""

    def rows(self, flat: Any, indices: Any) -> Iterator[Any]:
        return super().rows(flat, np.repeat(indices, 5))


def outcomes(model: LinearGradients, used: LocalPrivacy, seed: int) -> NDArray[np.float64]:
    """The canary's weight after `max_steps` steps, in many runs."""
    keys = Keys(seed)
    seen = np.zeros(RUNS)
    for run in range(RUNS):
        flat = np.zeros(model.trained.n, np.float32)
        for _ in range(used.max_steps):
            flat -= noisy_mean(model, flat, used, random=keys)
        seen[run] = flat[2]
    return seen


def lower_bound(without: NDArray[np.float64], with_: NDArray[np.float64]) -> float:
    """ε is at least this with a confidence of 99.9 %: threshold from one half of the runs, rates from the other."""
    half = RUNS // 2
    thresholds = np.quantile(without[:half], [0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0])
    return max(_bound(without[half:] > t, with_[half:] > t, 1e-3 / len(thresholds)) for t in thresholds)


def _bound(false: NDArray[np.bool_], true: NDArray[np.bool_], alpha: float) -> float:
    n, fp, tp = len(false), int(false.sum()), int(true.sum())
    highest_fpr = float(beta.ppf(1 - alpha / 2, fp + 1, n - fp)) if fp < n else 1.0
    lowest_tpr = float(beta.ppf(alpha / 2, tp, n - tp + 1)) if tp else 0.0
    return math.log((lowest_tpr - DELTA) / highest_fpr) if lowest_tpr > DELTA else 0.0


def audit(claimed: LocalPrivacy, used: LocalPrivacy, kind: type[LinearGradients] = LinearGradients) -> float:
    """The empirical lower bound on ε, in two worlds that differ in the canary."""
    worlds = [kind((X[:n], Y[:n]), kind="linear") for n in (4, 5)]
    return lower_bound(outcomes(worlds[0], used, seed=1), outcomes(worlds[1], used, seed=2))


CLAIMS = [
    plan(noise_multiplier=1.5, sampling_rate=1.0, max_steps=1),
    plan(noise_multiplier=1.5, sampling_rate=0.5, max_steps=3),
]


@pytest.mark.parametrize("claimed", CLAIMS, ids=["one step", "three sampled steps"])
def test_an_adversary_finds_less_than_is_claimed(claimed: LocalPrivacy) -> None:
    """And finds something, or the audit would be blind."""
    found = audit(claimed, claimed)
    assert 0.1 < found < claimed.planned_epsilon()


@pytest.mark.parametrize(
    ("claimed", "part"), list(zip(CLAIMS, (0.2, 0.1), strict=True)), ids=["one step", "three sampled steps"]
)
def test_the_audit_catches_too_little_noise(claimed: LocalPrivacy, part: float) -> None:
    """A fifth or a tenth of what was claimed: the adversary then finds more than the claim."""
    used = msgspec.structs.replace(claimed, noise_multiplier=part * claimed.spend.noise_multiplier)
    assert audit(claimed, used) > claimed.planned_epsilon()


def test_the_audit_catches_a_record_that_weighs_too_much() -> None:
    """Five times the clip norm."""
    assert audit(CLAIMS[0], CLAIMS[0], Heavy) > CLAIMS[0].planned_epsilon()
