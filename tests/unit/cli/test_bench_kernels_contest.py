"""The kernels' benchmark takes turns: under a fake clock, who has one when, what is counted, and what is checked."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fedmq.cli.bench.kernels.contest import Contest, Contestant, Topic
from fedmq.cli.bench.kernels.run import Found, play
from fedmq.cli.bench.kernels.workload import Workload


class Clock:
    """Time that passes when somebody computes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def taking(self, name: str, *seconds: float, **options: Any) -> Contestant:
        """A contestant whose calls take these times, one after the other and then all over again."""
        times = self._forever(seconds)

        def run() -> str:
            self.now += next(times)
            self.log.append(name)
            return name

        return Contestant(
            **{"kernel": "weighted_mean", "impl": "numpy", "variant": name, "run": run, **options}
        )

    @staticmethod
    def _forever(seconds: tuple[float, ...]) -> Iterator[float]:
        while True:
            yield from seconds


def contest(
    clock: Clock,
    *contestants: Contestant,
    wrong: Callable[[Contestant, Any], str] = lambda contestant, result: "",
    set_threads: Callable[[int], None] = lambda threads: None,
) -> Contest:
    topic = Topic(
        name="mean",
        title="means",
        n=1000,
        k=4,
        size_bytes=16_000,
        ours=("weighted_mean", "exact"),
        contestants=contestants,
        wrong=wrong,
    )
    return Contest(topic, set_threads=set_threads, clock=clock, pause=lambda seconds: None)


def test_a_figure_is_the_median_of_turns() -> None:
    """The first call, which is checked, is not one of them."""
    clock = Clock()
    one = contest(clock, clock.taking("a", 100.0, 1.0, 9.0, 2.0))
    one.warm_up()
    one.play(3, lambda number: None)
    (found,) = one.results()
    assert found.median_s == pytest.approx(2.0)
    assert found.rounds == 3
    assert found.gbps == pytest.approx(8e-6)


def test_everybody_has_a_turn_in_each_round_and_the_order_moves_on() -> None:
    """So that nobody always follows the same neighbour."""
    clock = Clock()
    one = contest(clock, *(clock.taking(name, 1.0) for name in "abc"))
    one.warm_up()
    heard: list[int] = []
    one.play(4, heard.append)
    assert "".join(clock.log) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert heard == [1, 2, 3, 4]


def test_threads_are_set_before_each_turn() -> None:
    """To the contestant's own number."""
    clock = Clock()
    given: list[int] = []
    one = contest(clock, clock.taking("a", 1.0), clock.taking("b", 1.0, threads=2), set_threads=given.append)
    one.warm_up()
    one.play(2, lambda number: None)
    assert given == [1, 2, 1, 2, 2, 1]


def test_no_garbage_is_collected_in_a_turn() -> None:
    """And the collector is on again after it."""
    clock = Clock()
    seen: list[bool] = []
    one = contest(clock, Contestant(kernel="k", impl="numpy", run=lambda: seen.append(gc.isenabled())))
    one.warm_up()
    one.play(2, lambda number: None)
    assert seen == [True, False, False]
    assert gc.isenabled()


def test_who_computes_something_else_takes_no_part() -> None:
    """But is listed, with the reason."""
    clock = Clock()
    one = contest(
        clock,
        clock.taking("right", 1.0),
        clock.taking("off", 0.1),
        wrong=lambda contestant, result: "it differs" if result == "off" else "",
    )
    one.warm_up()
    one.play(2, lambda number: None)
    assert [found.variant for found in one.results()] == ["right"]
    (absent,) = one.absent
    assert (absent.topic, absent.who, absent.reason) == ("mean", "numpy weighted_mean off", "it differs")


def test_what_a_call_changes_is_checked_where_it_returns_nothing() -> None:
    """As kernels do that work in place."""
    x, seen = np.zeros(3), []
    one = contest(
        Clock(),
        Contestant(kernel="sgd_", impl="native", run=lambda: x.fill(1), changes=x),
        wrong=lambda contestant, result: seen.append(result.tolist()) or "",
    )
    one.warm_up()
    assert seen == [[1, 1, 1]]


def test_short_calls_are_repeated() -> None:
    """Until a turn is a millisecond; the figure is that of one call."""
    clock = Clock()
    one = contest(clock, clock.taking("a", 1e-5, repeats=True))
    one.warm_up()
    clock.log.clear()
    one.play(1, lambda number: None)
    assert len(clock.log) == 128
    assert one.results()[0].median_s == pytest.approx(1e-5)


def test_shares_are_of_the_roofline_with_as_many_threads() -> None:
    """Of the same contest, and by bytes in a second."""
    clock = Clock()
    one = contest(
        clock,
        clock.taking("a", 4.0),
        clock.taking("b", 4.0, threads=2),
        clock.taking("c", 4.0, threads=3),
        clock.taking("limit", 2.0, kernel="_read4"),
        clock.taking("limit", 2.0, kernel="_read4", threads=2, size_bytes=32_000),
    )
    one.warm_up()
    one.play(1, lambda number: None)
    found = {(each.kernel, each.threads): each.of_roofline for each in one.results()}
    assert list(found) == [("_read4", 1), ("_read4", 2)] + [("weighted_mean", count) for count in (1, 2, 3)]
    assert [found["weighted_mean", count] for count in (1, 2, 3)] == [0.5, 0.25, None]


def test_an_interrupted_contest_has_the_medians_so_far() -> None:
    """Of those that had a turn at all."""
    clock = Clock()
    found = Found(workload=Workload(n=1000, k=4), machine={})

    def stop(number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(contest(clock, clock.taking("a", 1.0), clock.taking("b", 2.0)), found, 7, stop)
    assert [(one.variant, one.rounds, one.median_s) for one in found.results] == [
        ("a", 2, 1.0),
        ("b", 2, 2.0),
    ]
    assert not found.complete
