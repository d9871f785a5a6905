"""Payloads that hold only what is not zero, the same bytes on every machine: the definition of ``topk``.

Which values of an update stay is the worker's choice; this is how they are written. A payload is a row of
blocks, each of 16 Ki positions, the last one shorter. A block is

===========  ====================================================================================
bytes        little-endian
===========  ====================================================================================
2            how many positions it is of: 16384, or in the last block 1 to 16384
2            how many values it holds, in ascending order of their positions
2            how many bytes the gaps take
…            for each value, how many positions lie between it and the one before it (or the block's
             start): below 128 one byte; else 128 + its lower seven bits, then its upper seven
2 each       the values, as ``f16``
===========  ====================================================================================

Rules
-----
- A set of positions and values has one payload: gaps are in their shortest form, no value is a zero, nothing
  is left over. `check` refuses anything else, and says which block it was.
- Blocks stand for themselves. So payloads of pieces of a vector (of whole blocks) joined are the payload of
  the vector, any run of blocks is a payload, and a block is found by going from head to head.
- Read and written as ``f16`` is: to nearest even, what is too large an infinity, a NaN 0x7e00. What becomes a
  zero is not written, and −0 is read as +0.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..codecs import TOPK_BLOCK, TOPK_HEAD

__all__ = ["check", "decode_range", "encode", "span_of"]

_LONG: Final = 0x80

F32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Places = NDArray[np.intp]


class _Block(NamedTuple):
    """What a head says, and where its block begins."""

    start: int
    span: int
    held: int
    gap_bytes: int

    @property
    def values(self) -> int:
        """Where the values begin."""
        return self.start + TOPK_HEAD.size + self.gap_bytes

    @property
    def stop(self) -> int:
        return self.values + 2 * self.held


def encode(flat: F32) -> bytes:
    """The payload of all values that are not zero as halves."""
    return b"".join(_encode_block(flat[i : i + TOPK_BLOCK]) for i in range(0, flat.size, TOPK_BLOCK))


def _encode_block(x: F32) -> bytes:
    with np.errstate(all="ignore"):
        half = x.astype("<f2").view("<u2")
    half[np.isnan(x)] = 0x7E00
    at = np.flatnonzero(half & 0x7FFF)
    gaps = np.diff(at, prepend=-1) - 1
    long = gaps >= _LONG
    written = np.empty(gaps.size + np.count_nonzero(long), np.uint8)
    first = np.arange(gaps.size) + np.cumsum(long) - long
    written[first] = np.where(long, gaps % _LONG + _LONG, gaps)
    written[first[long] + 1] = gaps[long] // _LONG
    return TOPK_HEAD.pack(x.size, at.size, written.size) + written.tobytes() + half[at].tobytes()


def check(name: str, data: Bytes, first: int = 0) -> int:
    """How many values a payload is of; `first` is the number of blocks before these, for messages.

    Raises
    ------
    ValueError
        If it is not the payload of anything.
    """
    n = start = 0
    block = first
    while start < data.size:
        try:
            head = _head(data, start)
            _check_block(data, head)
        except ValueError as error:
            raise ValueError(f"{name}: block {block} of a topk payload {error}") from None
        start = head.stop
        n += head.span
        block += 1
    return n


def _head(data: Bytes, start: int) -> _Block:
    if data.size - start < TOPK_HEAD.size:
        raise ValueError("ends inside its head")
    return _Block(start, *TOPK_HEAD.unpack_from(data.data, start))


def _check_block(data: Bytes, head: _Block) -> None:
    _, span, held, gap_bytes = head
    if not (1 <= span <= TOPK_BLOCK and held <= span and held <= gap_bytes <= 2 * held):
        raise ValueError(
            f"cannot be of {span} values, {held} of them not zero, with gaps in {gap_bytes} bytes"
        )
    if data.size < head.stop:
        raise ValueError("is cut off")
    if span < TOPK_BLOCK and data.size > head.stop:
        raise ValueError(f"is of {span} values, and not the last one")
    gaps = data[head.start + TOPK_HEAD.size : head.values]
    more = gaps >= _LONG
    upper = gaps[1:][more[:-1]]
    whole = not (gap_bytes and more[-1]) and not (more[:-1] & more[1:]).any() and upper.all()
    if not whole or gap_bytes - np.count_nonzero(more) != held or _last_place(gaps) >= span:
        raise ValueError(f"must hold ascending positions below {span}, their gaps in the shortest form")
    if not (data[head.values : head.stop].view("<u2") & 0x7FFF).all():
        raise ValueError("must not hold a zero")


def _last_place(gaps: Bytes) -> int:
    places = _places(gaps)
    return int(places[-1]) if places.size else -1


def _places(gaps: Bytes) -> Places:
    """Positions in their block, of gaps that are whole."""
    more = gaps >= _LONG
    first = np.flatnonzero(~np.concatenate(([False], more))[:-1])
    gap = gaps[first].astype(np.intp)
    long = more[first]
    gap[long] += gaps[first[long] + 1].astype(np.intp) * _LONG - _LONG
    return np.cumsum(gap + 1) - 1


def span_of(data: Bytes) -> int:
    """How many values a payload that has been checked is of."""
    return sum(head.span for head in _blocks(data))


def _blocks(data: Bytes) -> Iterator[_Block]:
    start = 0
    while start < data.size:
        head = _Block(start, *TOPK_HEAD.unpack_from(data.data, start))
        yield head
        start = head.stop


def decode_range(data: Bytes, start: int, stop: int) -> F32:
    """Values [start, stop) of a payload that has been checked."""
    x = np.zeros(stop - start, np.float32)
    first = -start  # the place in x at which a block begins
    for head in _blocks(data):
        if first >= x.size:
            break
        if first + head.span > 0 and head.held:
            at = _places(data[head.start + TOPK_HEAD.size : head.values]) + first
            inside = (at >= 0) & (at < x.size)
            x[at[inside]] = data[head.values : head.stop].view("<f2")[inside]
        first += head.span
    return x
