"""The random words of noise and rounding: ChaCha20, many blocks side by side.

Rules
-----
- ChaCha20 as in RFC 8439, section 2.3: a 32-byte key, a 12-byte nonce, a 32-bit block counter, from which the
  words of a stream follow. Integers only, so there is nothing to round.
- Blocks are taken sixteen at a time: group g holds the blocks with counters 16 g … 16 g + 15, and W[i][b] is
  word i (0 … 15) of the group's block b. A vector unit that computes sixteen blocks side by side has the
  words in this order.

References
----------
.. [1] Y. Nir, A. Langley, "ChaCha20 and Poly1305 for IETF Protocols", RFC 8439, 2018.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["GROUP_BLOCKS", "GROUP_WORDS", "blocks", "words"]

U32 = NDArray[np.uint32]

GROUP_BLOCKS: Final = 16
GROUP_WORDS: Final = 256


def blocks(key: bytes, nonce: bytes, counter: int, count: int) -> U32:
    """Return the words of `count` ChaCha20 blocks from block `counter`, as uint32[16, count]."""
    start = np.empty((16, count), np.uint32)
    start[0:4] = np.frombuffer(b"expand 32-byte k", "<u4")[:, None]
    start[4:12] = np.frombuffer(key, "<u4")[:, None]
    start[12] = np.arange(counter, counter + count, dtype=np.uint64).astype(np.uint32)
    start[13:16] = np.frombuffer(nonce, "<u4")[:, None]

    a, b, c, d = start.reshape(4, 4, count).copy()
    spare, scratch = np.empty_like(a), np.empty_like(a)
    for _ in range(10):
        _quarter_rounds(a, b, c, d, scratch)  # the columns
        b, spare = _rotate_rows(b, 1, spare), b
        c, spare = _rotate_rows(c, 2, spare), c
        d, spare = _rotate_rows(d, 3, spare), d
        _quarter_rounds(a, b, c, d, scratch)  # the diagonals
        b, spare = _rotate_rows(b, 3, spare), b
        c, spare = _rotate_rows(c, 2, spare), c
        d, spare = _rotate_rows(d, 1, spare), d
    start += np.concatenate((a, b, c, d))
    return start


def _quarter_rounds(a: U32, b: U32, c: U32, d: U32, scratch: U32) -> None:
    """Four quarter rounds side by side, one per row, in all blocks."""
    for add, to, by in ((b, (a, d), 16), (d, (c, b), 12), (b, (a, d), 8), (d, (c, b), 7)):
        total, mixed = to
        total += add
        mixed ^= total
        np.right_shift(mixed, 32 - by, out=scratch)
        np.left_shift(mixed, by, out=mixed)
        mixed |= scratch


def _rotate_rows(rows: U32, by: int, out: U32) -> U32:
    """Write `rows` to `out` with row (i + by) mod 4 in place i."""
    # np.positive copies in a vector loop; an assignment is a memcpy, which took six times as long on a
    # virtual machine.
    np.positive(rows[by:], out=out[: 4 - by])
    np.positive(rows[:by], out=out[4 - by :])
    return out


def words(key: bytes, nonce: bytes, start: int, stop: int) -> U32:
    """Return words [start, stop) of the stream, in the order group, word of the block, block of the group.

    Position 256 g + 16 i + b is W[i][b] of group g. This is the stream that rounds ``i8`` payloads.
    """
    first, last = start // GROUP_WORDS, -(-stop // GROUP_WORDS)
    made = blocks(key, nonce, first * GROUP_BLOCKS, (last - first) * GROUP_BLOCKS)
    ordered = made.reshape(16, last - first, GROUP_BLOCKS).transpose(1, 0, 2).reshape(-1)
    return ordered[start - first * GROUP_WORDS : stop - first * GROUP_WORDS]


# -- Box–Muller
# -------------------------------------------------------------------------------------------------------
