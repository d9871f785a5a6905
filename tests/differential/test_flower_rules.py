"""The robust rules beside Flower's (flwr.server.strategy.aggregate), on integers, of which float32 makes no error.

Where the two differ, a test says so: Flower's trimmed mean cuts int(βK), its Multi-Krum weighs by what workers claim,
and its Krum takes float32 distances of float32 models.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore import config
from fedmq.fedcore.strategy.selection import scores

from ..unit.fedcore.vectors import Vectors, column
from .flower import aggregate as flower

vectors = st.integers(7, 11).flatmap(
    lambda k: st.lists(
        st.lists(st.integers(-1000, 1000), min_size=4, max_size=4), min_size=k, max_size=k, unique_by=tuple
    )
)


def results(u: Any) -> list[Any]:
    return [([np.array(x, np.float64)], 1) for x in u]


@given(vectors)
def test_median(u: list[list[int]]) -> None:
    """The same."""
    np.testing.assert_array_equal(Vectors(u).by(config.Median()), flower.aggregate_median(results(u))[0])


@given(vectors)
def test_trimmed_mean(u: list[list[int]]) -> None:
    """The same, to the rounding of one float32."""
    found, theirs = (
        Vectors(u).by(config.TrimmedMean()),
        flower.aggregate_trimmed_avg(results(u), 0.2),
    )
    np.testing.assert_allclose(found, theirs[0], rtol=1e-7, atol=1e-12)


def test_trimmed_mean_cuts_what_was_asked_for() -> None:
    """Where they differ: of 100, a share of 0.29 is 29; Flower's int(0.29 * 100) is 28."""
    u = column(*[0] * 71, *[1000] * 29)
    assert Vectors(u).by(config.TrimmedMean(trim=0.29)).tolist() == [0]
    assert flower.aggregate_trimmed_avg(results(u), 0.29)[0] > 0


@given(vectors)
def test_krum(u: list[list[int]]) -> None:
    """The same update, where one has the lowest score."""
    x = Vectors(u)
    found = sorted(scores(x.sq_distances(), 1))
    if found[0] < found[1] * (1 - 1e-9):
        np.testing.assert_array_equal(
            x.by(config.Krum(byzantine=1)), flower.aggregate_krum(results(u), 1, 0)[0]
        )


@given(vectors)
def test_multi_krum(u: list[list[int]]) -> None:
    """The same mean, where the third and the fourth score differ."""
    x = Vectors(u)
    found = sorted(scores(x.sq_distances(), 1))
    if found[2] < found[3] * (1 - 1e-9):
        theirs = flower.aggregate_krum(results(u), 1, 3)[0]
        np.testing.assert_allclose(x.by(config.MultiKrum(byzantine=1, selected=3)), theirs, rtol=1e-12)


def test_multi_krum_does_not_weigh_by_examples() -> None:
    """Where they differ: Flower's mean goes by what the chosen workers claim."""
    u = column(0, 1, 2, 4, 100)
    claims = [([np.array(x, np.float64)], 10**6 if x == [1] else 1) for x in u]
    assert Vectors(u).by(config.MultiKrum(byzantine=1)).tolist() == [0.5]
    assert flower.aggregate_krum(claims, 1, 2)[0] == pytest.approx([1], abs=1e-5)


def test_krum_in_float32_is_another_choice() -> None:
    """Where they differ: float32 models make float32 distances in Flower, and 35246410 < 35246412 is lost."""
    x = Vectors([[0, 0], [4200, 4197], [4201, 4196], [8399, 8394], [1e5, -1e5]])
    assert scores(x.sq_distances(), 1)[1:3] == [35246412, 35246410]
    assert x.by(config.Krum(byzantine=1)).tolist() == [4201, 4196]
    assert flower.aggregate_krum([([row], 1) for row in x.delta], 1, 0)[0].tolist() == [4200, 4197]


@given(vectors)
def test_bulyan(u: list[list[int]]) -> None:
    """The same, where no sum of several distances is as low as another: Flower 1.3x chooses again, too.

    Where one neighbour counts, two that are each other's have the same score: then both take the first.
    """
    x = Vectors(u)
    sq, left = x.sq_distances(), list(range(len(u)))
    theta = len(u) - 2
    for _ in range(theta):
        found = scores(sq, 1, left)
        order = sorted(found)
        if len(left) - 3 > 1 and order[0] >= order[1] * (1 - 1e-9):
            return  # theirs are rounded
        del left[found.index(order[0])]
    chosen = x.u[[i for i in range(len(u)) if i not in left]]
    gaps = np.sort(abs(chosen - np.median(chosen, axis=0)), axis=0)
    if (gaps[theta - 3] == gaps[theta - 2]).any():
        return  # two values are as far from the median
    theirs = flower.aggregate_bulyan(results(u), 1, flower.aggregate_krum, to_keep=0)
    np.testing.assert_allclose(x.by(config.Bulyan(byzantine=1)), theirs[0], rtol=1e-12, atol=1e-12)
