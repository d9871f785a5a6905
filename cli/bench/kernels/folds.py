"""Means of updates that are more than float32 numbers: clipped ones, and encoded ones.

Native folds do in one go what others do in steps: norm, scale, add; or convert, add.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedmq.fedcore import kernels
from fedmq.fedcore.codecs import BLOCK_I8, SCALE_BYTES

from .contest import Contestant, Topic
from .means import rooflines, wrong_mean
from .peers import Peers
from .workload import Updates, exact_mean

__all__ = ["CONVERT", "clipped", "encoded"]

F32 = NDArray[np.float32]

_KEY: Final = bytes(range(32))
_FLOAT32_NORM: Final = 1e-3
"""Peers add ten million squares in float32: torch's norms, and so its means, were off by 3e-4."""


def clipped(updates: Updates, peers: Peers, threads: Sequence[int]) -> Topic:
    """Each update clipped to a norm that half of them exceed, then the weighted mean."""
    out, spare = np.empty(updates.n, np.float32), np.empty(updates.n, np.float32)
    limit = float(np.median(updates.norms)) * 0.75
    total = sum(updates.weights)
    shares = [weight / total for weight in updates.weights]
    factors = [w * min(1.0, limit / norm) for w, norm in zip(updates.weights, updates.norms, strict=True)]
    expected = exact_mean(updates.rows, factors) * np.float32(sum(factors) / total)

    given: dict[str, Any] = {"max_norm": limit, "frac_bits": updates.frac_bits, "out": out}
    found = rooflines(updates, peers, threads)
    mean = peers.native("weighted_mean", "clip")
    for count in threads if mean is not None else ():
        assert mean is not None
        run = partial(mean, updates.rows, updates.weights, threads=count, **given)
        found.append(
            Contestant(
                kernel="weighted_mean", impl="native", mode="exact", variant="clip", threads=count, run=run
            )
        )
    reference = partial(peers.reference("weighted_mean"), updates.rows, updates.weights, **given)
    found.append(
        Contestant(
            kernel="weighted_mean", impl="python", mode="exact", variant="reference, clip", run=reference
        )
    )

    def with_numpy() -> F32:
        out.fill(0)
        for row, share in zip(updates.rows, shares, strict=True):
            norm = float(np.linalg.norm(row))
            np.multiply(row, share * min(1.0, limit / norm), out=spare)
            np.add(out, spare, out=out)
        return out

    found.append(Contestant(kernel="weighted_mean", impl="numpy", variant="norm, scale, add", run=with_numpy))
    if peers.torch is not None:
        found += _torch_clipped(updates, peers.torch, threads, out, spare, shares, limit)
    return Topic(
        name="clip",
        title="weighted mean of clipped float32 updates",
        n=updates.n,
        k=updates.k,
        size_bytes=4 * updates.n * updates.k,
        ours=("weighted_mean", "exact"),
        contestants=found,
        wrong=wrong_mean(expected, _FLOAT32_NORM),
    )


def _torch_clipped(
    updates: Updates,
    torch: Any,
    threads: Sequence[int],
    out: F32,
    spare: F32,
    shares: list[float],
    limit: float,
) -> list[Contestant]:
    rows = [torch.from_numpy(row) for row in updates.rows]
    total, scaled = torch.from_numpy(out), torch.from_numpy(spare)

    def three_steps() -> F32:
        total.zero_()
        for row, share in zip(rows, shares, strict=True):
            norm = torch.linalg.vector_norm(row).item()
            torch.mul(row, share * min(1.0, limit / norm), out=scaled)
            total.add_(scaled)
        return out

    def two_steps() -> F32:
        total.zero_()
        for row, share in zip(rows, shares, strict=True):
            norm = torch.linalg.vector_norm(row).item()
            total.add_(row, alpha=share * min(1.0, limit / norm))
        return out

    ways = {"norm, scale, add": three_steps, "norm, add with alpha": two_steps}
    return [
        Contestant(kernel="weighted_mean", impl="torch", variant=name, threads=count, run=run)
        for count in threads
        for name, run in ways.items()
    ]


