"""The kernels' benchmark judges: what is compared with what, from which n native pays, and which bars are met."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.cli.bench.kernels import report
from fedmq.cli.bench.kernels.bars import bars
from fedmq.cli.bench.kernels.calls import ONE_UPDATE, SIZES, crossovers
from fedmq.cli.bench.kernels.vectors import SECURE, STAND_IN
from fedmq.cli.bench.kernels.workload import BAR_K, BAR_N, Workload

from .kernel_results import bar, called, result


@pytest.mark.parametrize(
    ("native", "start"),
    [
        ((1, 1, 1), 16),
        ((3, 1, 1), 64),
        ((1, 3, 1), 256),  # a win at a smaller n does not count when a loss comes after it
        ((1, 1, 3), None),
        ((2, 2, 2), 16),  # as fast is not slower
    ],
)
def test_the_crossover(native: tuple[int, int, int], start: int | None) -> None:
    """From there on native is never slower."""
    sizes = (16, 64, 256)
    results = called("sgd_", dict(zip(sizes, native, strict=True)), dict.fromkeys(sizes, 2))
    assert crossovers(results) == {"sgd_": start}


@given(
    st.lists(
        st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([1.0, 2.0, 3.0])), min_size=1, max_size=7
    )
)
def test_the_crossover_is_the_first_of_an_unbroken_run(times: list[tuple[float, float]]) -> None:
    """Nothing from it on is slower, and what is just below it is."""
    sizes = SIZES[: len(times)]
    native = {n: mine for n, (mine, _) in zip(sizes, times, strict=True)}
    numpy = {n: theirs for n, (_, theirs) in zip(sizes, times, strict=True)}
    start = crossovers(called("sgd_", native, numpy))["sgd_"]
    after = [n for n in sizes if start is not None and n >= start]
    assert all(native[n] <= numpy[n] for n in after)
    before = [n for n in sizes if n not in after]
    assert not before or native[before[-1]] > numpy[before[-1]]


def test_kernels_without_a_twin_have_no_crossover() -> None:
    """The call that is measured for its overhead alone, or a kernel that is absent."""
    results = [
        result("native", topic="calls", n=16, variant=ONE_UPDATE),
        result("numpy", topic="calls", kernel="median", n=16),
        result("native", topic="mean", kernel="clip_", n=16),
    ]
    assert crossovers(results) == {}


def test_all_twelve_bars_are_there_without_any_result() -> None:
    """Without a figure, and without a verdict."""
    found = bars([], Workload(), {}, {})
    assert sorted({one.number for one in found}) == list(range(1, 13))
    assert all(one.measured is None and one.met is None for one in found)


@pytest.mark.parametrize(("share", "met"), [(0.75, True), (0.749, False)])
def test_a_share_of_the_roofline(share: float, met: bool) -> None:
    """A bar that is reached exactly is met."""
    found = bars([result(mode="exact", of_roofline=share)], Workload(), {}, {})
    one = bar(found, "weighted mean exact, 1 T")
    assert (one.number, one.needed, one.measured, one.met) == (3, 0.75, share, met)
    assert bar(found, "weighted mean exact, 2 T").met is None


def test_a_peers_fastest_way_counts() -> None:
    """Where the bar does not name one."""
    results = [
        result(mode="exact", topic="clip", median_s=1.0),
        result("torch", 3.0, topic="clip", variant="norm, scale, add"),
        result("torch", 1.3, topic="clip", variant="norm, add with alpha"),
    ]
    one = bar(bars(results, Workload(), {}, {}), "clip and fold, 1 T", "torch")
    assert (one.measured, one.met) == (1.3, False)


def test_both_sides_have_the_same_threads() -> None:
    """A peer with two threads is compared with ours with two."""
    results = [
        result(mode="exact", median_s=2.0),
        result(mode="exact", median_s=1.0, threads=2),
        result("torch", 3.6, variant="_foreach_add_"),
        result("torch", 1.6, variant="_foreach_add_", threads=2),
    ]
    found = bars(results, Workload(), {}, {})
    assert bar(found, "exact, 1 T", "foreach").measured == pytest.approx(1.8)
    assert bar(found, "exact, 2 T", "foreach").measured == pytest.approx(1.6)
    assert bar(found, "exact, 2 T", "foreach").met is False


@pytest.mark.parametrize("variant", [SECURE, STAND_IN])
def test_secure_noise_is_opacus_or_its_arithmetic(variant: str) -> None:
    """Whichever was measured."""
    results = [
        result(topic="noise", kernel="add_gaussian_"),
        result("torch", 16.0, topic="noise", kernel="add_gaussian_", variant=variant),
    ]
    assert bar(bars(results, Workload(), {}, {}), "noise, 1 T", "Opacus").met is True


def test_the_gram_matrix_is_no_distance() -> None:
    """The bar is about cdist by differences, however fast the other is; and there is one for the error."""
    results = [
        result(topic="distances", kernel="pairwise_sq_distances"),
        result("torch", 1.0, topic="distances", kernel="pairwise_sq_distances", variant="cdist, Gram matrix"),
        result(
            "torch", 11.0, topic="distances", kernel="pairwise_sq_distances", variant="cdist, differences"
        ),
    ]
    found = bars(results, Workload(), {"native": 2e-6, "torch cdist, Gram matrix": 0.3}, {})
    assert bar(found, "distances, 1 T").measured == 11.0
    assert bar(found, "distances, relative error").met is False


def test_the_slowest_call_counts() -> None:
    """Of the tiny ones, named; a mean of four updates is not one of them."""
    results = [
        result(median_s=1e-6, topic="calls", kernel="sgd_", n=16),
        result(median_s=1.6e-6, topic="calls", variant=ONE_UPDATE, mode="exact", n=16),
        result(median_s=3e-6, topic="calls", variant="4 updates", mode="exact", n=16),
        result(median_s=9e-6, topic="calls", kernel="sgd_", n=64),
    ]
    one = bar(bars(results, Workload(), {}, {}), "a call of weighted_mean")
    assert (one.measured, one.met) == (pytest.approx(1.6), False)


@pytest.mark.parametrize(("start", "met"), [(16, True), (256, True), (1024, False), (None, False)])
def test_native_pays_from_256_values(start: int | None, met: bool) -> None:
    """For each kernel by itself."""
    one = bar(bars([], Workload(), {}, {"sgd_": start}), "sgd_ never slower")
    assert (one.number, one.met) == (12, met)


@pytest.mark.parametrize("workload", [Workload(n=BAR_N // 10), Workload(k=BAR_K // 2)])
def test_other_sizes_have_no_verdict(workload: Workload) -> None:
    """A bar for one size says nothing about another."""
    found = bars([result(mode="exact", of_roofline=0.99)], workload, {}, {"sgd_": 16})
    assert bar(found, "weighted mean exact, 1 T").measured == 0.99
    assert all(one.met is None for one in found)
    shown = report.bar_lines(found, workload.is_the_bars)
    assert "no verdict" in shown[0]
    assert not any(line.endswith("met") for line in shown)
