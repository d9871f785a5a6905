"""Robust combinations, coordinate by coordinate, the same bits on every machine: the definition.

Rules
-----
- Every payload must be finite: an infinity has no mean with its opposite, and a NaN has no place in an order.
  The first payload that is not is named.
- The K values of a coordinate are sorted, after −0 has become +0; so the order of the payloads does not
  matter.
- The median is the middle value, or float32((float64(a) + float64(b)) · 0.5) of the two middle ones.
- The trimmed mean leaves out the `trim` smallest and `trim` largest, adds the rest in float64 from the
  smallest to the largest, from +0, divides by their number, and rounds to float32.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..codecs import Encoding
from . import reference_checks as checks
from .reference_codecs import decode_range

__all__ = ["median", "trimmed_mean"]

_TILE_VALUES: Final = 256 * 1024
_MIN_TILE: Final = 1024
_NETWORK_ROWS: Final = 64

F32 = NDArray[np.float32]
Rows = Sequence[tuple[NDArray[np.uint8], Encoding]]


def median(
    payloads: Sequence[checks.Payload],
    *,
    encoding: str | Sequence[str] = "f32",
    out: F32 | None = None,
    threads: int | None = None,
) -> F32:
    """Return the median of each coordinate over the payloads.

    Parameters
    ----------
    payloads : sequence of bytes-like
        One or more encoded updates of the same number of values.
    encoding : str or sequence of str
        One encoding for all, or one for each.
    out : ndarray of float32, n elements, optional
        Where to write the medians.
    threads : int, optional
        Accepted for the native twin; the bits do not depend on it.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, or a payload holds a NaN or an infinity. `out` is then unchanged.
    """
    rows, n = checks.payloads_of_one_size(payloads, encoding)
    checks.threads(threads)
    result = checks.out_f32(out, n)
    checks.disjoint_output(result, rows)
    _check_finite(rows, n)
    low, high = (len(rows) - 1) // 2, len(rows) // 2
    for start, ranked in _sorted_tiles(rows, n):
        if low == high:
            result[start : start + ranked[low].size] = ranked[low]
        else:
            pair = ranked[low].astype(np.float64)
            pair += ranked[high]
            pair *= 0.5
            result[start : start + pair.size] = pair
    return result if out is None else out


def trimmed_mean(
    payloads: Sequence[checks.Payload],
    trim: int,
    *,
    encoding: str | Sequence[str] = "f32",
    out: F32 | None = None,
    threads: int | None = None,
) -> F32:
    """Return the mean of each coordinate over the payloads, without its extremes.

    Parameters
    ----------
    payloads : sequence of bytes-like
        One or more encoded updates of the same number of values.
    trim : int
        How many values to leave out at *each* end; fewer than half of the payloads.
    encoding, out, threads
        As for `median`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, or a payload holds a NaN or an infinity. `out` is then unchanged.
    """
    rows, n = checks.payloads_of_one_size(payloads, encoding)
    trim = checks.count("trim", trim, 0, (len(rows) - 1) // 2)
    checks.threads(threads)
    result = checks.out_f32(out, n)
    checks.disjoint_output(result, rows)
    _check_finite(rows, n)
    for start, ranked in _sorted_tiles(rows, n):
        kept = ranked[trim : len(rows) - trim]
        total = np.zeros(ranked[0].size)
        for values in kept:
            total += values
        total /= float(len(kept))
        result[start : start + total.size] = total
    return result if out is None else out


def _tiles(k: int, n: int) -> Iterator[tuple[int, int]]:
    step = max(_MIN_TILE, _TILE_VALUES // k // _MIN_TILE * _MIN_TILE)
    for start in range(0, n, step):
        yield start, min(start + step, n)


def _check_finite(rows: Rows, n: int) -> None:
    for i, (data, name) in enumerate(rows):
        for start, stop in _tiles(1, n):
            if not np.isfinite(decode_range(data, name, start, stop)).all():
                raise ValueError(f"payloads[{i}] must be finite; it holds a NaN or an infinity")


def _sorted_tiles(rows: Rows, n: int) -> Iterator[tuple[int, list[F32]]]:
    """Yield (start, rows), tile after tile: row r holds the r-th smallest value of each coordinate."""
    for start, stop in _tiles(len(rows), n):
        x = np.stack([decode_range(data, name, start, stop) for data, name in rows])
        x += np.float32(0)  # −0 + 0 is +0
        if len(x) <= _NETWORK_ROWS:
            yield start, _sorted_rows(list(x))
        else:
            x.sort(axis=0)
            yield start, list(x)


def _sorted_rows(rows: list[F32]) -> list[F32]:
    """Sort the values at each place of the rows, which are overwritten.

    A network's steps are operations on whole rows: several times as fast as `ndarray.sort` along axis 0.
    """
    spare = np.empty_like(rows[0])
    for i, j in _network(len(rows)):
        np.minimum(rows[i], rows[j], out=spare)
        np.maximum(rows[i], rows[j], out=rows[j])
        rows[i], spare = spare, rows[i]
    return rows


@functools.cache
def _network(k: int) -> tuple[tuple[int, int], ...]:
    """The comparisons of Batcher's odd-even merge sort of `k` values (Knuth, vol. 3, algorithm 5.2.2M)."""
    pairs = []
    p = top = 1 << max(k - 1, 1).bit_length() - 1
    while p > 0:
        q, r, d = top, 0, p
        while d > 0:
            pairs += [(i, i + d) for i in range(k - d) if i & p == r]
            q, r, d = q >> 1, p, q - p
        p >>= 1
    return tuple(pairs)
