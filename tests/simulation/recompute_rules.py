"""The combined update under another rule than the mean, computed a second time from whole vectors in memory.

Sums are of Python's own integers, medians and trimmed means are sorted coordinate by coordinate; distances come from
the numpy definition of the kernels. What comes out must have the same bits as the fold's pieces.
"""

import math
from collections.abc import Mapping, Sequence
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from fedmq.broker.rows import AcceptRow, VersionRow
from fedmq.fedcore import config
from fedmq.fedcore.kernels import reference
from fedmq.fedcore.kernels.reference_sums import frac_bits_for

F32 = NDArray[np.float32]
Rule = config.NormBound | config.Median | config.TrimmedMean | config.CenteredClipping
"""The rules that simulated federations have."""


def combined(
    rule: Rule,
    made: VersionRow,
    rows: Sequence[AcceptRow],
    deltas: Mapping[bytes, F32],
    masses: Sequence[int],
    before: F32,
) -> F32:
    """d, where `before` is the d of the version before."""
    match rule:
        case config.NormBound(max_norm=bound):
            factors = [row.weight * (bound / row.norm if row.norm > bound else 1.0) for row in rows]
            assert made.denominator == float(sum(masses)), "the denominator"
            return _exact(made, [(deltas[row.task], f) for row, f in zip(rows, factors, strict=True)])
        case config.Median() | config.TrimmedMean():
            assert (made.frac_bits, made.denominator) == (None, None), "there is no sum"
            cut = (len(rows) - 1) // 2 if isinstance(rule, config.Median) else int(rule.trim * len(rows))
            columns = zip(*(_scaled(row, deltas).tolist() for row in rows), strict=True)
            return np.array([_middle(column, cut) for column in columns], np.float64).astype(np.float32)
        case config.CenteredClipping():
            return _clipped(rule, made, rows, deltas, before)
        case _:
            assert_never(rule)


def _scaled(row: AcceptRow, deltas: Mapping[bytes, F32]) -> F32:
    return (deltas[row.task].astype(np.float64) * row.weight).astype(np.float32)


def _middle(values: Sequence[float], cut: int) -> float:
    """The mean of what is left when `cut` values are gone at each end; of one or two of them, the median."""
    kept = sorted(values)[cut : len(values) - cut]
    total = 0.0
    for value in kept:
        total += value
    return total / len(kept)


def _clipped(
    rule: config.CenteredClipping,
    made: VersionRow,
    rows: Sequence[AcceptRow],
    deltas: Mapping[bytes, F32],
    before: F32,
) -> F32:
    """One step of centered clipping from `before`, as an average on the grid."""
    assert rule.iterations == 1
    unit = 2.0 ** (frac_bits_for(2.0**20 * math.sqrt(reference.sum_squares(before)), 1) + 20)
    center = (np.rint(before.astype(np.float64) * unit) / unit).astype(np.float32)
    pulls = []
    for row in rows:
        distance = math.sqrt(reference.pairwise_sq_distances([_scaled(row, deltas), center])[0, 1])
        pulls.append(rule.radius / max(distance, rule.radius) / len(rows))
    kept = max(1 - math.fsum(pulls), 0.0)
    shares = [_dyadic(c / max(*pulls, kept) * 2.0**20) for c in (*pulls, kept)]
    assert made.denominator == math.fsum(shares), "the denominator"
    terms = [
        (deltas[row.task], _dyadic(share * row.weight)) for row, share in zip(rows, shares[:-1], strict=True)
    ]
    return _exact(made, [*terms, (before, shares[-1])])


def _dyadic(weight: float) -> float:
    return round(weight * 2**20) / 2**20


def _exact(made: VersionRow, terms: Sequence[tuple[F32, float]]) -> F32:
    """Σ w x / D in whole numbers of 2^-F."""
    assert made.frac_bits is not None
    assert made.denominator is not None
    unit = 2.0**made.frac_bits
    steps = [
        [round(q) for q in (x.astype(np.float64) * (w * unit)).tolist()] for x, w in terms
    ]  # ties go to even
    return np.array(
        [float(sum(column)) / (made.denominator * unit) for column in zip(*steps, strict=True)], np.float64
    ).astype(np.float32)
