"""How contestants are compared: all in one process, turn by turn, and only those that compute the same.

Rules
-----
- First everybody computes once, untimed, and the results are checked. Who comes to another one is listed with
  the reason and takes no part.
- Then there are rounds, in each of which every contestant has one turn; the order moves on by one from round to
  round, so that nobody always follows the same neighbour. A figure is the median of a contestant's turns.
- A short pause precedes each turn: threads that still spin after the turn before go to sleep, and do not take
  this one's core. Python's garbage collector is off during a turn.
- What a contestant allocates because its interface does so is part of its time; outputs are given where an
  interface takes them.
- Turns are kept as they come: a run that is interrupted has the medians of what was measured until then.
"""

import dataclasses
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

__all__ = ["ROUNDS", "Absent", "Contest", "Contestant", "Result", "Topic"]

ROUNDS: Final = 7
PAUSE_S: Final = 0.005
TURN_S: Final = 0.001
"""A turn shorter than this repeats its call, see `Contestant.repeats`."""
ROOFLINES: Final = ("_read4", "_copy")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Contestant:
    """One way to compute what a topic is about.

    Attributes
    ----------
    kernel : str
        The name in `fedmq.fedcore.kernels` of what it is, or is compared with.
    impl : str
        ``native``, ``python`` (the reference), ``numpy``, ``torch`` or ``flwr``.
    variant : str
        Which of an implementation's ways.
    n, size_bytes : int
        Values in an update and bytes of the inputs, where they are not the topic's.
    repeats : bool
        Whether a turn may be many calls: where one takes microseconds.
    changes : object
        What a call changes, where that is its result and it does not return it.
    """

    kernel: str
    impl: str
    run: Callable[[], Any]
    mode: str = ""
    encoding: str = "f32"
    variant: str = ""
    threads: int = 1
    n: int = 0
    size_bytes: int = 0
    repeats: bool = False
    changes: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topic:
    """What one contest is about.

    Attributes
    ----------
    size_bytes : int
        Of the inputs, each counted once however often a contestant reads it: what GB/s are of.
    ours : (str, str)
        Kernel and mode of the native contestants that the others are compared with.
    wrong : callable
        Says what is wrong with a contestant's result, or gives an empty text.
    """

    name: str
    title: str
    n: int
    k: int
    size_bytes: int
    ours: tuple[str, str]
    contestants: Sequence[Contestant]
    wrong: Callable[[Contestant, Any], str]
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    """Relative errors by contestant, where the topic measures them."""


class Absent(msgspec.Struct, frozen=True):
    """Who would be here, and why it is not."""

    topic: str
    who: str
    reason: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The median of a contestant's turns; `of_roofline` is its GB/s over those of `_read4` in the same topic."""

    topic: str
    kernel: str
    mode: str
    encoding: str
    impl: str
    variant: str
    threads: int
    n: int
    k: int
    rounds: int
    median_s: float
    gbps: float
    of_roofline: float | None

    @property
    def name(self) -> str:
        """Who this is within its topic."""
        return " ".join(part for part in (self.impl, self.mode, self.variant) if part)


class Contest:
    """One topic, measured."""

    def __init__(
        self,
        topic: Topic,
        *,
        set_threads: Callable[[int], None],
        clock: Callable[[], float] = time.perf_counter,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.topic = topic
        self.absent: list[Absent] = []
        self._set_threads = set_threads
        self._clock = clock
        self._pause = pause
        self._turns: dict[Contestant, list[float]] = {}
        self._calls: dict[Contestant, int] = {}

    def warm_up(self) -> None:
        """Let everybody compute once, and keep those that come to the right result."""
        for contestant in self.topic.contestants:
            self._set_threads(contestant.threads)
            returned = contestant.run()
            result = returned if contestant.changes is None else contestant.changes
            wrong = self.topic.wrong(contestant, result)
            if wrong:
                who = " ".join((contestant.impl, contestant.kernel, contestant.variant)).strip()
                self.absent.append(Absent(self.topic.name, who, wrong))
                continue
            self._calls[contestant] = self._calls_for(contestant)
            self._turns[contestant] = []

    def play(self, rounds: int, tell: Callable[[int], None]) -> None:
        """Give everybody a turn in each round; `tell` hears which round begins."""
        order = list(self._turns)
        for number in range(rounds):
            tell(number + 1)
            start = number % max(len(order), 1)
            for contestant in order[start:] + order[:start]:
                self._turns[contestant].append(self._turn(contestant))

    def results(self) -> list[Result]:
        """The medians so far, without those who had no turn yet, rooflines first."""
        topic = self.topic
        medians = {one: statistics.median(turns) for one, turns in self._turns.items() if turns}
        limits = {one.threads: self._rate(one, s) for one, s in medians.items() if one.kernel == "_read4"}
        return [
            Result(
                topic=topic.name,
                kernel=one.kernel,
                mode=one.mode,
                encoding=one.encoding,
                impl=one.impl,
                variant=one.variant,
                threads=one.threads,
                n=one.n or topic.n,
                k=topic.k,
                rounds=len(self._turns[one]),
                median_s=median,
                gbps=self._rate(one, median) / 1e9,
                of_roofline=self._rate(one, median) / limits[one.threads] if one.threads in limits else None,
            )
            for one, median in sorted(medians.items(), key=lambda item: item[0].kernel not in ROOFLINES)
        ]

    def _rate(self, contestant: Contestant, seconds: float) -> float:
        return (contestant.size_bytes or self.topic.size_bytes) / seconds

    def _turn(self, contestant: Contestant) -> float:
        self._set_threads(contestant.threads)
        self._pause(PAUSE_S if not contestant.repeats else 0.0)
        run, calls = contestant.run, self._calls[contestant]
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            begun = self._clock()
            for _ in itertools.repeat(None, calls):
                run()
            return (self._clock() - begun) / calls
        finally:
            if was_enabled:
                gc.enable()

    def _calls_for(self, contestant: Contestant) -> int:
        """How many calls make a turn: doubled until they are long enough for the clock."""
        calls = 1
        while contestant.repeats:
            begun = self._clock()
            for _ in itertools.repeat(None, calls):
                contestant.run()
            if self._clock() - begun >= TURN_S:
                break
            calls *= 2
        return calls
