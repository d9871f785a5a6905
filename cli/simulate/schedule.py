"""Virtual time: what happens next, and lines along which things travel in order.

Nothing here draws a random number by itself: a seed decides every delay, so a run repeats exactly. The tests
that simulate faults stand on this as well.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Schedule:
    """A clock that jumps from one thing to the next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, do: Callable[[], None]) -> None:
        """Do this at a time; what is due at one time happens in the order in which it was asked for."""
        heapq.heappush(self._heap, (max(when, self.now), next(self._order), do))

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        """Do this so much later."""
        self.at(self.now + delay_s, do)

    def step(self) -> bool:
        """Do the next thing; False when there is none."""
        if not self._heap:
            return False
        self.now, _, do = heapq.heappop(self._heap)
        do()
        return True


class Line(Generic[Item]):
    """Carries items in order, each with a delay of its own: a direction of a connection, or a thread's queue.

    Parameters
    ----------
    schedule : Schedule
    delay_s : callable
        How long the next item takes; one that is faster than the one before waits for it.
    deliver : callable
        Takes what arrives.
    """

    def __init__(
        self, schedule: Schedule, delay_s: Callable[[], float], deliver: Callable[[Item], None]
    ) -> None:
        self._schedule = schedule
        self._delay_s = delay_s
        self._deliver = deliver
        self._items: deque[tuple[float, Item]] = deque()
        self._last = 0.0
        self._not_before = 0.0
        self._is_armed = False

    def put(self, item: Item, *, busy_s: float = 0.0) -> None:
        """Send an item on its way; it keeps the line busy for so long, as bytes do on a slow link."""
        self._last = max(self._last, self._schedule.now + self._delay_s()) + busy_s
        self._items.append((self._last, item))
        self._arm()

    def put_back(self, item: Item) -> None:
        """What has just arrived did so in part only: it comes again, before everything else."""
        self._items.appendleft((self._schedule.now, item))
        self._arm()

    def stall(self, until: float) -> None:
        """Nothing arrives before this time; nothing is lost."""
        self._not_before = max(self._not_before, until)

    def cut(self) -> None:
        """Lose what is under way."""
        self._items.clear()

    def _arm(self) -> None:
        if self._items and not self._is_armed:
            self._is_armed = True
            self._schedule.at(max(self._items[0][0], self._not_before), self._arrive)

    def _arrive(self) -> None:
        self._is_armed = False
        if self._items and max(self._items[0][0], self._not_before) <= self._schedule.now:
            _, item = self._items.popleft()
            self._deliver(item)
        self._arm()
