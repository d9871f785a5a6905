"""Results of a benchmark of kernels that nobody had to wait for."""

from typing import Any

from fedmq.cli.bench.kernels.bars import Bar
from fedmq.cli.bench.kernels.contest import Result
from fedmq.cli.bench.kernels.workload import BAR_K, BAR_N


def result(impl: str = "native", median_s: float = 1.0, **facts: Any) -> Result:
    given = {
        "topic": "mean", "kernel": "weighted_mean", "mode": "", "encoding": "f32", "variant": "", "threads": 1,
        "n": BAR_N, "k": BAR_K, "rounds": 7, "gbps": 1.0, "of_roofline": None,
    }  # fmt: skip
    return Result(**{**given, "impl": impl, "median_s": median_s, **facts})


def called(name: str, native: dict[int, float], numpy: dict[int, float]) -> list[Result]:
    """Calls of one kernel, by n."""
    found = [result("native", s, topic="calls", kernel=name, n=n) for n, s in native.items()]
    return found + [result("numpy", s, topic="calls", kernel=name, n=n) for n, s in numpy.items()]


def bar(found: list[Bar], start: str, unit: str = "") -> Bar:
    """The only bar about this."""
    (one,) = [one for one in found if one.what.startswith(start) and unit in one.unit]
    return one
