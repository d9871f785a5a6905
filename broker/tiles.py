"""Tiles of a model, each worked on by one thread from its first byte to its last, and finished in their order.

Rules that hold here:

- A thread has memory of its own for a tile and uses it again for the next one: what it wrote it reads from its own
  core's cache, and fresh memory costs a fault for each page. All threads at each step of one tile took half as long
  again: they met at each of its ends, and read the sums that another core had just written.
- What must come in order (a file's bytes, its digest, a norm) is done when it is a tile's turn, by the thread that
  made the tile. Meanwhile the others work on the tiles after it.
- The first tile that fails ends it: its error is raised, and no tile after it is finished.
- The process need not wait for them to end, and where the system has no more threads fewer do the work.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

__all__ = ["HANDS", "Finish", "Work", "in_turns"]

HANDS: Final = 8
"""Threads at most. Each has a tile in memory, and fewer than these read payloads as fast as they come."""

Finish: TypeAlias = Callable[[], None]
Work: TypeAlias = Callable[[slice], Finish]


def in_turns(tiles: Sequence[slice], hand: Callable[[], Work], hands: int) -> None:
    """Work on tiles, `hands` of them at a time.

    Parameters
    ----------
    tiles
        In the order in which they are to be finished.
    hand
        Makes what one thread needs, in that thread. What it returns is called with a tile, works on it and returns
        what is left to do when the tiles before it are finished; it need not bear two calls at once.
    hands
        How many threads, the caller's among them.
    """
    line = _Line(tiles)
    helpers = _started(lambda: line.work(hand), min(hands, len(tiles)) - 1)
    line.work(hand)
    for helper in helpers:
        helper.join()
    if line.error is not None:
        raise line.error


class _Line:
    """Tiles that several threads take one by one."""

    def __init__(self, tiles: Sequence[slice]) -> None:
        self._tiles = enumerate(tiles)
        self._turn = 0
        self._failed = len(tiles)
        """The first tile that failed; before there is one, the end."""
        self._changed = threading.Condition()
        self.error: BaseException | None = None

    def work(self, hand: Callable[[], Work]) -> None:
        """Take tiles until there are none; never raises."""
        index = -1
        try:
            work = hand()
            while (taken := self._take()) is not None:
                index, tile = taken
                finish = work(tile)
                if self._is_turn(index):
                    finish()
                    self._next()
        except BaseException as error:  # also what is no Exception: the others must not wait for this one
            with self._changed:
                if index < self._failed:
                    self._failed, self.error = index, error
                self._changed.notify_all()

    def _take(self) -> tuple[int, slice] | None:
        with self._changed:
            return next(self._tiles, None) if self.error is None else None

    def _is_turn(self, index: int) -> bool:
        """Wait for this tile's turn; False when a tile before it failed, so that it has none."""
        with self._changed:
            self._changed.wait_for(lambda: self._turn == index or self._failed < index)
            return self._failed > index

    def _next(self) -> None:
        with self._changed:
            self._turn += 1
            self._changed.notify_all()


def _started(target: Callable[[], None], count: int) -> list[threading.Thread]:
    threads = []
    for _ in range(count):
        thread = threading.Thread(target=target, name="fold", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more; the caller does the rest
            break
        threads.append(thread)
    return threads
