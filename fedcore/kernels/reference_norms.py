"""Sums of squares, norms and distances, the same bits on every machine: the definition.

Rules
-----
- A sum of squares runs over *blocks* of 16 Ki elements, the last one shorter. Inside a block there are 16
  *lanes*: element j of the block goes to lane j mod 16, and each lane adds its squares in float64, in the
  order of j, from +0. The lanes of a block are then added in a fixed tree: lane i += lane i + 8, then + 4, +
  2, + 1. The blocks' sums are added one after the other, from +0.
- So blocks may be summed by any threads, or as they arrive (`Norm`): the bits are the same. Sixteen lanes
  fill four AVX2 registers, which hides the latency of an addition.
- Elements are decoded to float32 and widened, so a square is exact. An infinity gives inf and a NaN gives
  NaN; nothing overflows otherwise.
- Since every step is monotone, no element is larger than the norm, not even by a rounding.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..codecs import TOPK_BLOCK, TOPK_HEAD, Encoding, payload_size, size_range
from . import reference_checks as checks
from . import reference_topk as topk
from .reference_codecs import decode_range

__all__ = ["BLOCK", "LANES", "Norm", "clip_", "norm_of", "pairwise_sq_distances", "sum_squares"]

BLOCK: Final = 16 * 1024  # a multiple of an i8 payload's blocks
LANES: Final = 16

_TILE: Final = 4 * BLOCK
_SO_FAR: Final = "the data so far"

F64 = NDArray[np.float64]


def _sums_of_blocks(squares: F64) -> F64:
    """Add squares, float64[..., m] with m any number of elements, block by block: float64[..., ⌈m / BLOCK⌉].

    Padding with +0 changes no sum. Reducing the middle axis adds row after row: the innermost loop runs over
    the lanes, and only a reduction of an innermost axis would be numpy's pairwise sum. A test holds numpy to
    that.
    """
    m = squares.shape[-1]
    whole = m - m % BLOCK
    parts = [squares[..., :whole].reshape(*squares.shape[:-1], -1, BLOCK // LANES, LANES)]
    if m > whole:
        rows = -(-(m - whole) // LANES)
        last = np.zeros((*squares.shape[:-1], 1, rows, LANES))
        last.reshape(*squares.shape[:-1], -1)[..., : m - whole] = squares[..., whole:]
        parts.append(last)
    sums = []
    for part in parts:
        lanes = np.add.reduce(part, axis=-2)
        for half in (8, 4, 2, 1):
            lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        sums.append(lanes[..., 0])
    return np.concatenate(sums, axis=-1)


def _square_blocks(data: NDArray[np.uint8], encoding: Encoding, n: int) -> Iterator[float]:
    """The sums of the blocks of one payload, in order."""
    for start in range(0, n, _TILE):
        x = decode_range(data, encoding, start, min(start + _TILE, n)).astype(np.float64)
        x *= x
        yield from _sums_of_blocks(x).tolist()


def sum_squares(
    payload: checks.Payload, *, encoding: str = "f32", n: int | None = None, threads: int | None = None
) -> float:
    """Return the sum of the squares of a payload's values; inf or NaN when it holds one.

    Parameters
    ----------
    payload : bytes-like
        An encoded update.
    encoding : str
        Its encoding.
    n : int, optional
        How many values it must be of; without it, any number of them.
    threads : int, optional
        Accepted for the native twin; the bits do not depend on it.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind, or the payload is not one of `n` values.
    """
    name = checks.known_encoding(encoding)
    data = checks.encoded("payload", payload, name, None if n is None else checks.count("n", n, 0, 2**62))
    checks.threads(threads)
    total = 0.0
    with np.errstate(all="ignore"):
        for block in _square_blocks(data, name, checks.values_in(data, name)):
            total += block
    return total


def norm_of(data: NDArray[np.uint8], encoding: Encoding) -> float:
    """The norm of a payload that has been checked: √(sum_squares), rounded once more."""
    return math.sqrt(sum_squares(data, encoding=encoding))


class Norm:
    """The norm of a payload that arrives in pieces: the same bits as ``math.sqrt(sum_squares(payload))``.

    Parameters
    ----------
    encoding : str
        The encoding of the payload.
    n : int, optional
        How many values it must be of; without it, any number of them.

    Examples
    --------
    >>> norm = Norm("f32")
    >>> for piece in (b"\\x00\\x00\\x40", b"\\x40\\x00\\x00\\x80\\x40"):
    ...     norm.update(piece)
    >>> norm.value()
    5.0
    """

    def __init__(self, encoding: str = "f32", n: int | None = None) -> None:
        self._encoding = checks.known_encoding(encoding)
        self._expected = None if n is None else checks.count("n", n, 0, 2**62)
        self._pending = bytearray()
        self._total = 0.0
        self._n = 0

    def update(self, data: checks.Payload) -> None:
        """Take the next bytes, any number of them.

        Raises
        ------
        ValueError
            If they cannot be of a ``topk`` payload. What came before is then lost as well.
        """
        self._pending += checks.raw_bytes("data", data, self._encoding).data
        whole = self._whole_blocks()
        if whole:
            self._add(np.frombuffer(bytes(self._pending[:whole]), np.uint8))
            del self._pending[:whole]

    def value(self) -> float:
        """Return the norm of what has come so far, which must end with a whole value.

        Raises
        ------
        ValueError
            If the bytes so far end inside a value, a scale or a block, or are not of `n` values.
        """
        rest = checks.raw_bytes(_SO_FAR, self._pending, self._encoding)
        total, n = self._sum(rest)
        checks.values(n, self._expected, _SO_FAR, self._encoding)
        return math.sqrt(total)

    def _whole_blocks(self) -> int:
        """The size of the whole blocks that are pending."""
        pending = self._pending
        if self._encoding != "topk":
            size = payload_size(self._encoding, BLOCK)
            return len(pending) // size * size
        end = at = 0
        while len(pending) - at >= TOPK_HEAD.size:
            _, count, gap_bytes = TOPK_HEAD.unpack_from(pending, at)
            at += min(TOPK_HEAD.size + gap_bytes + 2 * count, size_range("topk", TOPK_BLOCK)[1])
            end = at if at <= len(pending) else end
        return end

    def _add(self, data: NDArray[np.uint8]) -> None:
        self._total, self._n = self._sum(data)

    def _sum(self, data: NDArray[np.uint8]) -> tuple[float, int]:
        """The sum of squares and the number of values, with those of a payload that follows."""
        if self._encoding == "topk":
            blocks, short = divmod(self._n, TOPK_BLOCK)
            if short and data.size:
                raise ValueError(
                    f"{_SO_FAR}: block {blocks} of a topk payload is of {short} values, and not the last one"
                )
            topk.check(_SO_FAR, data, blocks)
        else:
            checks.encoded(_SO_FAR, data, self._encoding)
        n = checks.values_in(data, self._encoding)
        total = self._total
        with np.errstate(all="ignore"):
            for block in _square_blocks(data, self._encoding, n):
                total += block
        return total, self._n + n


def clip_(x: NDArray[np.float32], max_norm: float, *, threads: int | None = None) -> float:
    """Scale `x` in place so that its norm is at most `max_norm`; return the norm that it had.

    x_j = float32(float64(x_j) · c) with c = max_norm / norm where the norm is above `max_norm`; else nothing
    changes.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind, or `x` holds a NaN or an infinity: no factor makes that finite.
        `x` is then unchanged.
    """
    flat = checks.writable_f32("x", x)
    max_norm = checks.positive("max_norm", max_norm)
    norm = math.sqrt(sum_squares(flat, threads=threads))
    if not norm < math.inf:
        raise ValueError("x must be finite to be clipped; it holds a NaN or an infinity")
    if norm > max_norm:
        factor = max_norm / norm
        for start in range(0, flat.size, _TILE):
            part = flat[start : start + _TILE]
            part[...] = part.astype(np.float64) * factor
    return norm


def pairwise_sq_distances(
    payloads: Sequence[checks.Payload], *, encoding: str | Sequence[str] = "f32", threads: int | None = None
) -> F64:
    """Return the squared distances of all pairs of payloads, float64[K, K].

    The square of each difference of widened values, added like the squares of `sum_squares`. Direct
    differences: ‖a‖² + ‖b‖² − 2 a·b cancels for models that are close, which is what trained models are.
    Distances over tiles of the same updates add up to the distance of the whole.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind, or the payloads are not one or more of one length.
    """
    rows, n = checks.payloads_of_one_size(payloads, encoding)
    checks.threads(threads)
    k = len(rows)
    distances = np.zeros((k, k))
    with np.errstate(all="ignore"):
        for start in range(0, n, BLOCK):
            stop = min(start + BLOCK, n)
            x = np.stack([decode_range(data, name, start, stop) for data, name in rows]).astype(np.float64)
            for i in range(k - 1):
                difference = x[i + 1 :] - x[i]
                difference *= difference
                distances[i, i + 1 :] += _sums_of_blocks(difference)[:, 0]
    return distances + distances.T
