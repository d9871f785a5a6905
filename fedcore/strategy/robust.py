"""The robust combination rules: they bound what a minority of updates can do, whatever it sends.

Each is a small frozen struct with a `prepare` (`combination.Rule`), composed from parts that stand elsewhere: Krum's
choice from a matrix of distances (`selection`), an average on an exact grid (`combination.mixture_of`), the
kernels' median and trimmed mean.

What holds for all of them but the norm bound:

- They combine uᵢ = s(τᵢ) Δᵢ: a stale update is as much smaller as it is in the mean of FedBuff, so that without
  attackers each rule estimates that mean, (1/K) Σ s(τᵢ) Δᵢ. A stale update is nearer to zero than a fresh one,
  and may look like an outlier for it: with robust rules keep `max_staleness` low.
- No weight by examples: a worker's number of examples is its own claim. The config refuses it.
- f counts updates, and `one_per_worker` makes it count workers. It does not stop somebody who joins under
  many names: that takes keys and an allowlist.
"""

import math
from typing import assert_never

import msgspec
import numpy as np
from numpy.typing import NDArray

from .. import config, kernels
from . import user_rule
from .combination import Coordinates, Mixture, Rule, Updates, mixture_of
from .selection import krum_order, repeated_krum

__all__ = [
    "Bulyan",
    "CenteredClipping",
    "GeometricMedian",
    "Mean",
    "Median",
    "MultiKrum",
    "NormBound",
    "TrimmedMean",
    "around_median",
    "make",
]

F32 = NDArray[np.float32]


class Median(msgspec.Struct, frozen=True):
    """d_j = median of u_{1j} … u_{Kj}; of an even number, the mean of the two in the middle.

    References
    ----------
    Yin et al., *Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates*, arXiv:1803.01498.
    """

    minimum: int = 3
    seeded: bool = False

    def prepare(self, updates: Updates) -> Coordinates:
        """No pass of its own."""
        return Coordinates(lambda x: kernels.median(list(x)))


class TrimmedMean(msgspec.Struct, frozen=True):
    """d_j = mean of u_{1j} … u_{Kj} without the ⌊βK⌋ smallest and the ⌊βK⌋ largest.

    References
    ----------
    Yin et al., arXiv:1803.01498.
    """

    table: config.TrimmedMean
    seeded: bool = False

    @property
    def minimum(self) -> int:
        """With fewer, ⌊βK⌋ = 0 and nothing would be cut."""
        return self.table.minimum

    def prepare(self, updates: Updates) -> Coordinates:
        """No pass of its own."""
        cut = self.table.cut(len(updates))
        return Coordinates(lambda x: kernels.trimmed_mean(list(x), cut))


class MultiKrum(msgspec.Struct, frozen=True):
    """d = mean of the m updates with the lowest scores; with m = 1, Krum.

    score(i) = Σ ‖uᵢ − uⱼ‖² over the K − f − 2 others that are closest. K ≥ 2f + 3, and m ≤ K − f − 2.

    Parameters
    ----------
    f : int
    m : int
        0 for K − f − 2.

    References
    ----------
    Blanchard et al., arXiv:1703.02757; Damaskinos et al. (AggregaThor, the bound on m), MLSys 2019.
    """

    f: int
    m: int
    minimum: int
    seeded: bool = False

    def prepare(self, updates: Updates) -> Mixture:
        """One pass, for the distances."""
        m = self.m or len(updates) - self.f - 2
        chosen = set(krum_order(updates.sq_distances(), self.f)[:m])
        weights = tuple(s if i in chosen else 0.0 for i, s in enumerate(updates.weights))
        return Mixture(weights=weights, denominator=float(m))


class Bulyan(msgspec.Struct, frozen=True):
    """θ = K − 2f updates chosen by Krum one after the other; of each coordinate, the mean of the θ − 2f values
    that are closest to their median. K ≥ 4f + 3.

    References
    ----------
    El Mhamdi et al., arXiv:1802.07927.
    """

    f: int
    minimum: int
    seeded: bool = False

    def prepare(self, updates: Updates) -> Coordinates:
        """One pass, for the distances."""
        theta = len(updates) - 2 * self.f
        chosen = repeated_krum(updates.sq_distances(), self.f, theta)
        return Coordinates(lambda x: around_median(x, theta - 2 * self.f), tuple(chosen))


class GeometricMedian(msgspec.Struct, frozen=True):
    """d = argmin Σ ‖uᵢ − d‖, approached by smoothed Weiszfeld steps from the mean:

    βᵢ = 1 / max(ν, ‖uᵢ − d‖),      d ← Σ βᵢ uᵢ / Σ βᵢ.

    References
    ----------
    Pillutla et al., *Robust Aggregation for Federated Learning* (RFA), arXiv:1912.13445.
    """

    iterations: int
    smoothing: float
    minimum: int = 3
    seeded: bool = False

    def prepare(self, updates: Updates) -> Mixture:
        """A pass for each step."""
        mixture = mixture_of([1.0] * len(updates), updates.weights)
        for _ in range(self.iterations):
            distances = np.sqrt(updates.sq_distances_to(mixture))
            mixture = mixture_of((1.0 / np.maximum(self.smoothing, distances)).tolist(), updates.weights)
        return mixture


