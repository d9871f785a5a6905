"""A frozen buffer as its combination rule sees it: K vectors on disk, read piece by piece.

Rules that hold here:

- Rows are in the order of their task ids, whatever order they came in.
- Nothing here is as large as the model: a pass holds `PIECE_VALUES` numbers of all updates together (at least
  `SEGMENT` of each), and a sum is folded from mapped payloads, up to `TOGETHER` of them in one pass over a tile.
- A distance is the sum over segments of `SEGMENT` elements, added from the first to the last. So neither the size
  of a piece or of a fold's tile nor threads show in it.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from fedmq.fedcore import kernels
from fedmq.fedcore.codecs import payload_size, topk_part
from fedmq.fedcore.layout import Flat
from fedmq.fedcore.privacy.mechanisms import NOISE_NONCE
from fedmq.fedcore.strategy.combination import Combination, Coordinates, Mixture

from .rows import AcceptRow
from .store.spool import Spool

__all__ = ["PIECE_VALUES", "SEGMENT", "TOGETHER", "FrozenBuffer"]

SEGMENT: Final = 16 * 1024
"""Elements over which a distance is taken at a time: a block of the kernels' sums, and of a topk payload."""

PIECE_VALUES: Final = 1 << 20
"""Decoded values in memory at a time, of all updates together."""

TOGETHER: Final = 64
"""Payloads that are mapped at a time, by all threads together, besides those that stay so. Each holds a descriptor; the
first ones stay mapped, because to map 32 payloads of 10 million values anew for each tile took a tenth of a fold."""

_SURPLUS: Final = 1.0 + 2.0**-32
"""A clipped update may be longer than the bound by roundings, and this is more than they are."""


