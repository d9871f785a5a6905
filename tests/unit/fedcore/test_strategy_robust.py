"""The robust rules: small cases by hand from their papers. Beside others' implementations: tests/differential."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore import config
from fedmq.fedcore.strategy import robust
from fedmq.fedcore.strategy.combination import mixture_of
from fedmq.fedcore.strategy.robust import around_median
from fedmq.fedcore.strategy.selection import krum_order, repeated_krum, scores

from .vectors import Vectors, column


class TestByHand:
    def test_median(self) -> None:
        """Each coordinate on its own; of an even number, the mean of the two in the middle."""
        assert Vectors([[1, 9], [2, 7], [100, 8]]).by(config.Median()).tolist() == [2, 8]
        assert Vectors(column(1, 100, 3, 2)).by(config.Median()).tolist() == [2.5]

    def test_trimmed_mean(self) -> None:
        """β = 0.2 of five cuts one at each end; of nine still one, of ten two."""
        assert Vectors(column(-50, 1, 2, 6, 1000)).by(config.TrimmedMean()).tolist() == [3]
        nine, ten = Vectors(column(*range(8), 80)), Vectors(column(*range(8), 80, 90))
        assert nine.by(config.TrimmedMean()).tolist() == [sum(range(1, 8)) / 7]
        assert ten.by(config.TrimmedMean()).tolist() == [sum(range(2, 8)) / 6]

    def test_krum(self) -> None:
        """n = 5, f = 1: scores are sums over the n − f − 2 = 2 nearest; the smallest one is chosen as it is."""
        line = Vectors(column(0, 1, 2, 4, 100))
        assert scores(line.sq_distances(), 1) == [1 + 4, 1 + 1, 1 + 4, 4 + 9, 96**2 + 98**2]
        assert line.by(config.Krum(byzantine=1)).tolist() == [1]

    def test_multi_krum(self) -> None:
        """The mean of the m best scores; m is n − f − 2 unless it is given."""
        line = Vectors(column(0, 1, 2, 4, 100))
        assert krum_order(line.sq_distances(), 1) == [1, 0, 2, 3, 4]
        assert line.by(config.MultiKrum(byzantine=1)).tolist() == [0.5]
        assert line.by(config.MultiKrum(byzantine=1, selected=1)).tolist() == [1]

    def test_equal_scores_go_by_the_order_of_tasks(self) -> None:
        """Of two that are as good, the first."""
        assert krum_order(Vectors(column(5, 5, 5, 5, 5)).sq_distances(), 1) == [0, 1, 2, 3, 4]

    def test_bulyan_chooses_again_after_each_choice(self) -> None:
        """n = 7, f = 1 on the line 0 3 4 5 9 10 14; K − f − 2 = 4 neighbours count, then 3, 2, 1 and 1.

        The best five scores of one round, 43 46 50 67 78, are those of 4 5 3 9 10. But when 4 has gone, 9 and 10 have
        the lowest, 42 (5: 45); then 3 has 13, then 10 and 14 have 16, then 0 and 5 have 25.
        """
        sq = Vectors(column(0, 3, 4, 5, 9, 10, 14)).sq_distances()
        assert scores(sq, 1) == [131, 50, 43, 46, 67, 78, 222]
        assert scores(sq, 1, [0, 1, 3, 4, 5, 6]) == [115, 49, 45, 42, 42, 122]
        assert scores(sq, 1, [0, 1, 3, 5, 6]) == [34, 13, 29, 41, 97]
        assert scores(sq, 1, [0, 3, 5, 6]) == [25, 25, 16, 16]
        assert scores(sq, 1, [0, 3, 6]) == [25, 25, 81]
        assert sorted(krum_order(sq, 1)[:5]) == [1, 2, 3, 4, 5]
        assert repeated_krum(sq, 1, 5) == [0, 1, 2, 4, 5]

    def test_bulyan(self) -> None:
        """n = 7, f = 1: θ = 5 are chosen, and of each coordinate the θ − 2f = 3 next to the median averaged."""
        honest = [[0, 0], [1, 0], [0, 1], [1, 1], [2, 1], [1, 2]]
        x = Vectors([*honest, [1000, -1000]])
        chosen = repeated_krum(x.sq_distances(), 1, 5)
        assert 6 not in chosen
        near = [
            np.sort(c)[np.argsort(abs(np.sort(c) - np.median(c)), kind="stable")[:3]] for c in x.u[chosen].T
        ]
        np.testing.assert_allclose(x.by(config.Bulyan(byzantine=1)), [c.mean() for c in near])

    def test_geometric_median(self) -> None:
        """One Weiszfeld step from the mean of 0, 0, 0, 4: β = 1, 1, 1, 1/3, so d = (4/3) / (10/3) = 0.4."""
        x = Vectors(column(0, 0, 0, 4))
        assert x.by(config.GeometricMedian(iterations=1)) == pytest.approx([0.4], rel=1e-9)
        assert x.by(config.GeometricMedian(iterations=50)) == pytest.approx([0], abs=1e-5)

    def test_the_geometric_median_of_a_triangle_is_its_fermat_point(self) -> None:
        """Every side is seen under 120°."""
        x = Vectors([[0, 0], [4, 0], [1, 3]])
        d = x.by(config.GeometricMedian(iterations=100))
        spokes = (x.u - d) / np.linalg.norm(x.u - d, axis=1)[:, None]
        np.testing.assert_allclose(spokes @ spokes.T, np.full((3, 3), -0.5) + 1.5 * np.eye(3), atol=1e-6)

    def test_centered_clipping(self) -> None:
        """From v = 1 with radius 2: 0, 2, 101 pull by −1, 1 and 2, so d = 1 + 2/3; and once more from there."""
        x = Vectors(column(0, 2, 101), previous=[1])
        once = 1 + 2 / 3
        assert x.by(config.CenteredClipping(radius=2)) == pytest.approx([once], rel=1e-9)
        twice = once + (-once + (2 - once) + 2) / 3
        assert x.by(config.CenteredClipping(radius=2, iterations=2)) == pytest.approx([twice], rel=1e-9)

    def test_centered_clipping_within_the_radius_is_the_mean(self) -> None:
        """Nothing is clipped, and v cancels."""
        x = Vectors(column(0, 2, 101), previous=[7])
        assert x.by(config.CenteredClipping(radius=1e6)) == pytest.approx([103 / 3], rel=1e-9)

    def test_norm_bound(self) -> None:
        """(3, 4) has norm 5 and shrinks to 1; (0, 0.5) stays."""
        x = Vectors([[3, 4], [0, 0.5]])
        assert x.by(config.NormBound(max_norm=1)) == pytest.approx([0.3, 0.65])


class TestStaleness:
    @pytest.mark.parametrize(
        "rule",
        [config.Median(), config.TrimmedMean(), config.MultiKrum(byzantine=1), config.GeometricMedian(),
         config.CenteredClipping(radius=1.0), config.Bulyan(byzantine=1), config.Krum(byzantine=1)],
        ids=lambda rule: rule.kind,
    )  # fmt: skip
    def test_an_update_counts_as_what_it_is_scaled_to(self, rule: config.Rule) -> None:
        """s(τ) Δ is combined as a fresh update of that length would be."""
        rng = np.random.default_rng(3)
        delta, s = rng.normal(size=(7, 4)).astype(np.float32), [1, 0.5, 1, 0.25, 1, 0.5, 1]
        fresh = Vectors(delta * np.array(s, np.float32)[:, None])
        np.testing.assert_allclose(Vectors(delta, s).by(rule), fresh.by(rule), rtol=1e-9, atol=1e-12)


class TestParts:
    def test_bulyan_is_not_the_best_scores_of_one_round(self) -> None:
        """What older releases of Flower computed, and here is told apart: another set is chosen."""
        rng = np.random.default_rng(1)
        differs = 0
        for _ in range(50):
            sq = Vectors(rng.integers(-9, 9, size=(7, 2))).sq_distances()
            differs += repeated_krum(sq, 1, 5) != sorted(krum_order(sq, 1)[:5])
        assert differs > 5

    @given(
        st.lists(st.lists(st.floats(-100, 100, width=16), min_size=3, max_size=3), min_size=3, max_size=9),
        st.data(),
    )
    def test_around_median(self, rows: list[list[float]], data: st.DataObject) -> None:
        """The values closest to the median, by sorting their distances; of equally close ones the smaller."""
        count = data.draw(st.integers(1, len(rows)))
        x = np.array(rows, np.float32)
        expected = []
        for values in np.sort(x, axis=0).T.astype(float):
            near = np.argsort(abs(values - np.float32(np.median(values))), kind="stable")[:count]
            expected.append(math.fsum(values[near]) / count)
        np.testing.assert_allclose(around_median(x, count), expected, rtol=1e-12, atol=1e-12)

    @given(st.permutations(range(15)))
    def test_selection_does_not_depend_on_the_order(self, order: list[int]) -> None:
        """Permuted vectors, the same chosen ones, unless two are equally good."""
        u = np.random.default_rng(7).normal(size=(15, 3))
        sq = ((u[:, None] - u) ** 2).sum(axis=2)
        permuted = sq[np.ix_(order, order)]
        assert [order[i] for i in krum_order(permuted, 3)] == krum_order(sq, 3)
        assert sorted(order[i] for i in repeated_krum(permuted, 3, 9)) == repeated_krum(sq, 3, 9)

    @given(
        st.lists(st.floats(0, 1e12), min_size=1, max_size=9).filter(lambda c: max(c) > 0), st.floats(0, 1e12)
    )
    def test_a_mixture_is_an_average(self, coefficients: list[float], previous: float) -> None:
        """Weights over the denominator add up to one exactly, and are the coefficients' shares to 2⁻⁴⁰."""
        made = mixture_of(coefficients, [1.0] * len(coefficients), previous)
        assert math.fsum([*made.weights, made.previous]) == made.denominator
        largest = max(*coefficients, previous)
        for c, w in zip([*coefficients, previous], [*made.weights, made.previous], strict=True):
            assert w == pytest.approx(c / largest * 2**20, abs=2**-20)

    @pytest.mark.parametrize(
        "bad", [[0.0, 0.0], [1.0, -1.0], [math.inf, 1.0], [math.nan, 1.0], [1.0, math.nan]]
    )
    def test_coefficients_that_make_no_average(self, bad: list[float]) -> None:
        """They are refused."""
        with pytest.raises(ValueError, match="coefficients must be finite"):
            mixture_of(bad, [1.0, 1.0])

    @pytest.mark.parametrize("table", [config.Median(), config.TrimmedMean(trim=0.1), config.Krum(byzantine=2),
                                       config.MultiKrum(byzantine=1, selected=9), config.Bulyan(byzantine=1),
                                       config.GeometricMedian(), config.CenteredClipping(radius=1.0),
                                       config.NormBound(max_norm=1.0), config.Mean()])  # fmt: skip
    def test_a_rule_needs_what_its_table_says(self, table: Any) -> None:
        """The config and the fold hold a buffer to the same minimum."""
        assert robust.make(table).minimum == table.minimum


@pytest.mark.parametrize(
    ("trim", "minimum"),
    [(0.2, 5), (0.25, 4), (0.3, 4), (0.1, 10), (0.49, 3), (0.29, 4), (1 / 3, 3), (0.07, 15)],
)
def test_a_trim_needs_so_many_that_one_is_cut(trim: float, minimum: int) -> None:
    """With one fewer, nothing would be."""
    table = config.TrimmedMean(trim=trim)
    assert table.minimum == minimum
    assert table.cut(minimum) >= 1
    assert minimum == 3 or table.cut(minimum - 1) == 0
