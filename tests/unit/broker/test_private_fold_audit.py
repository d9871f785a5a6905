"""A black-box audit of the broker's fold: fold neighbours, guess which one it was, and hold the claim against it.

The adversary knows every update but the canary's and sees the released models. In one world the canary's slot is
empty of what is hidden; in the other it pushes one coordinate as hard as the clip lets it. How well a threshold on
that coordinate tells the worlds apart bounds ε from below (Jagielski et al., arXiv:2006.07709), with Clopper–Pearson
intervals. δ is large here, so that a few thousand folds see near to the claim: half of the noise passes it.
"""

import math
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta

from fedmq.broker.aggregator import fold
from fedmq.broker.fold_job import plan_fold
from fedmq.broker.rows import AcceptRow, VersionInfo
from fedmq.broker.store.spool import Spool
from fedmq.broker.store.versions import VersionStore
from fedmq.fedcore import config, kernels, model_file
from fedmq.fedcore.privacy.accounting import Spend, epsilon, gaussian_epsilon
from fedmq.fedcore.privacy.mechanisms import Mechanism, RecordLevel
from fedmq.fedcore.privacy.sampled_workers import Coin, SampledWorkers

RUNS = 1200
DELTA = 0.2
F32 = NDArray[np.float32]

# A worker's whole update is clipped to S: a sum of one.
WORKER = RecordLevel(max_grad_norm=0.5, noise_multiplier=0.8, sampling_rate=1.0, divisor=2.0, max_batch=1)
RECORD = RecordLevel(max_grad_norm=0.5, noise_multiplier=0.8, sampling_rate=1.0, divisor=8.0, max_batch=8)
# A worker that a secret coin asks now and then.
SAMPLED = SampledWorkers(clip_norm=0.5, noise_multiplier=0.4, sampling_rate=0.3, divisor=2.0)


def flat(*values: float) -> F32:
    return np.array(values, np.float32)


# The canary's update without and with what is hidden; the other's is known to the adversary.
WORLDS = {
    "a worker": (WORKER, flat(0, 0, 0), flat(0, 0, 1000)),  # far too long: the broker clips it
    "a record": (RECORD, flat(1, -1, 0), flat(1, -1, 0.5)),  # one clipped gradient more in the sum
}


class Federation:
    """A state folder in which the same version is folded again and again."""

    def __init__(self, folder: Path) -> None:
        self.versions = VersionStore(folder / "versions", fsync=False)
        self.spool = Spool(folder / "spool", fsync=False)
        made = model_file.from_arrays({"w": flat(0, 0, 0)})
        written = self.versions.write(0, made.chunks)
        self.layout = made.layout
        self.base = VersionInfo(
            version=0, digest=written.digest, size=written.size, layout=made.layout.digest, n=3
        )

    def release(self, used: Mechanism, updates: list[F32]) -> F32:
        """One version, with a master key that nobody knows."""
        rows = [row(number, update) for number, update in enumerate(updates)]
        job = plan_fold(
            self.base,
            rows,
            weighting="uniform",
            optimizer=config.Sgd(),
            mechanism=used,
            master_key=os.urandom(32),
        )
        made = fold(job, self.versions, self.spool)
        # As it is on disk: the store may still map the one that this one replaced.
        return self.layout.flat(self.versions.path(made.info.version).read_bytes())


def row(number: int, update: F32) -> AcceptRow:
    payload = update.tobytes()
    return AcceptRow(
        task=bytes([number]),
        worker=f"w{number}",
        base=0,
        buffer=0,
        tau=0,
        weight=1.0,
        examples=1,
        norm=math.sqrt(kernels.sum_squares(payload)),
        encoding="f32",
        size=len(payload),
        digest=model_file.digest(payload),
        inline=payload,
    )


def outcomes(folder: Path, used: RecordLevel, canary: F32, versions: int) -> NDArray[np.float64]:
    """What the adversary sees of the canary's coordinate, summed over the versions, in many runs."""
    federation = Federation(folder)
    updates = [flat(0.1, 0.2, 0), canary]
    return np.array(
        [sum(float(federation.release(used, updates)[2]) for _ in range(versions)) for _ in range(RUNS)]
    )