class FrozenBuffer:
    """What `fedmq.fedcore.strategy.combination.Updates` describes, of rows and their payloads.

    Parameters
    ----------
    rows : sequence of AcceptRow
        In any order, their inline payloads filled in.
    spool : Spool
        Where the other payloads are.
    n : int
        Elements of the model.
    by_examples : bool
        Whether an update's mass is its number of examples, or 1.
    previous : float32[n], optional
        The combined update of the version before, for rules that are seeded with it.
    threads : int, optional
        Of the kernels.
    """

    def __init__(
        self,
        rows: Sequence[AcceptRow],
        spool: Spool,
        n: int,
        *,
        by_examples: bool = False,
        previous: Flat | None = None,
        threads: int | None = None,
    ) -> None:
        self._rows = sorted(rows, key=lambda row: row.task)
        self._spool = spool
        self._previous = previous
        self._threads = threads
        self._hands = 1
        """How many map payloads at the same time."""
        self._mixture: Mixture | None = None
        self._mixed: tuple[list[AcceptRow], list[float]] = [], []
        """What `_mixture` reads: asked for by each tile, and the same for all of them."""
        self._maps: dict[bytes, memoryview] = {}
        self._total: kernels.Accumulator | None = None
        self._total_of = (0, 0)
        """n and F of `_total`, which is kept from tile to tile: fresh memory costs a fault for each page."""
        self.n = n
        self.weights = tuple(row.weight for row in self._rows)
        self.masses = tuple(row.examples if by_examples else 1 for row in self._rows)
        self.norms = tuple(row.weight * row.norm for row in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def hand(self, threads: int | None, hands: int = 1) -> Self:
        """The same buffer for one of several threads: its sums are its own, and what is mapped is everybody's."""
        mine = copy.copy(self)
        mine._threads = threads
        mine._hands = hands
        mine._total, mine._total_of = None, (0, 0)
        return mine

    def sq_distances(self) -> NDArray[np.float64]:
        """‖uᵢ − uⱼ‖² of all pairs."""
        total = np.zeros((len(self), len(self)))
        for start, stop in self._pieces(0, self.n, len(self)):
            piece = [self._scaled(row, start, stop) for row in self._rows]
            for a, b in _segments(stop - start):
                total += kernels.pairwise_sq_distances([u[a:b] for u in piece], threads=self._threads)
        return total

    def sq_distances_to(self, mixture: Mixture) -> NDArray[np.float64]:
        """‖uᵢ − d‖² for the d that a mixture makes."""
        total = np.zeros(len(self))
        frac_bits = self.grid(mixture)
        for start, stop in self._pieces(0, self.n, 2):
            d = self.mix(mixture, frac_bits, start, stop, np.empty(stop - start, np.float32))
            for i, row in enumerate(self._rows):
                u = self._scaled(row, start, stop)
                for a, b in _segments(stop - start):
                    pair = kernels.pairwise_sq_distances([u[a:b], d[a:b]], threads=self._threads)
                    total[i] += pair[0, 1]
        return total

    def grid(self, mixture: Mixture) -> int:
        """F, the grid of a mixture's exact sum: the finest that the rows' norms allow."""
        bounds = []
        for row, weight in zip(*self._weighed(mixture), strict=True):
            bound = row.norm
            if mixture.max_norm is not None and bound > mixture.max_norm:
                bound = mixture.max_norm * _SURPLUS
            bounds.append(weight * bound)
        if mixture.previous:
            norm = kernels.Norm("f32")
            for start, stop in self._pieces(0, self.n, 1):
                norm.update(self._before(start, stop).data)
            bounds.append(kernels.dyadic(mixture.previous) * norm.value())
        return kernels.frac_bits_for(max(bounds, default=0.0), len(bounds))

    def combine(
        self, combination: Combination, frac_bits: int | None, start: int, stop: int, out: Flat
    ) -> Flat:
        """Elements [start, stop) of the combined update, into `out`; `frac_bits` is a mixture's `grid`."""
        if isinstance(combination, Coordinates):
            return self._apply(combination, start, stop, out)
        assert frac_bits is not None
        return self.mix(combination, frac_bits, start, stop, out)

    def mix(self, mixture: Mixture, frac_bits: int, start: int, stop: int, out: Flat) -> Flat:
        """Elements [start, stop) of a mixture, into `out`; `start` is a multiple of `SEGMENT`."""
        total = self._zero(frac_bits, start, stop)
        rows, weights = self._weighed(mixture)
        self._add(total, rows, weights, start, stop, max_norm=mixture.max_norm)
        if mixture.previous:
            total.add(self._before(start, stop).data, weight=mixture.previous)
        return total.mean(mixture.denominator, out=out)

    def noisy_mean(
        self,
        frac_bits: int,
        denominator: float,
        start: int,
        stop: int,
        out: Flat,
        *,
        max_norm: float,
        sigma: float,
        key: bytes,
        taken_back: Sequence[tuple[float, bytes]] = (),
    ) -> Flat:
        """Elements [start, stop) of the clipped and noised sum over D, into `out`.

        `taken_back`: signed standard deviations of earlier versions' noise, with their keys; it is drawn again by
        position, as it was drawn then. An update that is not finite counts as zero.
        """
        total = self._zero(frac_bits, start, stop)
        rows = [row for row in self._rows if math.isfinite(row.norm)]
        weights = [row.weight for row in rows]
        self._add(total, rows, weights, start, stop, max_norm=max_norm, truncate=True)
        total.add_noise(sigma, key=key, nonce=NOISE_NONCE)
        for deviation, stream in taken_back:
            add = total.add_noise if deviation >= 0 else total.subtract_noise
            add(abs(deviation), key=stream, nonce=NOISE_NONCE)
        return total.mean(denominator, out=out)

    def _zero(self, frac_bits: int, start: int, stop: int) -> kernels.Accumulator:
        if self._total is None or self._total_of != (stop - start, frac_bits):
            self._total_of = (stop - start, frac_bits)
            self._total = kernels.Accumulator(stop - start, frac_bits=frac_bits, threads=self._threads)
        self._total.reset(start)
        return self._total

    def _add(
        self,
        total: kernels.Accumulator,
        rows: Sequence[AcceptRow],
        weights: Sequence[float],
        start: int,
        stop: int,
        *,
        max_norm: float | None,
        truncate: bool = False,
    ) -> None:
        """Elements [start, stop) of rows, as many of them in a pass as may be mapped together."""
        most = max(TOGETHER // self._hands, 1)
        for first in range(0, len(rows), most):
            group = rows[first : first + most]
            total.add_all(
                [self._part(row, start, stop) for row in group],
                weights[first : first + most],
                [row.norm for row in group],
                encoding=[row.encoding for row in group],
                max_norm=max_norm,
                truncate=truncate,
            )

    def _apply(self, combination: Coordinates, start: int, stop: int, out: Flat) -> Flat:
        rows = self._rows if combination.rows is None else [self._rows[i] for i in combination.rows]
        for first, last in self._pieces(start, stop, len(rows)):
            values = np.empty((len(rows), last - first), np.float32)
            for i, row in enumerate(rows):
                values[i] = self._scaled(row, first, last)
            out[first - start : last - start] = combination.function(values)
        return out

    def _weighed(self, mixture: Mixture) -> tuple[list[AcceptRow], list[float]]:
        """The rows that a mixture reads, and their weights."""
        if self._mixture is not mixture:
            weights = list(map(kernels.dyadic, mixture.weights))
            kept = [(row, weight) for row, weight in zip(self._rows, weights, strict=True) if weight]
            self._mixture = mixture
            self._mixed = [row for row, _ in kept], [weight for _, weight in kept]
        return self._mixed

    def _scaled(self, row: AcceptRow, start: int, stop: int) -> Flat:
        """Elements [start, stop) of u, rounded once from float64."""
        x = kernels.decode(self._part(row, start, stop), row.encoding, stop - start)
        return x if row.weight == 1.0 else (x.astype(np.float64) * row.weight).astype(np.float32)

    def _part(self, row: AcceptRow, start: int, stop: int) -> memoryview:
        """The bytes of elements [start, stop) of an update, without a copy; `start` is a multiple of `SEGMENT`."""
        if row.encoding == "topk":
            payload = self._spool.payload(row.task) if row.inline is None else memoryview(row.inline)
            first, last = topk_part(payload, start, stop)
            return payload[first:last]
        first, last = payload_size(row.encoding, start), payload_size(row.encoding, stop)
        if row.inline is not None:
            return memoryview(row.inline)[first:last]
        whole = self._maps.get(row.task)
        if whole is None and len(self._maps) < TOGETHER:
            size = payload_size(row.encoding, self.n)
            whole = self._maps[row.task] = self._spool.payload(row.task, 0, size)
        return self._spool.payload(row.task, first, last) if whole is None else whole[first:last]

    def _before(self, start: int, stop: int) -> Flat:
        assert self._previous is not None, "the rule is not seeded"
        return np.ascontiguousarray(self._previous[start:stop])

    def _pieces(self, start: int, stop: int, rows: int) -> Iterator[tuple[int, int]]:
        """[start, stop) in pieces of whole segments, so small that `rows` of them fit in memory."""
        step = max(PIECE_VALUES // max(rows, 1) // SEGMENT, 1) * SEGMENT
        for first in range(start, stop, step):
            yield first, min(first + step, stop)


def _segments(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, SEGMENT):
        yield start, min(start + SEGMENT, size)
