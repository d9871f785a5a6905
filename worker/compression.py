"""A delta becomes a payload, tile by tile.

Rules that hold here:

- Beside the delta nothing is as large as the model; and where the delta is a `Change`, nothing is.
- The same delta, encoding and seed give the same bytes.
- What an encoding loses is told, tile by tile, to whoever wants to keep it (`feedback`).
"""

import math
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.fedcore import kernels
from fedmq.fedcore.errors import ClientAppError
from fedmq.fedcore.layout import Flat
from fedmq.fedcore.state_dict import Change

TILE: Final = 1 << 20
"""Elements encoded at a time; a multiple of every encoding's block."""

PLAIN_TILE: Final = 1 << 16
"""Where nothing is encoded: subtracted, checked, digested and written while it is in the processor's cache."""

_MAGNITUDE: Final = np.uint32(0x7FFFFFFF)
_HALF: Final = np.uint32(16)
_LOWER: Final = np.uint32(0xFFFF)

U32 = NDArray[np.uint32]


def encoded(
    delta: Flat | Change,
    encoding: str,
    seed: int,
    *,
    keep: int | None = None,
    left_out: Callable[[Flat], None] | None = None,
) -> Iterator[bytes | memoryview]:
    """The payload of a delta, tile by tile; each is to be used before the next is asked for.

    Parameters
    ----------
    delta : ndarray of float32, shape (n,), or Change
    encoding : str
        One of `fedmq.fedcore.codecs.ENCODINGS`.
    seed : int
        The task's; what ``i8`` rounds with comes from it, so that a run can be repeated.
    keep : int, optional
        Of how many values, those farthest from zero, a ``topk`` payload is made; of equal ones the first.
    left_out : callable, optional
        Told of each tile, before its payload is given, what that does not say of it.

    Raises
    ------
    ClientAppError
        When a value is not finite in this encoding.
    """
    if encoding == "f32" and left_out is None:
        yield from _plain(delta)
        return
    key = _rounding_key(seed) if encoding == "i8" else None
    largest = None if keep is None or encoding != "topk" else _Largest(delta, keep)
    for start in range(0, delta.size, TILE):
        tile = delta[start : start + TILE]
        nonce = (start // TILE).to_bytes(12, "little")
        said = tile if largest is None else largest.of(tile)
        chunk = kernels.encode(said, encoding, key=key, nonce=nonce)
        _check_finite(kernels.sum_squares(chunk, encoding=encoding))
        if left_out is not None:
            left_out(tile - kernels.decode(chunk, encoding, tile.size))
        yield chunk


def _plain(delta: Flat | Change) -> Iterator[memoryview]:
    own = np.empty(min(PLAIN_TILE, delta.size), np.float32)
    for start in range(0, delta.size, PLAIN_TILE):
        size = min(PLAIN_TILE, delta.size - start)
        tile = delta.into(own[:size], start) if isinstance(delta, Change) else delta[start : start + size]
        _check_finite(kernels.sum_squares(tile))
        yield tile.astype("<f4", copy=False).data.cast("B")


def _check_finite(squares: float) -> None:
    if not math.isfinite(squares):
        raise ClientAppError("non-finite update: the weights moved further than its encoding can say")


class _Largest:
    """The `keep` values of a vector that are farthest from zero, without sorting it or a copy of it.

    Magnitudes of float32 compare like their bits. So the smallest that stays is found in two passes: one that
    counts upper halves, and one that counts the lower halves where it must be.
    """

    def __init__(self, x: Flat | Change, keep: int) -> None:
        upper, above = _rank(_histogram(x, lambda bits: bits >> _HALF), keep)
        within, more = _rank(_histogram(x, lambda bits: bits[bits >> _HALF == upper] & _LOWER), keep - above)
        self._least = np.uint32(upper << 16 | within)
        self._ties = keep - above - more
        """How many as small as that one still stay."""

    def of(self, tile: Flat) -> Flat:
        """The next tile, with zeros for what does not stay."""
        bits = tile.view(np.uint32) & _MAGNITUDE
        stays = bits > self._least
        ties = np.flatnonzero(bits == self._least)[: self._ties]
        self._ties -= ties.size
        stays[ties] = True
        return np.where(stays, tile, np.float32(0))


def _histogram(x: Flat | Change, part: Callable[[U32], U32]) -> NDArray[np.int64]:
    """How often each 16-bit part of a magnitude occurs."""
    counts = np.zeros(1 << 16, np.int64)
    for start in range(0, x.size, TILE):
        bits = x[start : start + TILE].view(np.uint32) & _MAGNITUDE
        counts += np.bincount(part(bits), minlength=counts.size)
    return counts


def _rank(counts: NDArray[np.int64], keep: int) -> tuple[int, int]:
    """The bin in which the one of rank `keep` from above is, and how many are in bins above it."""
    down = np.cumsum(counts[::-1])
    place = min(int(np.searchsorted(down, keep)), counts.size - 1)
    found = counts.size - 1 - place
    return found, int(down[place] - counts[found])


def _rounding_key(seed: int) -> bytes:
    import hashlib  # whose OpenSSL takes 3 ms to load: only i8 pays for it

    return hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=32, person=b"fedmq rounding 1").digest()
