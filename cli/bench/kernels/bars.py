"""What each kernel shall reach, and whether it did: the twelve bars, from one run's results.

Rules
-----
- Both sides have the same number of threads. What uses one thread whatever it may (numpy, Flower) is compared with
  one thread of ours.
- A peer with several ways to do what the bar names counts with its fastest; `distances` is the exception, whose
  Gram matrix gives other numbers.
- A bar is about one size. Other sizes have figures and no verdict.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from .calls import ONE_UPDATE, TINY
from .contest import Result
from .robust import ERROR_BAR
from .vectors import SECURE, STAND_IN
from .workload import Workload

__all__ = ["Bar", "bars"]

OVERHEAD_S: Final = 1.5e-6
CROSSOVER_N: Final = 256


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One bar.

    Attributes
    ----------
    number : int
        Bars with the same number are parts of one.
    unit : str
        What `needed` and `measured` are in.
    at_most : bool
        Whether smaller is better.
    measured : float or None
        None where somebody was absent.
    met : bool or None
        None without a verdict: nothing measured, or at another size.
    """

    number: int
    what: str
    needed: float
    unit: str
    at_most: bool = False
    measured: float | None = None
    met: bool | None = None


class _Found:
    """The results, and how they compare."""

    def __init__(self, results: Iterable[Result]) -> None:
        self._results = list(results)

    def best(
        self,
        topic: str,
        impl: str,
        threads: int = 1,
        variants: tuple[str, ...] = (),
        mode: str = "",
        kernel: str = "",
    ) -> Result | None:
        """The fastest that fits; empty arguments fit everything."""
        fitting = [
            one
            for one in self._results
            if (one.topic, one.impl, one.threads) == (topic, impl, threads)
            and not one.kernel.startswith("_")
            and (not variants or one.variant in variants)
            and (not mode or one.mode == mode)
            and (not kernel or one.kernel == kernel)
        ]
        return min(fitting, key=lambda one: one.median_s, default=None)

    def tiny(self) -> list[Result]:
        """Calls whose work is next to nothing."""
        tiny = [
            one for one in self._results if one.topic == "calls" and one.impl == "native" and one.n == TINY
        ]
        return [one for one in tiny if one.variant in ("", ONE_UPDATE)]

    @property
    def threads(self) -> list[int]:
        """With which native kernels were measured."""
        return sorted({one.threads for one in self._results if one.impl == "native"})


def bars(
    results: Iterable[Result],
    workload: Workload,
    errors: dict[str, float],
    crossovers: dict[str, int | None],
) -> list[Bar]:
    """All bars; those that could not be measured have no figure."""
    found = _Found(results)
    made = [*_shares(found), *_ratios(found, workload.k), *_others(found, errors, crossovers)]
    made.sort(key=lambda bar: bar.number)
    return [_judged(bar, workload.is_the_bars) for bar in made]


def _judged(bar: Bar, is_the_size: bool) -> Bar:
    if bar.measured is None or not is_the_size:
        return bar
    met = bar.measured <= bar.needed if bar.at_most else bar.measured >= bar.needed
    return msgspec.structs.replace(bar, met=met)


def _shares(found: _Found) -> Iterator[Bar]:
    """Of the roofline."""
    needed = [
        (1, "weighted mean f32", "weighted_mean", "f32", {1: 0.90, 2: 0.90}),
        (2, "weighted mean f64", "weighted_mean", "f64", {1: 0.80, 2: 0.88}),
        (3, "weighted mean exact", "weighted_mean", "exact", {1: 0.75, 2: 0.85}),
        (5, "streaming Accumulator", "Accumulator", "exact", {1: 0.60, 2: 0.60}),
    ]
    for number, what, kernel, mode, shares in needed:
        for threads, share in shares.items():
            one = found.best("mean", "native", threads, mode=mode, kernel=kernel)
            measured = None if one is None else one.of_roofline
            yield Bar(
                number=number, what=f"{what}, {threads} T", needed=share, unit="× read4", measured=measured
            )


