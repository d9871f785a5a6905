"""How large everything is, whether it fits into memory, and the updates that are folded.

Updates are rows of one block, made once and used by all topics. A row is padded, so that rows do not all start at
the same place of a cache, and the block is what a peer gets that wants its updates stacked beforehand.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedmq.fedcore import kernels
from fedmq.fedcore.errors import ConfigError

from ...status_view import size

__all__ = ["BAR_K", "BAR_N", "QUICK_N", "Updates", "Workload", "check_memory", "make_updates", "needed_bytes"]

F32 = NDArray[np.float32]

BAR_N: Final = 10_000_000
BAR_K: Final = 32
QUICK_N: Final = 1_000_000
LAYERS: Final = 16
"""Into how many arrays a model is cut for peers that keep one array a layer."""

_PAD: Final = 272  # values: an odd number of cache lines
_WHOLE: Final = 3
"""Copies of all updates at the peak: themselves, Flower's serialized ones, and what Flower or torch allocates."""
_SINGLE: Final = 40
"""Vectors of n values besides: outputs, sums in 64 bits, each contestant's optimizer state."""
_ROOM: Final = 0.9


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for."""

    n: int = BAR_N
    k: int = BAR_K
    threads: tuple[int, ...] = (1, 2)

    @property
    def small_n(self) -> int:
        """For what takes K² or K log K steps a value: medians, distances."""
        return max(1, self.n // 10)

    @property
    def is_the_bars(self) -> bool:
        """Whether these are the sizes that the bars are about."""
        return (self.n, self.k) == (BAR_N, BAR_K)


class Updates(msgspec.Struct, frozen=True):
    """K updates of n float32 values, the examples behind them, and what an exact fold of them needs.

    Attributes
    ----------
    rows : list of ndarray
        Each update.
    block : ndarray, float32[K, n]
        The same memory.
    weights : list of float
        Whole numbers, as examples are.
    frac_bits : int
        F for the exact sum, derived once from the norms: the timed folds do not derive it.
    """

    rows: list[F32]
    block: F32
    weights: list[float]
    norms: list[float]
    frac_bits: int

    @property
    def n(self) -> int:
        """Values in an update."""
        return self.rows[0].size

    @property
    def k(self) -> int:
        """How many there are."""
        return len(self.rows)

    def layers(self, row: F32) -> list[F32]:
        """An update as a model's layers, in the same memory."""
        return [part for part in np.array_split(row, LAYERS) if part.size]


def make_updates(n: int, k: int, seed: int = 0) -> Updates:
    """Draw updates of which each value is N(0, 1)."""
    block = np.empty((k, n + _PAD), np.float32)[:, :n]
    rows = list(block)
    streams = np.random.SeedSequence(seed).spawn(k)
    for row, stream in zip(rows, streams, strict=True):
        np.random.Generator(np.random.SFC64(stream)).standard_normal(out=row, dtype=np.float32)
    weights = [float(10 + 7 * i % 23) for i in range(k)]
    norms = [kernels.sum_squares(row) ** 0.5 for row in rows]
    bound = max(weight * norm for weight, norm in zip(weights, norms, strict=True))
    return Updates(rows, block, weights, norms, kernels.frac_bits_for(bound, k))


def exact_mean(rows: Sequence[NDArray[Any]], weights: Sequence[float]) -> F32:
    """The weighted mean in float64, by plain numpy: what every contestant must come to."""
    total = np.zeros(rows[0].size)
    for row, weight in zip(rows, weights, strict=True):
        total += weight * row.astype(np.float64)
    return (total / sum(weights)).astype(np.float32)


def needed_bytes(n: int, k: int) -> int:
    """Memory at the peak, about."""
    return 4 * n * (_WHOLE * k + _SINGLE)


def check_memory(workload: Workload, free: int | None) -> None:
    """Refuse what would not fit.

    Raises
    ------
    ConfigError
        With an --n and a --k that would fit.
    """
    n, k = workload.n, workload.k
    if free is None or needed_bytes(n, k) <= _ROOM * free:
        return
    fits_n = int(_ROOM * free / needed_bytes(1, k))
    fits_k = int((_ROOM * free / (4 * n) - _SINGLE) / _WHOLE)
    hints = [f"--n {fits_n}"] + ([f"--k {fits_k}"] if fits_k >= 4 else [])
    raise ConfigError(
        f"--n {n} --k {k} needs about {size(needed_bytes(n, k))} of memory and {size(free)} are free; "
        f"{' or '.join(hints)} would fit"
    )