class CenteredClipping(msgspec.Struct, frozen=True):
    """d ← d + (1/K) Σ (uᵢ − d) · min(1, r / ‖uᵢ − d‖), from d = v, the combined update of the version before.

    The paper has workers send momenta; an update of several local steps plays that part here.

    References
    ----------
    Karimireddy, He, Jaggi, *Learning from History for Byzantine Robust Optimization*, arXiv:2012.10333.
    """

    radius: float
    iterations: int
    minimum: int = 1
    seeded: bool = True

    def prepare(self, updates: Updates) -> Mixture:
        """A pass for each step."""
        coefficients, previous = np.zeros(len(updates)), 1.0
        mixture = mixture_of(coefficients.tolist(), updates.weights, previous)
        for _ in range(self.iterations):
            distances = np.sqrt(updates.sq_distances_to(mixture))
            # Never above 1, and never a division by a distance of 0.
            pulls = self.radius / np.maximum(distances, self.radius) / len(updates)
            kept = max(1.0 - math.fsum(pulls.tolist()), 0.0)
            coefficients, previous = kept * coefficients + pulls, kept * previous
            mixture = mixture_of(coefficients.tolist(), updates.weights, previous)
        return mixture


class NormBound(msgspec.Struct, frozen=True):
    """d = Σ wᵢ Δᵢ min(1, S / ‖Δᵢ‖) / Σ mᵢ: the mean, with its weights, of updates clipped to a norm.

    A minority can still steer, but only so fast. Weights by examples are allowed: bound them by `max_examples`.

    References
    ----------
    Sun et al., *Can You Really Backdoor Federated Learning?*, arXiv:1911.07963.
    """

    max_norm: float
    minimum: int = 1
    seeded: bool = False

    def prepare(self, updates: Updates) -> Mixture:
        """No pass of its own: norms are in the accept rows."""
        return Mixture(
            weights=updates.weights, denominator=float(sum(updates.masses)), max_norm=self.max_norm
        )


class Mean(msgspec.Struct, frozen=True):
    """d = Σ wᵢ Δᵢ / Σ mᵢ: see `rules`, where weights and masses come from."""

    minimum: int = 1
    seeded: bool = False

    def prepare(self, updates: Updates) -> Mixture:
        """No pass of its own."""
        return Mixture(weights=updates.weights, denominator=float(sum(updates.masses)))


def make(table: config.Rule) -> Rule:
    """The rule that ``[aggregate] rule`` names.

    Raises
    ------
    ConfigError
        When it is the user's own, and cannot be loaded.

    Examples
    --------
    >>> make(config.Krum(byzantine=2))
    MultiKrum(f=2, m=1, minimum=7, seeded=False)
    """
    match table:
        case config.Mean():
            return Mean()
        case config.Median():
            return Median()
        case config.TrimmedMean():
            return TrimmedMean(table)
        case config.Krum():
            return MultiKrum(table.byzantine, 1, table.minimum)
        case config.MultiKrum():
            return MultiKrum(table.byzantine, table.selected, table.minimum)
        case config.Bulyan():
            return Bulyan(table.byzantine, table.minimum)
        case config.GeometricMedian():
            return GeometricMedian(table.iterations, table.smoothing)
        case config.CenteredClipping():
            return CenteredClipping(table.radius, table.iterations)
        case config.NormBound():
            return NormBound(table.max_norm)
        case config.UserRule():
            return user_rule.load(table.app)
        case _:
            assert_never(table)


def around_median(x: F32, count: int) -> NDArray[np.float64]:
    """The mean of the `count` values of each column that are closest to the column's median, in float64.

    In order of size these are neighbours: a window that moves up as long as the next value above is closer than the
    lowest inside. Of two that are equally close, the smaller one counts.

    Examples
    --------
    >>> around_median(np.array([[0.0], [10.0], [11.0], [12.0], [90.0]], np.float32), 3).tolist()
    [11.0]
    """
    x += np.float32(0)  # −0 + 0 is +0
    middle = kernels.median(list(x)).astype(np.float64)
    x.sort(axis=0)
    k = len(x)
    first = np.zeros(x.shape[1], np.intp)
    for i in range(k - count):
        first += (x[i + count] - middle) < (middle - x[i])
    total = np.zeros(x.shape[1])
    for r in range(k):
        total += np.where((first <= r) & (r < first + count), x[r], np.float32(0))
    return total / count
