"""The encodings of an update: their names, and the size in bytes of what they hold.

An encoding says how a flat vector of float32 numbers is written as a *payload*, on the wire and on disk. All
are little-endian:

========  ==========================================================================  ===================
encoding  bytes                                                                       bytes for n values
========  ==========================================================================  ===================
``f32``   IEEE 754 single                                                             4 n
``f16``   IEEE 754 half                                                               2 n
``bf16``  the upper half of a single                                                  2 n
``i8``    blocks of 1024 values (the last one shorter): a float32 scale, then int8s   n + 4 ⌈n / 1024⌉
``topk``  blocks of 16384 positions (the last one shorter), each only with what is    6 a block, and 3 or 4
          not zero in it: a head, gaps between positions, halves                      a value that it holds
========  ==========================================================================  ===================

Rules
-----
- But for ``topk``, a size and an encoding give n, and n and an encoding give the size: no payload needs a header.
- A ``topk`` payload says itself how many values it is of; n bounds its size. Its blocks are in
  `fedmq.fedcore.kernels.reference_topk`, and are found by going from head to head.
- Nothing here reads or writes values; that is `fedmq.fedcore.kernels.encode` and `decode`.
"""

import struct
from typing import Final, Literal, TypeGuard, get_args

__all__ = [
    "BLOCK_I8",
    "ENCODINGS",
    "SCALE_BYTES",
    "SIZED",
    "TOPK_BLOCK",
    "TOPK_HEAD",
    "Encoding",
    "check_size",
    "element_count",
    "is_encoding",
    "payload_size",
    "size_range",
    "topk_excess",
    "topk_part",
]

Encoding = Literal["f32", "f16", "bf16", "i8", "topk"]

ENCODINGS: Final[tuple[Encoding, ...]] = get_args(Encoding)
"""All encodings, the most exact first."""

SIZED: Final[tuple[Encoding, ...]] = ("f32", "f16", "bf16", "i8")
"""Those of which n values always take as many bytes."""

BLOCK_I8: Final = 1024
"""How many values of an ``i8`` payload share a scale."""

SCALE_BYTES: Final = 4
"""The bytes of a scale, a float32 ahead of its block."""

TOPK_BLOCK: Final = 16 * 1024
"""How many positions a block of a ``topk`` payload is of."""

TOPK_HEAD: Final = struct.Struct("<3H")
"""The head of such a block: positions, values, bytes of gaps."""

_TOPK_VALUE: Final = 2
_TOPK_LONG: Final = 128
"""From this length on a gap takes two bytes."""

_WIDTH: Final[dict[str, int]] = {"f32": 4, "f16": 2, "bf16": 2}


def is_encoding(name: object) -> TypeGuard[Encoding]:
    """Whether `name` is one of `ENCODINGS`."""
    return isinstance(name, str) and name in ENCODINGS