def encoded(updates: Updates, peers: Peers, threads: Sequence[int], encoding: str) -> Topic:
    """Updates as they come over the wire in one encoding, and their weighted mean."""
    payloads = [kernels.encode(row, encoding, key=_KEY) for row in updates.rows]
    expected = _mean_of(payloads, encoding, updates)
    out, spare = np.empty(updates.n, np.float32), np.empty(updates.n, np.float32)
    shares = [weight / sum(updates.weights) for weight in updates.weights]

    given: dict[str, Any] = {
        "encoding": encoding,
        "frac_bits": _frac_bits(payloads, encoding, updates),
        "out": out,
    }
    found = _rooflines_of(payloads, peers, threads)
    mean = peers.native("weighted_mean", encoding)
    for count in threads if mean is not None else ():
        assert mean is not None
        run = partial(mean, payloads, updates.weights, threads=count, **given)
        found.append(_contestant(encoding, "native", "", run, count, mode="exact"))
    reference = partial(peers.reference("weighted_mean"), payloads, updates.weights, **given)
    found.append(_contestant(encoding, "python", "reference", reference, mode="exact"))

    convert = CONVERT[encoding]

    def with_numpy() -> F32:
        out.fill(0)
        for payload, share in zip(payloads, shares, strict=True):
            np.multiply(convert(payload, updates.n), np.float32(share), out=spare)
            np.add(out, spare, out=out)
        return out

    found.append(_contestant(encoding, "numpy", "convert, add", with_numpy))
    if peers.torch is not None and encoding in ("f16", "bf16"):
        found += _torch_encoded(payloads, encoding, peers.torch, threads, out, shares)
    return Topic(
        name=encoding,
        title=f"weighted mean of updates encoded as {encoding}",
        n=updates.n,
        k=updates.k,
        size_bytes=sum(map(len, payloads)),
        ours=("weighted_mean", "exact"),
        contestants=found,
        wrong=wrong_mean(expected),
    )


def _torch_encoded(
    payloads: list[bytes], encoding: str, torch: Any, threads: Sequence[int], out: F32, shares: list[float]
) -> list[Contestant]:
    kind = torch.float16 if encoding == "f16" else torch.bfloat16
    rows = [torch.frombuffer(bytearray(payload), dtype=kind) for payload in payloads]
    total = torch.from_numpy(out)

    def convert_add() -> F32:
        total.zero_()
        for row, share in zip(rows, shares, strict=True):
            total.add_(row.float(), alpha=share)
        return out

    def mixed() -> F32:
        total.zero_()
        for row, share in zip(rows, shares, strict=True):
            total.add_(row, alpha=share)
        return out

    ways = {"convert, add": convert_add, "add_ of both types": mixed}
    return [
        _contestant(encoding, "torch", name, run, count) for count in threads for name, run in ways.items()
    ]


def _contestant(
    encoding: str, impl: str, variant: str, run: Callable[[], Any], threads: int = 1, mode: str = ""
) -> Contestant:
    return Contestant(
        kernel="weighted_mean",
        impl=impl,
        variant=variant,
        mode=mode,
        encoding=encoding,
        threads=threads,
        run=run,
    )


def _mean_of(payloads: list[bytes], encoding: str, updates: Updates) -> F32:
    total = np.zeros(updates.n)
    for payload, weight in zip(payloads, updates.weights, strict=True):
        total += weight * CONVERT[encoding](payload, updates.n).astype(np.float64)
    return (total / sum(updates.weights)).astype(np.float32)


def _frac_bits(payloads: list[bytes], encoding: str, updates: Updates) -> int:
    bound = max(
        weight * kernels.sum_squares(payload, encoding=encoding) ** 0.5
        for payload, weight in zip(payloads, updates.weights, strict=True)
    )
    return kernels.frac_bits_for(bound, len(payloads))


def _rooflines_of(payloads: list[bytes], peers: Peers, threads: Sequence[int]) -> list[Contestant]:
    """The payloads' bytes, read as if they were float32 values."""
    read4 = peers.native("_read4", "roofline")
    if read4 is None:
        return []
    words = [np.frombuffer(payload, np.float32, len(payload) // 4) for payload in payloads]
    return [
        Contestant(kernel="_read4", impl="native", run=partial(read4, words, threads=count), threads=count)
        for count in threads
    ]


def _from_f16(payload: bytes, n: int) -> F32:
    return np.frombuffer(payload, np.float16).astype(np.float32)


def _from_bf16(payload: bytes, n: int) -> F32:
    wide = np.frombuffer(payload, np.uint16).astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _from_i8(payload: bytes, n: int) -> F32:
    """Whole blocks as one array of records, and then the shorter block that may be last."""
    record = np.dtype([("scale", "<f4"), ("values", "i1", BLOCK_I8)])
    whole = n // BLOCK_I8
    blocks = np.frombuffer(payload, record, whole)
    values = np.empty(n, np.float32)
    body = values[: whole * BLOCK_I8].reshape(whole, BLOCK_I8)
    np.multiply(blocks["values"], blocks["scale"][:, None], out=body)
    if n % BLOCK_I8:
        rest = memoryview(payload)[whole * (BLOCK_I8 + SCALE_BYTES) :]
        scale = np.frombuffer(rest, "<f4", 1)[0]
        np.multiply(np.frombuffer(rest, np.int8, offset=SCALE_BYTES), scale, out=values[whole * BLOCK_I8 :])
    return values


CONVERT: Final[dict[str, Callable[[bytes, int], F32]]] = {
    "f16": _from_f16,
    "bf16": _from_bf16,
    "i8": _from_i8,
}
