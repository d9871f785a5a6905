"""The mind's hand: tasks that were taken and have no result yet, and what the app is busy with.

Rules that hold here:

- One app runs at a time. A task that was cancelled while it ran is no longer in hand, but the app is
  busy until it says so itself.
- The oldest task whose model is here goes first.
- A deadline counts from receipt.
"""

from collections.abc import Callable

from fedmq.fedcore import wire

NEVER = float("inf")


class Held:
    """A task in hand."""

    __slots__ = ("deadline_at", "task")

    def __init__(self, task: wire.Task, now: float) -> None:
        self.task = task
        self.deadline_at = now + task.deadline_s if task.deadline_s > 0 else NEVER


class Tasks:
    """The tasks in hand, the oldest first."""

    def __init__(self) -> None:
        self._held: dict[bytes, Held] = {}
        self.running: bytes | None = None
        """The task that the app is busy with, in hand or not."""

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, task: bytes) -> bool:
        return task in self._held

    def get(self, task: bytes) -> wire.Task | None:
        """The task in hand with this id."""
        held = self._held.get(task)
        return held.task if held else None

    def ids(self) -> tuple[bytes, ...]:
        """The tasks in hand."""
        return tuple(self._held)

    def all(self) -> list[wire.Task]:
        """The tasks in hand."""
        return [held.task for held in self._held.values()]

    def occupied(self) -> int:
        """How many slots are taken; a cancelled app that still runs takes one."""
        return len(self._held) + (self.running is not None and self.running not in self._held)

    def take(self, task: wire.Task, now: float) -> None:
        """A TASK arrived."""
        self._held[task.task] = Held(task, now)

    def drop(self, task: bytes) -> wire.Task | None:
        """A task has a result, or is no longer wanted; None when it is not in hand."""
        held = self._held.pop(task, None)
        return held.task if held else None

    def startable(self, is_ready: Callable[[wire.Task], bool]) -> wire.Task | None:
        """The task to start now, or None while the app is busy or no model is here."""
        if self.running is not None:
            return None
        return next((held.task for held in self._held.values() if is_ready(held.task)), None)

    def waiting(self) -> list[wire.Task]:
        """The tasks in hand that the app has not begun."""
        return [held.task for held in self._held.values() if held.task.task != self.running]

    def on_version(self, version: int) -> list[wire.Task]:
        """The tasks in hand on one version that the app has not begun."""
        return [task for task in self.waiting() if task.version == version and task.digest is not None]

    def models(self) -> set[bytes]:
        """The digests of the models that tasks in hand need."""
        return {held.task.digest for held in self._held.values() if held.task.digest is not None}

    def overdue(self, now: float) -> list[wire.Task]:
        """The tasks in hand whose deadline has passed."""
        return [held.task for held in self._held.values() if held.deadline_at <= now]

    def next_deadline(self) -> float:
        """When `overdue` has something to say."""
        return min((held.deadline_at for held in self._held.values()), default=NEVER)
