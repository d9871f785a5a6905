"""Rounds that a coin opened become versions: noise over a constant, whoever came."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmq.broker.aggregator import fold
from fedmq.broker.events import Folded
from fedmq.broker.fold_job import plan_fold
from fedmq.broker.rows import AcceptRow, VersionInfo
from fedmq.broker.store.spool import Spool
from fedmq.broker.store.versions import VersionStore
from fedmq.fedcore import config, kernels, model_file
from fedmq.fedcore.privacy.mechanisms import NOISE_NONCE
from fedmq.fedcore.privacy.sampled_workers import SampledWorkers

F32 = NDArray[np.float32]
MASTER = b"m" * 32
N = 3000
USED = SampledWorkers(clip_norm=0.5, noise_multiplier=0.8, sampling_rate=0.3, divisor=4.0)


def row(number: int, update: F32, weight: float = 1.0) -> AcceptRow:
    payload = update.tobytes()
    return AcceptRow(
        task=number.to_bytes(4, "big"),
        worker=f"w{number}",
        base=0,
        buffer=0,
        tau=0,
        weight=weight,
        examples=1,
        norm=math.sqrt(kernels.sum_squares(payload)),
        encoding="f32",
        size=len(payload),
        digest=model_file.digest(payload),
        inline=payload,
    )


def release(folder: Path, rows: list[AcceptRow]) -> tuple[F32, Folded]:
    """The first version that is made of these, from a model of zeros."""
    versions, spool = VersionStore(folder / "versions", fsync=False), Spool(folder / "spool", fsync=False)
    made = model_file.from_arrays({"w": np.zeros(N, np.float32)})
    written = versions.write(0, made.chunks)
    base = VersionInfo(version=0, digest=written.digest, size=written.size, layout=made.layout.digest, n=N)
    job = plan_fold(
        base, rows, weighting="uniform", optimizer=config.Sgd(), mechanism=USED, master_key=MASTER
    )
    done = fold(job, versions, spool)
    return made.layout.flat(versions.file(1)), done


def test_an_empty_round_is_exactly_its_noise(tmp_path: Path) -> None:
    """N(0, (z·S)²) of the version's own stream, over the constant D, and the same again after a crash."""
    found, done = release(tmp_path / "once", [])
    assert done.noise_key is not None
    assert done.frac_bits is not None
    noise = kernels.Accumulator(N, frac_bits=done.frac_bits)
    noise.add_noise(0.8 * 0.5, key=done.noise_key, nonce=NOISE_NONCE)
    assert np.array_equal(found, noise.mean(4.0))
    assert float(np.std(found)) == pytest.approx(0.4 / 4, rel=0.1)
    assert np.array_equal(found, release(tmp_path / "again", [])[0])
    assert (done.updates, done.denominator, done.sigma, done.charged) == (0, 4.0, 0.4, None)


def test_updates_are_clipped_and_divided_by_the_constant(tmp_path: Path) -> None:
    """One that is far too long adds S; one that is not finite adds nothing; who is missing changes no divisor."""
    long, broken = np.zeros(N, np.float32), np.full(N, np.nan, np.float32)
    long[7] = 1000.0
    found, done = release(tmp_path, [row(1, long), row(2, broken)])
    assert done.noise_key is not None
    assert done.frac_bits is not None
    noise = kernels.Accumulator(N, frac_bits=done.frac_bits)
    noise.add_noise(done.sigma, key=done.noise_key, nonce=NOISE_NONCE)
    moved = found - noise.mean(4.0)
    assert moved[7] == pytest.approx(0.5 / 4, rel=1e-5)
    assert float(np.abs(np.delete(moved, 7)).max()) == 0.0


def test_the_grid_does_not_tell_how_many_came() -> None:
    """It is laid for more workers than one broker can ask; a weight that is not one is refused."""
    base = VersionInfo(version=0, digest=b"", size=0, layout=b"", n=1)
    one = np.ones(1, np.float32)

    def frac_bits(rows: list[AcceptRow]) -> int | None:
        plan = plan_fold(
            base, rows, weighting="uniform", optimizer=config.Sgd(), mechanism=USED, master_key=MASTER
        )
        return plan.frac_bits

    assert frac_bits([]) == frac_bits([row(i, one) for i in range(1500)])
    with pytest.raises(ValueError, match="weight"):
        frac_bits([row(1, one, weight=0.5)])
