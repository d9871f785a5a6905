"""Tiles of a model, each worked on by one thread from its first byte to its last, and finished in their order.

Rules that hold here:

- A thread has memory of its own for a tile and uses it again for the next one: what it wrote it reads from its own
  core's cache, and fresh memory costs a fault for each page. All threads at each step of one tile took half as long
  again: they met at each of its ends, and read the sums that another core had just written.
- What must come in order (a file's bytes, its digest, a norm) is done when it is a tile's turn, by the thread that
  made the tile. Meanwhile the others work on the tiles after it.
- The first tile that fails ends it: its error is raised, and no tile after it is finished.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
        How many threads. With one, or one tile, the caller's thread does everything.
    """
    if hands == 1 or len(tiles) <= 1:
        work = hand()
        for tile in tiles:
            work(tile)()
        return
    own = threading.local()

    def turn(tile: slice, before: Future[None] | None) -> None:
        if not hasattr(own, "work"):
            own.work = hand()
        finish: Finish = own.work(tile)
        if before is not None:
            before.result()  # it was begun before this one, so it does not wait for this thread
        finish()

    with ThreadPoolExecutor(hands, "fold") as pool:
        turns: list[Future[None]] = []
        for tile in tiles:
            turns.append(pool.submit(turn, tile, turns[-1] if turns else None))
        try:
            for one in turns:
                one.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