def lower_bound(without: NDArray[np.float64], with_: NDArray[np.float64]) -> float:
    """ε is at least this with a confidence of 99.9 %: thresholds from one half of the runs, rates from the other."""
    half = len(without) // 2
    thresholds = np.quantile(without[:half], [0.6, 0.7, 0.8, 0.9, 0.95, 0.98])
    return max(_bound(without[half:] > t, with_[half:] > t, 1e-3 / len(thresholds)) for t in thresholds)


def _bound(false: NDArray[np.bool_], true: NDArray[np.bool_], alpha: float) -> float:
    n, fp, tp = len(false), int(false.sum()), int(true.sum())
    highest_fpr = float(beta.ppf(1 - alpha / 2, fp + 1, n - fp)) if fp < n else 1.0
    lowest_tpr = float(beta.ppf(alpha / 2, tp, n - tp + 1)) if tp else 0.0
    return math.log((lowest_tpr - DELTA) / highest_fpr) if lowest_tpr > DELTA else 0.0


def audit(folder: Path, used: RecordLevel, worlds: tuple[F32, F32], versions: int) -> float:
    """The empirical lower bound on ε in two worlds."""
    seen = [outcomes(folder / f"{i}", used, canary, versions) for i, canary in enumerate(worlds)]
    return lower_bound(*seen)


@pytest.mark.parametrize(("unit", "versions"), [("a worker", 1), ("a worker", 3), ("a record", 1)])
def test_an_adversary_finds_less_than_is_claimed(tmp_path: Path, unit: str, versions: int) -> None:
    """One version, or three with √3 the noise; and finds something, or the audit would be blind."""
    mechanism, *worlds = WORLDS[unit]
    z = mechanism.noise_multiplier * math.sqrt(versions)
    used = msgspec.structs.replace(mechanism, noise_multiplier=z)
    found = audit(tmp_path, used, (worlds[0], worlds[1]), versions)
    assert 0.05 < found < gaussian_epsilon(z / math.sqrt(versions), DELTA)


@pytest.mark.parametrize("unit", WORLDS)
def test_the_audit_catches_half_of_the_noise(tmp_path: Path, unit: str) -> None:
    """What the adversary then finds is above the claim."""
    claimed, *worlds = WORLDS[unit]
    used = msgspec.structs.replace(claimed, noise_multiplier=claimed.noise_multiplier / 2)
    found = audit(tmp_path, used, (worlds[0], worlds[1]), 1)
    assert found > gaussian_epsilon(claimed.noise_multiplier, DELTA)


def test_the_audit_catches_a_clip_that_is_too_wide(tmp_path: Path) -> None:
    """Three times the clip norm that the noise is for."""
    wide = msgspec.structs.replace(WORKER, max_batch=3)
    found = audit(tmp_path, wide, (flat(0, 0, 0), flat(0, 0, 1000)), 1)
    assert found > gaussian_epsilon(WORKER.noise_multiplier, DELTA)


def sampled(folder: Path, rate: float, canary: F32 | None) -> NDArray[np.float64]:
    """The canary's coordinate in rounds, each with a coin of its own that asks the canary at this rate."""
    federation = Federation(folder)
    seen = []
    for _ in range(RUNS // 3):
        updates = [flat(0.1, 0.2, 0)]
        if canary is not None and Coin(os.urandom(32), rate).takes(0, "w1"):
            updates.append(canary)
        seen.append(float(federation.release(SAMPLED, updates)[2]))
    return np.array(seen)


def test_a_secret_coin_hides_a_worker_as_well_as_is_claimed(tmp_path: Path) -> None:
    """Whose update counts as zero is as if it were not there; a coin that asks always is found out."""
    claimed = epsilon([Spend(SAMPLED.noise_multiplier, SAMPLED.sampling_rate)], DELTA)
    without = sampled(tmp_path / "without", 1.0, None)
    asked = sampled(tmp_path / "asked", SAMPLED.sampling_rate, flat(0, 0, 1000))
    assert lower_bound(without, asked) < claimed
    assert lower_bound(without, sampled(tmp_path / "always", 1.0, flat(0, 0, 1000))) > claimed