def _ratios(found: _Found, k: int) -> Iterator[Bar]:
    """How many times as fast as others."""
    exact, streaming = ("weighted_mean", "exact"), ("Accumulator", "exact")
    adding, noise, median = ("weighted_mean", "exact"), ("add_gaussian_", ""), ("median", "")
    distances, adam = ("pairwise_sq_distances", ""), ("adam_", "")
    both = (1, 2)
    needed: list[tuple[int, str, str, tuple[str, str], str, tuple[str, ...], tuple[int, ...], float, str]] = [
        (4, "exact", "mean", exact, "flwr", ("aggregate",), (1,), 4.0, "Flower's aggregate"),
        (4, "exact", "mean", exact, "torch", ("_foreach_add_",), both, 1.7, "torch _foreach_add_"),
        (4, "exact", "mean", exact, "torch", ("stack + mv",), both, 2.5, "torch stack + mv"),
        (5, "Accumulator", "mean", streaming, "torch", ("_foreach_add_",), both, 1.2, "torch _foreach_add_"),
        (6, "clip and fold", "clip", adding, "numpy", (), (1,), 2.5, "numpy"),
        (6, "clip and fold", "clip", adding, "torch", (), both, 1.4, "torch"),
        (7, "f16 fold", "f16", adding, "numpy", (), (1,), 8.0, "numpy"),
        (7, "f16 fold", "f16", adding, "torch", (), both, 8.0, "torch"),
        (7, "bf16 fold", "bf16", adding, "numpy", (), (1,), 8.0, "numpy"),
        (7, "bf16 fold", "bf16", adding, "torch", (), both, 8.0, "torch"),
        (7, "i8 fold", "i8", adding, "numpy", (), (1,), 4.0, "numpy"),
        (8, "noise", "noise", noise, "torch", ("randn",), both, 1.5, "torch.randn"),
        (8, "noise", "noise", noise, "numpy", (), (1,), 3.7, "numpy's ziggurat"),
        (8, "noise", "noise", noise, "torch", (SECURE, STAND_IN), (1,), 15.0, "Opacus' secure mode"),
        (9, f"median of {k // 2}", f"median {k // 2}", median, "numpy", (), (1,), 20.0, "np.partition"),
        (9, f"median of {k}", f"median {k}", median, "numpy", (), (1,), 8.0, "np.partition"),
        (
            10,
            "distances",
            "distances",
            distances,
            "torch",
            ("cdist, differences",),
            both,
            10.0,
            "torch.cdist",
        ),
        (11, "Adam", "adam", adam, "numpy", (), (1,), 8.0, "numpy"),
        (11, "Adam", "adam", adam, "torch", (), both, 1.0, "torch fused"),
    ]
    for number, what, topic, (kernel, mode), impl, variants, counts, ratio, peer in needed:
        for threads in counts:
            ours = found.best(topic, "native", threads, mode=mode, kernel=kernel)
            theirs = found.best(topic, impl, threads, variants)
            measured = None if ours is None or theirs is None else theirs.median_s / ours.median_s
            yield Bar(
                number=number, what=f"{what}, {threads} T", needed=ratio, unit=f"× {peer}", measured=measured
            )


def _others(found: _Found, errors: dict[str, float], crossovers: dict[str, int | None]) -> Iterator[Bar]:
    yield Bar(
        number=10,
        what="distances, relative error",
        needed=ERROR_BAR,
        unit="",
        at_most=True,
        measured=errors.get("native"),
    )
    tiny = found.tiny()
    slowest = max(tiny, key=lambda one: one.median_s, default=None)
    yield Bar(
        number=12,
        what="a call of " + (slowest.kernel if slowest else "a kernel") + ", the slowest",
        needed=OVERHEAD_S * 1e6,
        unit="µs",
        at_most=True,
        measured=None if slowest is None else slowest.median_s * 1e6,
    )
    for name, n in crossovers.items():
        yield Bar(
            number=12,
            what=f"{name} never slower than numpy, from",
            needed=CROSSOVER_N,
            unit="values",
            at_most=True,
            measured=float("inf") if n is None else n,
        )
