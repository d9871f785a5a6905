"""Weighted means of float32 updates: the native folds, and everybody else's, against the memory's limit.

Every contestant gives the mean of the same updates with the same weights. Peers that keep a model as one array a
layer get layers, peers that take a matrix get one; they are views of the same memory.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .contest import Contestant, Topic
from .peers import Peers
from .workload import Updates, exact_mean

__all__ = ["means", "rooflines", "wrong_mean"]

F32 = NDArray[np.float32]

MODES: Final = ("exact", "f64", "f32")
TOLERANCE: Final = 1e-5
"""Of a mean of N(0, 1) values in float32 arithmetic, absolute."""
COPIED_ROWS: Final = 8


def means(updates: Updates, peers: Peers, threads: Sequence[int]) -> Topic:
    """The contest of all ways to compute a weighted mean."""
    out = np.empty(updates.n, np.float32)
    expected = exact_mean(updates.rows, updates.weights)
    contestants = [
        *rooflines(updates, peers, threads),
        *_native(updates, peers, threads, out),
        *_reference(updates, peers, out),
        *_numpy(updates, out),
        *_torch(updates, peers, threads, out),
        *_flower(updates, peers),
    ]
    return Topic(
        name="mean",
        title="weighted mean of float32 updates",
        n=updates.n,
        k=updates.k,
        size_bytes=4 * updates.n * updates.k,
        ours=("weighted_mean", "exact"),
        contestants=contestants,
        wrong=wrong_mean(expected),
    )


def rooflines(updates: Updates, peers: Peers, threads: Sequence[int]) -> list[Contestant]:
    """What this memory gives to plain loops in C: four streams read at a time, and memcpy."""
    read4, copy = peers.native("_read4", "roofline"), peers.native("_copy", "roofline")
    if read4 is None or copy is None:
        return []
    spare = [np.empty(updates.n, np.float32) for _ in updates.rows[:COPIED_ROWS]]

    def copy_rows(count: int) -> None:
        for to, row in zip(spare, updates.rows, strict=False):
            copy(to, row, threads=count)

    found = []
    for count in threads:
        found.append(
            Contestant(
                kernel="_read4",
                impl="native",
                run=partial(read4, updates.rows, threads=count),
                threads=count,
                size_bytes=4 * updates.n * updates.k,
            )
        )
        found.append(
            Contestant(
                kernel="_copy",
                impl="native",
                run=partial(copy_rows, count),
                threads=count,
                size_bytes=2 * 4 * updates.n * len(spare),  # read and written
            )
        )
    return found


def wrong_mean(expected: F32, tolerance: float = TOLERANCE) -> Callable[[Contestant, Any], str]:
    """Says by how much a mean differs, if it is too much; rooflines compute nothing that could be wrong."""

    def wrong(contestant: Contestant, result: Any) -> str:
        if contestant.kernel.startswith("_"):
            return ""
        found = np.concatenate(result) if isinstance(result, list) else np.asarray(result)
        error = float(np.abs(found - expected).max())
        return "" if error <= tolerance else f"its result differs by {error:.2g}"

    return wrong


def _native(updates: Updates, peers: Peers, threads: Sequence[int], out: F32) -> list[Contestant]:
    found = []
    mean = peers.native("weighted_mean", "mean")
    accumulator = peers.native("Accumulator", "mean")
    for count in threads:
        if mean is not None:
            for mode in MODES:
                bits = updates.frac_bits if mode == "exact" else None
                run = partial(
                    mean, updates.rows, updates.weights, mode=mode, frac_bits=bits, out=out, threads=count
                )
                found.append(
                    Contestant(kernel="weighted_mean", impl="native", mode=mode, threads=count, run=run)
                )
        if accumulator is not None:
            sums = accumulator(updates.n, frac_bits=updates.frac_bits, threads=count)
            run = partial(_stream, sums, updates, out)
            found.append(
                Contestant(
                    kernel="Accumulator",
                    impl="native",
                    mode="exact",
                    variant="streaming",
                    threads=count,
                    run=run,
                )
            )
    return found


def _stream(sums: Any, updates: Updates, out: F32) -> F32:
    """One update after the other, as they arrive."""
    sums.reset()
    for row, weight in zip(updates.rows, updates.weights, strict=True):
        sums.add(row, weight=weight)
    mean: F32 = sums.mean(sum(updates.weights), out)
    return mean


def _reference(updates: Updates, peers: Peers, out: F32) -> list[Contestant]:
    mean = peers.reference("weighted_mean")
    return [
        Contestant(
            kernel="weighted_mean",
            impl="python",
            mode=mode,
            variant="reference",
            run=partial(
                mean,
                updates.rows,
                updates.weights,
                mode=mode,
                frac_bits=updates.frac_bits if mode == "exact" else None,
                out=out,
            ),
        )
        for mode in MODES
    ]


def _shares(updates: Updates) -> list[float]:
    """Weights that add up to 1: peers need not divide in the end."""
    total = sum(updates.weights)
    return [weight / total for weight in updates.weights]


def _numpy(updates: Updates, out: F32) -> list[Contestant]:
    shares = _shares(updates)
    spare = np.empty_like(out)

    def loop() -> F32:
        out.fill(0)
        for row, share in zip(updates.rows, shares, strict=True):
            np.add(out, share * row, out=out)
        return out

    def in_place() -> F32:
        out.fill(0)
        for row, share in zip(updates.rows, shares, strict=True):
            np.multiply(row, share, out=spare)
            np.add(out, spare, out=out)
        return out

    return [
        Contestant(kernel="weighted_mean", impl="numpy", variant="loop", run=loop),
        Contestant(kernel="weighted_mean", impl="numpy", variant="loop, in place", run=in_place),
    ]


def _torch(updates: Updates, peers: Peers, threads: Sequence[int], out: F32) -> list[Contestant]:
    torch = peers.torch
    if torch is None:
        return []
    shares = _shares(updates)
    rows = [torch.from_numpy(row) for row in updates.rows]
    layers = [[torch.from_numpy(part) for part in updates.layers(row)] for row in updates.rows]
    states = [{f"layer{i}": layer for i, layer in enumerate(one)} for one in layers]
    total = [torch.from_numpy(part) for part in updates.layers(out)]
    block = torch.from_numpy(updates.block)
    vector = torch.tensor(shares, dtype=torch.float32)
    flat = torch.from_numpy(out)

    def foreach() -> F32:
        torch._foreach_zero_(total)
        for one, share in zip(layers, shares, strict=True):
            torch._foreach_add_(total, one, alpha=share)
        return out

    def stack() -> F32:
        torch.mv(torch.stack(rows).t(), vector, out=flat)
        return out

    def stacked() -> F32:
        torch.mv(block.t(), vector, out=flat)
        return out

    def dictionaries() -> F32:
        sums = dict(zip(states[0], total, strict=True))
        for value in sums.values():
            value.zero_()
        for state, share in zip(states, shares, strict=True):
            for name in sums:
                sums[name] += share * state[name]
        return out

    ways: dict[str, Callable[[], F32]] = {
        "_foreach_add_": foreach,
        "stack + mv": stack,
        "mv, stacked before": stacked,
        "dictionary loop": dictionaries,
    }
    return [
        Contestant(kernel="weighted_mean", impl="torch", variant=name, threads=count, run=run)
        for count in threads
        for name, run in ways.items()
    ]


def _flower(updates: Updates, peers: Peers) -> list[Contestant]:
    if peers.flwr is None:
        return []
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters

    arrays = [(updates.layers(row), int(w)) for row, w in zip(updates.rows, updates.weights, strict=True)]
    status = Status(Code.OK, "")
    received = [
        (None, FitRes(status, ndarrays_to_parameters(layers), examples, {})) for layers, examples in arrays
    ]
    return [
        Contestant(
            kernel="weighted_mean",
            impl="flwr",
            variant="aggregate",
            run=partial(peers.flwr.aggregate, arrays),
        ),
        Contestant(
            kernel="weighted_mean",
            impl="flwr",
            variant="aggregate_inplace",  # takes what came over the wire, and decodes it
            run=partial(peers.flwr.aggregate_inplace, received),
        ),
    ]
