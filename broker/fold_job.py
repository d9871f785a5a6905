"""What to fold, and onto what: everything about a version that is to be made, from what was accepted and configured.

A `FoldJob` says all that there is to know: `aggregator.fold` makes the same bytes of the same job, however often. Pure.
"""

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from fedmq.fedcore import config as configs
from fedmq.fedcore import kernels
from fedmq.fedcore.config import Optimizer
from fedmq.fedcore.privacy.correlated_level import CorrelatedWorkerLevel
from fedmq.fedcore.privacy.mechanisms import Mechanism, RecordLevel, WorkerLevel, frozen_digest, noise_key
from fedmq.fedcore.privacy.sampled_workers import SampledWorkers
from fedmq.fedcore.strategy.rules import Share, Weighting, denominator

from .rows import AcceptRow, VersionInfo

__all__ = ["FoldJob", "Release", "plan_fold"]

MEAN: Final = configs.Mean()

PRIVATE_ROWS: Final = 1024
"""The grid of a private sum is laid for this many rows, or the next power of two above their number."""

SAMPLED_ROWS: Final = 1 << 20
"""Likewise where a coin decides how many there are, and the grid must not tell: more than one broker can ask."""


class Release(msgspec.Struct, frozen=True):
    """What privacy demands of one version.

    Attributes
    ----------
    max_norm
        Each update is scaled down to it, rounding toward zero.
    sigma
        The standard deviation of the noise on the sum.
    key
        32 bytes: the stream of this version's noise, and of no other.
    charged
        z, where each worker in the buffer is charged for its part.
    next_clip_norm
        `max_norm` of the version after, where it is adapted.
    taken_back
        Signed standard deviations of noise of earlier versions, each with its key (correlated noise).
    whole_run
        `charged` is for all versions together, so that a worker is charged once.
    """

    max_norm: float
    sigma: float
    key: bytes
    charged: float | None = None
    next_clip_norm: float | None = None
    taken_back: tuple[tuple[float, bytes], ...] = ()
    whole_run: bool = False


class FoldJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to fold, and onto what.

    Attributes
    ----------
    base
        The version that the buffer builds on; the job makes the one after it.
    rows
        The frozen buffer. A row without `inline` has its payload in the spool.
    optimizer
        The server optimizer, as configured.
    frac_bits
        F, the grid of the exact sum; None where the rule must look at the updates first.
    denominator
        D, likewise.
    rule
        How the updates are combined, as configured.
    weighting
        What an update's mass is.
    release
        None without privacy.
    threads
        Of the kernels; None leaves it to them.
    """

    base: VersionInfo
    rows: tuple[AcceptRow, ...]
    optimizer: Optimizer
    frac_bits: int | None = None
    denominator: float | None = None
    rule: configs.Rule = MEAN
    weighting: Weighting = "uniform"
    release: Release | None = None
    threads: int | None = None


def plan_fold(
    base: VersionInfo,
    rows: Sequence[AcceptRow],
    *,
    weighting: Weighting,
    optimizer: Optimizer,
    rule: configs.Rule = MEAN,
    mechanism: Mechanism | None = None,
    master_key: bytes = b"",
    earlier: Sequence[bytes] = (),
    threads: int | None = None,
) -> FoldJob:
    """Derive everything about a fold from what was accepted and what was configured.

    Parameters
    ----------
    base
        The version that the buffer builds on.
    rows
        The frozen buffer, in any order, their inline payloads filled in.
    weighting
        What divides: the sum of example counts, or the number of updates (`strategy.rules`).
    rule
        How the updates are combined; with privacy, the mean.
    mechanism, master_key
        With privacy: the constants of the mechanism and the key that noise keys derive from.
    earlier
        The noise keys of the versions before, the last one's first; as many as correlated noise mixes.

    Raises
    ------
    PrivacyError
        When the version is none that the noise is planned for, or an earlier key is missing.
    ValueError
        When there is nothing to fold without privacy, or a row cannot be in a buffer: a norm that is
        not finite, or a weight that the mechanism does not admit.
    """
    rows = tuple(sorted(rows, key=lambda row: row.task))
    if mechanism is not None:
        return _plan_private(base, rows, optimizer, mechanism, master_key, earlier, threads)
    shares = (Share(row.weight, row.examples if weighting == "examples" else 1) for row in rows)
    bounds = [row.weight * row.norm for row in rows]
    if not all(map(math.isfinite, bounds)):
        raise ValueError("a frozen buffer holds an update whose norm is not finite")
    if not isinstance(rule, configs.Mean):
        return FoldJob(
            base=base, rows=rows, optimizer=optimizer, rule=rule, weighting=weighting, threads=threads
        )
    return FoldJob(
        base=base,
        rows=rows,
        frac_bits=kernels.frac_bits_for(max(bounds, default=0.0), len(rows)),
        denominator=denominator(shares),
        optimizer=optimizer,
        weighting=weighting,
        threads=threads,
    )


def _plan_private(
    base: VersionInfo,
    rows: tuple[AcceptRow, ...],
    optimizer: Optimizer,
    mechanism: Mechanism,
    master_key: bytes,
    earlier: Sequence[bytes],
    threads: int | None,
) -> FoldJob:
    if not all(mechanism.admits(row.weight) for row in rows):
        raise ValueError("a private sum holds an update whose weight its mechanism does not admit")
    clip = None
    if isinstance(mechanism, WorkerLevel | SampledWorkers):
        mechanism = mechanism.onto(base.clip_norm)
        clip = mechanism.clip
    # The grid must be public as well: it depends on constants, and on how many came only beyond 1024.
    least = SAMPLED_ROWS if isinstance(mechanism, SampledWorkers) else PRIVATE_ROWS
    most = max(least, 1 << (len(rows) - 1).bit_length() if rows else 0)
    correlated = mechanism if isinstance(mechanism, CorrelatedWorkerLevel) else None
    version, sigma = base.version + 1, mechanism.sigma
    frac_bits = kernels.frac_bits_for(
        mechanism.max_update_norm, most, sigma if correlated is None else correlated.spread
    )
    frozen = frozen_digest(
        ((r.task, r.digest) for r in rows),
        frac_bits=frac_bits,
        sigma=sigma,
        counted=None if clip is None else clip.counted,
    )
    used = () if correlated is None else correlated.used(version, earlier)
    key = noise_key(
        master_key, version=version, frozen=frozen if correlated is None else correlated.binds(frozen, used)
    )
    return FoldJob(
        base=base,
        rows=rows,
        frac_bits=frac_bits,
        denominator=mechanism.denominator,
        optimizer=optimizer,
        release=Release(
            mechanism.max_update_norm,
            sigma,
            key,
            charged=None
            if isinstance(mechanism, RecordLevel | SampledWorkers)
            else mechanism.noise_multiplier,
            next_clip_norm=None if clip is None else clip.next_norm((row.norm for row in rows), key),
            taken_back=() if correlated is None else correlated.taken_back(key, used),
            whole_run=correlated is not None,
        ),
        threads=threads,
    )
