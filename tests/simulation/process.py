"""A process that can be killed between any two actions of its mind, and between any two operations on its disk."""

from collections.abc import Callable, Iterable
from typing import Any


class Killed(BaseException):
    """The process is dead: nothing after this instant happened."""


class Process:
    """What the simulated broker and workers have in common: a life, and how it ends.

    `life` is what closures compare with, so that nothing which an earlier life began reaches the next one.
    """

    kind = "process"

    def __init__(self, name: str) -> None:
        self.name = name
        self.life = 0
        self.is_alive = False
        self._actions_left: int | None = None
        self._operations_left: int | None = None
        self._on_death: Callable[[], None] = lambda: None

    def kill_after(self, actions: int, on_death: Callable[[], None]) -> None:
        """Die before carrying out the action after so many more; `on_death` says what dies with it."""
        self._actions_left = actions
        self._on_death = on_death

    def kill_at_disk(self, operations: int, on_death: Callable[[], None]) -> None:
        """Die in the middle of the disk operation after so many more."""
        self._operations_left = operations
        self._on_death = on_death

    def spare(self) -> None:
        """Take back a death that has not come."""
        self._actions_left = self._operations_left = None

    def of_this_life(self, do: Callable[..., None]) -> Callable[..., None]:
        """`do`, but for nothing when it is called in another life than this one."""
        life = self.life

        def guarded(*args: Any) -> None:
            if self.is_alive and self.life == life:
                self.run(do, *args)

        return guarded

    def run(self, do: Callable[..., None], *args: Any) -> None:
        """Do something in this process, unless it dies of it."""
        try:
            do(*args)
        except Killed:
            self.die()
            on_death, self._on_death = self._on_death, lambda: None
            on_death()

    def carry_out(self, actions: Iterable[Any]) -> None:
        """Carry out a mind's actions, in order."""
        for action in actions:
            if self._actions_left is not None and self.matters(action):
                self._actions_left -= 1
                if self._actions_left < 0:
                    raise Killed
            self.perform(action)

    def operates(self) -> bool:
        """The process is about to change its disk; whether it dies of it, half-way."""
        if self._operations_left is None:
            return False
        self._operations_left -= 1
        return self._operations_left < 0

    def matters(self, action: Any) -> bool:
        """Whether being killed before this action differs from being killed after it."""
        return True

    def perform(self, action: Any) -> None:
        """Carry out one action."""
        raise TypeError(f"{self.name} cannot {type(action).__name__}")

    def begin(self) -> None:
        """A new life."""
        self.life += 1
        self.is_alive = True
        self.spare()

    def close(self) -> None:
        """Let go of what is open."""

    def die(self) -> None:
        """The end of this life."""
        self.is_alive = False
        self.spare()
