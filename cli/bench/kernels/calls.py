"""What a call costs: vectors from 16 values up, where the work is less than getting there.

A figure is the time of one call from Python, arguments taken apart and checked included. The crossover is the size from
which the native kernel is never slower than what one would write in numpy.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .contest import Contestant, Result, Topic
from .peers import Peers
from .vectors import numpy_adam

__all__ = ["ONE_UPDATE", "SIZES", "TINY", "calls", "crossovers"]

F32 = NDArray[np.float32]

SIZES: Final = (16, 64, 256, 1024, 4096, 16384, 65536)
TINY: Final = SIZES[0]
ONE_UPDATE: Final = "one update"
_K: Final = 4
_MANY: Final = f"{_K} updates"
_WEIGHTS: Final = [1.0, 2.0, 3.0, 4.0]
_FRAC_BITS: Final = 32
_KEY: Final = bytes(range(32))
_NONCE: Final = bytes(12)
_LIMIT: Final = 1e6  # nothing is clipped: an update that was clipped once would not be again
_LR: Final = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class _Pair:
    """A call of a kernel, and the same in numpy, which takes the same arguments; None where another pair has it."""

    kernel: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    in_numpy: Callable[..., Any] | None
    mode: str = ""
    in_place: bool = False


def calls(peers: Peers) -> Topic:
    """One call of each kernel, at every size, and the same in numpy."""
    draw = np.random.default_rng(0)
    found = [one for n in SIZES for one in _of_size(n, draw, peers)]
    mean = peers.native("weighted_mean", "calls")
    if mean is not None:
        x = draw.standard_normal(TINY, dtype=np.float32)
        options = {"frac_bits": _FRAC_BITS, "out": np.empty_like(x)}
        pair = _Pair("weighted_mean", ([x], [1.0]), options, None)
        run = partial(mean, *pair.arguments, **options)
        found.append(_call(pair, "native", TINY, run, (), mode="exact", variant=ONE_UPDATE))

    computed: dict[tuple[str, int], Any] = {}

    def wrong(contestant: Contestant, result: Any) -> str:
        if contestant.variant == ONE_UPDATE or contestant.kernel == "add_gaussian_":
            return ""
        other = computed.setdefault((contestant.kernel, contestant.n), np.array(result))
        alike = np.allclose(np.asarray(result), other, rtol=1e-4, atol=1e-5)
        return "" if alike else f"its result at n = {contestant.n} is another one"

    return Topic(
        name="calls",
        title="one call, by size",
        n=TINY,
        k=_K,
        size_bytes=4 * TINY,
        ours=("", ""),
        contestants=found,
        wrong=wrong,
    )


def crossovers(results: Iterable[Result]) -> dict[str, int | None]:
    """For each kernel: from which n native is at no size slower than numpy; None if it is at the largest."""
    native: dict[str, dict[int, float]] = {}
    numpy: dict[str, dict[int, float]] = {}
    for one in results:
        if one.topic == "calls" and one.variant != ONE_UPDATE:
            if one.impl == "numpy":
                numpy.setdefault(one.kernel, {})[one.n] = one.median_s
            elif one.impl == "native":
                name = " ".join(part for part in (one.kernel, one.mode) if part)
                native.setdefault(name, {})[one.n] = one.median_s
    found: dict[str, int | None] = {}
    for name, times in native.items():
        theirs = numpy.get(name.partition(" ")[0], {})
        start: int | None = None
        for n in sorted(times.keys() & theirs.keys(), reverse=True):
            if times[n] > theirs[n]:
                break
            start = n
        if theirs:
            found[name] = start
    return found


def _of_size(n: int, draw: np.random.Generator, peers: Peers) -> list[Contestant]:
    rows = [draw.standard_normal(n, dtype=np.float32) for _ in range(_K)]
    x, out = rows[0], np.empty(n, np.float32)

    def zeros() -> F32:
        return np.zeros(n, np.float32)

    many = [
        _Pair("weighted_mean", (rows, _WEIGHTS), {"frac_bits": _FRAC_BITS, "out": out}, _mean, mode="exact"),
        _Pair("weighted_mean", (rows, _WEIGHTS), {"mode": "f32", "out": out}, None, mode="f32"),
        _Pair("median", (rows,), {"out": out}, _median),
        _Pair("pairwise_sq_distances", (rows,), {}, _distances),
    ]
    one = [
        _Pair("sum_squares", (x,), {}, _sum_squares),
        _Pair("clip_", (x.copy(), _LIMIT), {}, _clip, in_place=True),
        _Pair("sgd_", (zeros(), x), {"lr": _LR}, _sgd, in_place=True),
        _Pair("adam_", (zeros(), zeros(), zeros(), x), {"lr": _LR}, numpy_adam, in_place=True),
        _Pair("add_gaussian_", (zeros(), 1.0), {"key": _KEY, "nonce": _NONCE}, partial(_noise, draw)),
    ]
    found = []
    for pair in (*many, *one):
        variant = _MANY if pair in many else ""
        if pair.in_numpy is not None:
            mine = tuple(part.copy() if isinstance(part, np.ndarray) else part for part in pair.arguments)
            run = partial(pair.in_numpy, *mine)
            found.append(_call(pair, "numpy", n, run, mine, variant=variant))
        native = peers.native(pair.kernel, "calls")
        if native is not None:
            run = partial(native, *pair.arguments, **pair.options)
            found.append(_call(pair, "native", n, run, pair.arguments, mode=pair.mode, variant=variant))
    return found


def _call(
    pair: _Pair,
    impl: str,
    n: int,
    run: Callable[[], Any],
    arguments: Sequence[Any],
    *,
    mode: str = "",
    variant: str,
) -> Contestant:
    return Contestant(
        kernel=pair.kernel,
        impl=impl,
        n=n,
        size_bytes=4 * n * (_K if variant == _MANY else 1),
        run=run,
        repeats=True,
        changes=arguments[0] if pair.in_place else None,
        mode=mode,
        variant=variant,
    )


def _mean(rows: list[F32], weights: list[float]) -> F32:
    total = sum(weights)
    out = np.zeros_like(rows[0])
    for row, weight in zip(rows, weights, strict=True):
        out += (weight / total) * row
    return out


def _median(rows: list[F32]) -> F32:
    ranked = np.partition(np.stack(rows), (1, 2), axis=0)
    middle: F32 = (ranked[1] + ranked[2]) * np.float32(0.5)
    return middle


def _distances(rows: list[F32]) -> NDArray[np.float64]:
    found = np.zeros((_K, _K))
    for i in range(_K):
        for j in range(i):
            apart = (rows[i] - rows[j]).astype(np.float64)
            found[i, j] = found[j, i] = np.dot(apart, apart)
    return found


def _sum_squares(x: F32) -> float:
    wide = x.astype(np.float64)
    return float(np.dot(wide, wide))


def _clip(x: F32, limit: float) -> None:
    norm = float(np.linalg.norm(x))
    if norm > limit:
        np.multiply(x, np.float32(limit / norm), out=x)


def _sgd(w: F32, delta: F32) -> None:
    w += _LR * delta


def _noise(draw: np.random.Generator, x: F32, sigma: float) -> None:
    x += sigma * draw.standard_normal(x.size, dtype=np.float32)
