"""The audit of `test_private_fold_audit`, of both sums that a version with an adapted clip norm releases.

The adversary reads the model and the next clip norm, from which the noisy count follows. In one world the canary
counts as zero; in the other it pushes its coordinate as hard as the clip lets it, and is counted as too long. The best
test adds both up, each in units of its variance. Most of what is charged goes to the count here: an audit of the model
alone would be blind to it.
"""

import math
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from fedmq.broker.aggregator import fold
from fedmq.broker.fold_job import plan_fold
from fedmq.fedcore import config
from fedmq.fedcore.privacy.accounting import gaussian_epsilon
from fedmq.fedcore.privacy.adaptive import AdaptiveClipping
from fedmq.fedcore.privacy.mechanisms import WorkerLevel

from .test_private_fold_audit import DELTA, F32, RUNS, Federation, flat, lower_bound, row

Z, CLIP, K = 0.8, 0.5, 2
RULE = AdaptiveClipping(quantile=0.5, rate=0.2, count_noise=0.45)
USED = WorkerLevel(CLIP, Z, K, RULE)
WITHOUT, WITH = flat(0, 0, math.nan), flat(0, 0, 1000)


def outcomes(folder: Path, canary: F32, count_noise: float) -> NDArray[np.float64]:
    """The adversary's statistic in many runs: the log-likelihood ratio, but for a constant."""
    federation = Federation(folder)
    base = msgspec.structs.replace(federation.base, clip_norm=CLIP)
    rows = [row(0, flat(0.1, 0.2, 0)), row(1, canary)]
    seen = np.empty(RUNS)
    for i in range(RUNS):
        job = plan_fold(
            base, rows, weighting="uniform", optimizer=config.Sgd(), mechanism=USED, master_key=os.urandom(32)
        )
        made = fold(job, federation.versions, federation.spool).info
        model = federation.layout.flat(federation.versions.path(1).read_bytes())
        assert made.clip_norm is not None
        count = -K * math.log(made.clip_norm / CLIP) / RULE.rate  # γ = ½
        seen[i] = K * float(model[2]) * CLIP / USED.sigma**2 - 0.5 * count / count_noise**2
    return seen


def audit(folder: Path, count_noise: float = RULE.count_noise) -> float:
    """The empirical lower bound on ε in two worlds, by an adversary who knows how much noise the count has."""
    without, with_ = (
        outcomes(folder / f"{i}", canary, count_noise) for i, canary in enumerate((WITHOUT, WITH))
    )
    return lower_bound(without, with_)


def test_an_adversary_who_reads_both_finds_less_than_is_claimed(tmp_path: Path) -> None:
    """And finds something, or the audit would be blind."""
    assert 0.05 < audit(tmp_path) < gaussian_epsilon(Z, DELTA)


def test_the_audit_catches_half_of_the_counts_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the adversary then finds is above the claim."""
    whole = AdaptiveClipping.noisy
    monkeypatch.setattr(AdaptiveClipping, "noisy", lambda rule, c, key: (c + whole(rule, c, key)) / 2)
    assert audit(tmp_path, RULE.count_noise / 2) > gaussian_epsilon(Z, DELTA)
