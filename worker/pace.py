"""How many bytes go into one FETCH or PART.

A link that carries less than a block in a lease looks dead: each side's BEAT waits behind a block.
So a connection that went silent in the middle of a transfer is tried again with pieces of half
the size, down to 16 KiB (a lease of 35 s then needs 0.5 KiB/s), and pieces grow again as they
arrive.
"""

from typing import Final

PIECE_MIN: Final = 16 * 1024
PIECE_MAX: Final = 16 * 1024 * 1024
"""What this worker takes in one frame, whatever block a broker names."""
GROW_AFTER: Final = 16


class Pace:
    """The size of the pieces of a transfer, in bytes."""

    def __init__(self) -> None:
        self._block = PIECE_MAX
        self._piece = PIECE_MAX
        self._moved = 0

    @property
    def piece(self) -> int:
        """How many bytes to ask for, or to send, at a time."""
        return min(self._piece, self._block)

    def terms(self, block: int) -> None:
        """A WELCOME named the largest piece."""
        self._block = min(block, PIECE_MAX)

    def moved(self) -> None:
        """A piece came through."""
        self._moved += 1
        if self._moved >= GROW_AFTER and self._piece < PIECE_MAX:
            self._piece *= 2
            self._moved = 0

    def stalled(self) -> None:
        """The connection was lost to silence while pieces were under way."""
        self._piece = max(self.piece // 2, min(PIECE_MIN, self._block))
        self._moved = 0
