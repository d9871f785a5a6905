"""The embedding program's functions: in order, in their own thread, and harmless when they raise."""

import queue
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedmq.worker import hooks as hooks_module
from fedmq.worker.events import Event, MayTrain, Moment
from fedmq.worker.hooks import Hooks


def test_moments_arrive_in_order_in_another_thread() -> None:
    """Also after one of the calls raised."""
    told: list[tuple[Moment, int, int]] = []

    def on_event(moment: Moment, fields: Mapping[str, Any]) -> None:
        told.append((moment, fields["n"], threading.get_ident()))
        if fields["n"] == 0:
            raise RuntimeError("the user's own")

    hooks = Hooks(on_event, None, lambda event: None)
    hooks.start()
    for n in range(3):
        hooks.tell(Moment.CONNECTED, {"n": n})
    hooks.close(5)
    assert [n for _, n, _ in told] == [0, 1, 2]
    assert {thread for _, _, thread in told}.isdisjoint({threading.get_ident()})


def test_may_train_is_asked_before_anything_and_its_changes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Yes is the default; an answer that is the same as before is no event; raising means no."""
    monkeypatch.setattr(hooks_module, "POLL_S", 0.001)
    answers = iter([False, False, True, True, RuntimeError("sensor"), True])
    events: queue.Queue[Event] = queue.Queue()

    def may_train() -> bool:
        answer = next(answers, True)
        if isinstance(answer, Exception):
            raise answer
        return answer is True

    hooks = Hooks(None, may_train, events.put)
    hooks.start()
    assert events.get_nowait() == MayTrain(False)
    assert [events.get(timeout=5) for _ in range(3)] == [MayTrain(True), MayTrain(False), MayTrain(True)]
    hooks.close(5)


def test_without_functions_there_is_no_thread() -> None:
    """Nor does telling cost anything."""
    before = threading.active_count()
    hooks = Hooks(None, None, lambda event: None)
    hooks.start()
    hooks.tell(Moment.CONNECTED, {})
    assert threading.active_count() == before
    hooks.close(5)


def test_every_moment_is_on_the_page() -> None:
    """docs/operations.md says of each what it tells."""
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.split("| moment |")[1].split("\n\n")[0]
    named = {name for line in section.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == {moment.value for moment in Moment}