def payload_size(encoding: str, n: int) -> int:
    """Return the size in bytes of `n` encoded values, where all of that number have one size.

    Parameters
    ----------
    encoding : str
        One of `SIZED`.
    n : int
        A number of values, 0 or more.

    Raises
    ------
    ValueError
        If the encoding is unknown or ``topk``, or `n` is negative.

    Examples
    --------
    >>> [payload_size(encoding, 1025) for encoding in SIZED]
    [4100, 2050, 2050, 1033]
    """
    if n < 0:
        raise ValueError(f"n must be 0 or more, not {n}")
    width = _WIDTH.get(encoding)
    if width is not None:
        return width * n
    if encoding == "i8":
        return n + SCALE_BYTES * -(-n // BLOCK_I8)
    raise _unknown(encoding)


def size_range(encoding: str, n: int, most: int | None = None) -> tuple[int, int]:
    """Return the least and the largest size in bytes of `n` encoded values.

    Parameters
    ----------
    encoding : str
        One of `ENCODINGS`.
    n : int
        A number of values, 0 or more.
    most : int, optional
        How many of them a ``topk`` payload may hold; default: all.

    Raises
    ------
    ValueError
        If the encoding is unknown or `n` is negative.

    Examples
    --------
    >>> size_range("f32", 1025), size_range("topk", 1025), size_range("topk", 1025, 10)
    ((4100, 4100), (6, 3081), (6, 43))
    """
    if encoding != "topk":
        size = payload_size(encoding, n)
        return size, size
    if n < 0:
        raise ValueError(f"n must be 0 or more, not {n}")
    heads = TOPK_HEAD.size * -(-n // TOPK_BLOCK)
    held = n if most is None else min(most, n)
    # What is not held lies in the gaps, and each that takes two bytes has taken so many of it.
    long = min(held, (n - held) // _TOPK_LONG)
    return heads, heads + (1 + _TOPK_VALUE) * held + long


def topk_excess(payload: memoryview, most: int) -> str:
    """Say that a ``topk`` payload that has been checked holds more than `most` values; empty when it does not.

    Its size does not tell: as many values take fewer bytes where they lie closer together.
    """
    held = at = 0
    while at < len(payload):
        _, count, gap_bytes = TOPK_HEAD.unpack_from(payload, at)
        at += TOPK_HEAD.size + gap_bytes + _TOPK_VALUE * count
        held += count
    return f"payload: holds {held} values, at most {most} were asked for" if held > most else ""


def topk_part(payload: memoryview, start: int, stop: int) -> tuple[int, int]:
    """Return where values [start, stop) of a ``topk`` payload that has been checked begin and end, in bytes.

    `start` is a multiple of `TOPK_BLOCK`, and so is `stop` unless it is the end.
    """
    begin = at = values = 0
    while values < stop:
        if values == start:
            begin = at
        span, count, gap_bytes = TOPK_HEAD.unpack_from(payload, at)
        at += TOPK_HEAD.size + gap_bytes + _TOPK_VALUE * count
        values += span
    return (begin, at) if start < stop else (0, 0)


def element_count(encoding: str, size_bytes: int) -> int:
    """Return how many values a payload of `size_bytes` holds; the inverse of `payload_size`.

    Raises
    ------
    ValueError
        If the encoding is unknown or ``topk``, or no number of values has this size.

    Examples
    --------
    >>> element_count("i8", 1033)
    1025
    """
    width = _WIDTH.get(encoding)
    if width is not None:
        if size_bytes >= 0 and size_bytes % width == 0:
            return size_bytes // width
        raise ValueError(f"a payload of encoding {encoding} is a multiple of {width} bytes, not {size_bytes}")
    if encoding == "i8":
        blocks, rest = divmod(size_bytes, BLOCK_I8 + SCALE_BYTES)
        if size_bytes >= 0 and (rest == 0 or rest > SCALE_BYTES):
            return blocks * BLOCK_I8 + max(rest - SCALE_BYTES, 0)
        raise ValueError(
            f"a payload of encoding i8 is made of blocks of {SCALE_BYTES} bytes and up to {BLOCK_I8} values; "
            f"{size_bytes} bytes end inside a scale"
        )
    raise _unknown(encoding)


def check_size(encoding: str, n: int, size_bytes: int, name: str = "payload") -> None:
    """Raise unless `size_bytes` can be the size of `n` values in this encoding.

    Parameters
    ----------
    encoding : str
        One of `ENCODINGS`.
    n : int
        The number of values that is expected, 0 or more.
    size_bytes : int
        The size that came. Of a ``topk`` payload it says little: see `fedmq.fedcore.kernels.sum_squares`.
    name : str
        What the error message calls the thing that has this size.

    Raises
    ------
    ValueError
        If the encoding is unknown or the size cannot be.
    """
    least, most = size_range(encoding, n)
    if not least <= size_bytes <= most:
        expected = least if least == most else f"{least} to {most}"
        raise ValueError(f"{name} must be {expected} bytes ({n} values as {encoding}), not {size_bytes}")


def _unknown(encoding: object) -> ValueError:
    if encoding == "topk":
        return ValueError("how many bytes a topk payload takes depends on what it holds")
    return ValueError(f"encoding must be one of {', '.join(ENCODINGS)}, not {encoding!r}")
