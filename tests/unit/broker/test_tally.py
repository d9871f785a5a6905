"""Counting: distributions, labels from closed lists, and that every count in the code has its place."""

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fedmq.broker import metrics, tally
from fedmq.broker.tally import ANSWERED, RELEASED, Distribution, Tally, labels, reason_label

ROOM = Path(__file__).parents[3] / "broker"


@given(st.lists(st.floats(-10, 200)))
def test_a_distribution_counts_each_value_once(values: list[float]) -> None:
    """In the bucket of the least bound that is not below it."""
    found = Distribution(tally.STALENESS)
    for value in values:
        found.add(value)
    below = list(itertools.accumulate(found.counts))
    for bound, count in zip(tally.STALENESS, below, strict=False):
        assert count == sum(value <= bound for value in values)
    assert below[-1] == len(values)
    assert found.total == pytest.approx(sum(values))


def test_a_copy_no_longer_changes() -> None:
    """What is shown is of one moment."""
    found = Distribution([1.0])
    found.add(0.5)
    copy = found.copy()
    found.add(0.5)
    assert (copy.counts, copy.total) == ([1, 0], 0.5)


@pytest.mark.parametrize("known", [ANSWERED, RELEASED])
@given(text=st.text())
def test_a_reason_has_a_label_of_the_list(known: dict[str, str], text: str) -> None:
    """Whatever a peer writes, the labels stay those that there are."""
    assert reason_label(text, known) in labels(known)
    for begins, label in known.items():
        assert reason_label(begins + text, known) in labels(known)
        assert reason_label(begins, known) == label


def counted() -> Iterator[tuple[str, list[str | None]]]:
    """Every ``tally.add(…)`` in the code: the name, and each label where it is written out."""
    for path in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("tally.add"):
                first, *rest = node.args
                assert isinstance(first, ast.Constant)
                yield first.value, [a.value if isinstance(a, ast.Constant) else None for a in rest]


def test_every_count_has_a_metric() -> None:
    """Its name, as many labels, and of a label that is written out its value."""
    found = list(counted())
    assert len(found) > 15
    for name, given_labels in found:
        metric = metrics.BY_NAME[f"fedmq_{name}_total"]
        assert metric.kind == "counter"
        for value, allowed in zip(given_labels, metric.labels.values(), strict=True):
            assert value is None or value in allowed, (name, value)


def test_counting_is_an_addition() -> None:
    """By name and labels."""
    counts = Tally()
    counts.add("tasks_sent", "fit")
    counts.add("tasks_sent", "fit")
    counts.add("rounds_opened")
    assert counts.counts == {("tasks_sent", "fit"): 2, ("rounds_opened",): 1}
