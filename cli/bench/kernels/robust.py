"""Medians, trimmed means and distances: a tenth of the values, since these take many steps for each.

Distances are between models that are close, which trained models are: the Gram matrix, ‖a‖² + ‖b‖² − 2 a·b, cancels
there. So each contestant's relative error is measured beside its time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .contest import Contestant, Topic
from .means import rooflines, wrong_mean
from .peers import Peers
from .workload import Updates

__all__ = ["ERROR_BAR", "distances", "medians", "trimmed_means"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

NEARBY: Final = np.float32(1e-3)
"""How far models are from each other, in units of their weights."""
ERROR_BAR: Final = 1e-6


def medians(updates: Updates, peers: Peers, threads: Sequence[int]) -> Topic:
    """The median of every coordinate."""
    low, high = (updates.k - 1) // 2, updates.k // 2

    def partition() -> F32:
        ranked = np.partition(updates.block, (low, high), axis=0)
        middle: F32 = (ranked[low] + ranked[high]) * np.float32(0.5)
        return middle

    expected = np.median(updates.block, axis=0)
    return _ranking(updates, peers, threads, "median", (), partition, expected)


def trimmed_means(updates: Updates, peers: Peers, threads: Sequence[int]) -> Topic:
    """The mean of every coordinate without a quarter of the values, half of it at each end."""
    trim = updates.k // 8

    def partition() -> F32:
        ranked = np.partition(updates.block, (trim, updates.k - trim - 1), axis=0)
        mean: F32 = ranked[trim : updates.k - trim].mean(axis=0)
        return mean

    expected = np.sort(updates.block, axis=0)[trim : updates.k - trim].mean(axis=0, dtype=np.float64)
    return _ranking(updates, peers, threads, "trimmed_mean", (trim,), partition, expected)


def _ranking(
    updates: Updates,
    peers: Peers,
    threads: Sequence[int],
    kernel: str,
    arguments: tuple[int, ...],
    partition: Callable[[], F32],
    expected: NDArray[Any],
) -> Topic:
    out = np.empty(updates.n, np.float32)
    name = f"{kernel} {updates.k}".replace("_", " ")
    found = rooflines(updates, peers, threads)
    native = peers.native(kernel, name)
    for count in threads if native is not None else ():
        assert native is not None
        run = partial(native, updates.rows, *arguments, out=out, threads=count)
        found.append(Contestant(kernel=kernel, impl="native", threads=count, run=run))
    reference = partial(peers.reference(kernel), updates.rows, *arguments, out=out)
    found.append(Contestant(kernel=kernel, impl="python", variant="reference", run=reference))
    found.append(Contestant(kernel=kernel, impl="numpy", variant="np.partition", run=partition))
    return Topic(
        name=name,
        title=f"{kernel.replace('_', ' ')} of {updates.k} float32 updates",
        n=updates.n,
        k=updates.k,
        size_bytes=4 * updates.n * updates.k,
        ours=(kernel, ""),
        contestants=found,
        wrong=wrong_mean(expected.astype(np.float32)),
    )


def distances(updates: Updates, peers: Peers, threads: Sequence[int]) -> Topic:
    """The squared distance of every two of K models that are close to each other."""
    block = np.empty_like(updates.block)
    np.multiply(updates.block, NEARBY, out=block)
    block += updates.rows[0]
    rows = list(block)
    expected = _by_differences(block.astype(np.float64))

    found = rooflines(updates, peers, threads)
    native = peers.native("pairwise_sq_distances", "distances")
    for count in threads if native is not None else ():
        assert native is not None
        found.append(_contestant("native", "", partial(native, rows, threads=count), count))
    reference = partial(peers.reference("pairwise_sq_distances"), rows)
    found.append(_contestant("python", "reference", reference))
    found.append(_contestant("numpy", "differences", partial(_by_differences, block)))
    if peers.torch is not None:
        found += _torch(block, peers.torch, threads)

    errors: dict[str, float] = {}

    def wrong(contestant: Contestant, result: Any) -> str:
        if contestant.kernel.startswith("_"):
            return ""
        apart = ~np.eye(updates.k, dtype=bool)
        error = float(np.abs(np.asarray(result)[apart] / expected[apart] - 1).max())
        errors[f"{contestant.impl} {contestant.variant}".strip()] = error
        ours = contestant.impl in ("native", "python")
        return f"its relative error is {error:.2g}" if ours and not error < ERROR_BAR else ""

    return Topic(
        name="distances",
        title=f"squared distances of {updates.k} models",
        n=updates.n,
        k=updates.k,
        size_bytes=4 * updates.n * updates.k,
        ours=("pairwise_sq_distances", ""),
        contestants=found,
        wrong=wrong,
        errors=errors,
    )


def _torch(block: F32, torch: Any, threads: Sequence[int]) -> list[Contestant]:
    models = torch.from_numpy(block)
    modes = {
        "cdist, differences": "donot_use_mm_for_euclid_dist",
        "cdist, Gram matrix": "use_mm_for_euclid_dist",  # its choice for more than 25 rows
    }

    def run(mode: str) -> Any:
        return torch.cdist(models, models, compute_mode=mode).square_().numpy()

    return [
        _contestant("torch", name, partial(run, mode), count)
        for count in threads
        for name, mode in modes.items()
    ]


def _contestant(impl: str, variant: str, run: Callable[[], Any], threads: int = 1) -> Contestant:
    return Contestant(kernel="pairwise_sq_distances", impl=impl, variant=variant, threads=threads, run=run)


def _by_differences(block: NDArray[Any]) -> F64:
    k = len(block)
    found = np.zeros((k, k))
    for i in range(k - 1):
        for j in range(i + 1, k):
            apart = block[j] - block[i]
            found[i, j] = found[j, i] = np.einsum("i,i->", apart, apart)
    return found
