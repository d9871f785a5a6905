"""The digests that the driver must print, made with the numpy kernels: driver.cpp's twin, case by case.

The inputs come from an integer hash, so that both make the same ones without a file between them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedmq.fedcore.codecs import ENCODINGS, payload_size, topk_part
from fedmq.fedcore.kernels import reference
from fedmq.fedcore.kernels.reference_norms import BLOCK

__all__ = ["digests"]

N: Final = BLOCK + 5 * 1024 + 77
WEIGHTS: Final = [1.0 + 0.25 * row for row in range(6)]
FRAC_BITS: Final = 15

F32 = NDArray[np.float32]
U64 = NDArray[np.uint64]


def _mix(z: U64) -> U64:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _hash(seed: U64, j: U64) -> U64:
    return _mix(_mix(seed + np.uint64(1)) + j * np.uint64(0x9E3779B97F4A7C15))


def _hashes(seed: int, n: int) -> U64:
    return _hash(np.full(1, seed, np.uint64), np.arange(n, dtype=np.uint64))


def digest_of(data: bytes | NDArray[Any]) -> int:
    """The sum of a hash of each 64-bit word, zero-padded, and its place."""
    if isinstance(data, np.ndarray):
        if data.dtype == np.float32:  # which NaN a NaN is, no kernel promises
            data = np.where(np.isnan(data), np.float32(np.nan), data)
        data = data.tobytes()
    words = np.frombuffer(data + bytes(-len(data) % 8), "<u8")
    return int(_hash(words, np.arange(words.size, dtype=np.uint64)).sum())


def values(seed: int) -> F32:
    """24-bit integers times 2^-20 … 2^-51."""
    h = _hashes(seed, N)
    integers = (h >> np.uint64(40)).astype(np.float64) - 2.0**23
    return np.ldexp(integers, -20 - (h % np.uint64(32)).astype(np.int32)).astype(np.float32)


def anything(seed: int, size: int) -> bytes:
    """Any bits."""
    return (_hashes(seed, size) >> np.uint64(56)).astype(np.uint8).tobytes()


def _stream() -> dict[str, bytes]:
    secret = anything(100, 44)
    return {"key": secret[:32], "nonce": secret[32:]}


def few(seed: int) -> F32:
    """One of 64 values, as topk is for."""
    return np.where(_hashes(seed + 50, N) >> np.uint64(58) == 0, values(seed), np.float32(0))


def _encoded(seed: int, encoding: str) -> bytes:
    return reference.encode(few(seed) if encoding == "topk" else values(seed), encoding, **_stream())


def _summed(encoding: str, truncate: bool) -> reference.Accumulator:
    sums = reference.Accumulator(N, frac_bits=FRAC_BITS)
    for row, weight in enumerate(WEIGHTS):
        sums.add(_encoded(row, encoding), encoding=encoding, weight=weight, truncate=truncate)
    return sums


def _mean(encoding: str, mode: str) -> F32:
    payloads = [_encoded(row, encoding) for row in range(len(WEIGHTS))]
    frac_bits = FRAC_BITS if mode == "exact" else None
    return reference.weighted_mean(payloads, WEIGHTS, encoding=encoding, mode=mode, frac_bits=frac_bits)


def _blocks(encoding: str) -> NDArray[np.float64]:
    payload = _encoded(0, encoding)
    first = (
        topk_part(memoryview(payload), 0, BLOCK)[1] if encoding == "topk" else payload_size(encoding, BLOCK)
    )
    return np.array(
        [
            reference.sum_squares(payload[:first], encoding=encoding),
            reference.sum_squares(payload[first:], encoding=encoding),
        ]
    )


def _in_place(
    call: Callable[..., object], arrays: int, *, moments: Sequence[int] = (), **options: Any
) -> int:
    """Digest of what a call makes of the first so many inputs; those that are second moments are not below zero."""
    x = [np.abs(values(seed)) if seed in moments else values(seed) for seed in range(arrays)]
    call(*x, **options)
    changed = x[:-1] if arrays > 1 else x  # the last one is the delta
    return sum((2 * i + 1) * digest_of(array) for i, array in enumerate(changed))


def _of_encoding(encoding: str) -> Iterator[tuple[str, bytes | NDArray[Any]]]:
    wild = np.frombuffer(anything(1, 4 * N), np.float32)
    topk = encoding == "topk"
    payload = _encoded(0, encoding) if topk else anything(0, payload_size(encoding, N))
    kernel = "encode_topk" if topk else f"encode {encoding}"
    yield f"{kernel} values", _encoded(0, encoding)
    yield f"{kernel} anything", reference.encode(wild, encoding, **_stream())
    yield f"decode {encoding}", reference.decode(payload, encoding, N)
    yield (
        f"largest {encoding}",
        np.abs(reference.decode(_encoded(0, encoding), encoding, N)).max(keepdims=True),
    )
    yield f"square_blocks {encoding}", _blocks(encoding)
    payloads = [_encoded(row, encoding) for row in range(len(WEIGHTS))]
    yield f"median {encoding}", reference.median(payloads, encoding=encoding)
    yield f"trimmed_mean {encoding}", reference.trimmed_mean(payloads, 1, encoding=encoding)
    yield f"square_distances {encoding}", reference.pairwise_sq_distances(payloads, encoding=encoding)
    yield f"fold_exact {encoding}", _summed(encoding, truncate=False).totals()
    yield f"fold_exact {encoding} truncated", _summed(encoding, truncate=True).totals()
    yield f"fold_exact_checked {encoding}", _summed(encoding, truncate=False).totals()
    yield f"fold_exact_checked {encoding} truncated", _summed(encoding, truncate=True).totals()
    yield f"unfold_exact {encoding}", _summed("f32", truncate=False).totals()
    yield f"unfold_exact {encoding} truncated", _summed("f32", truncate=False).totals()
    for mode in ("exact", "f64", "f32"):
        yield f"mean_{mode} {encoding}", _mean(encoding, mode)
    yield f"mean_exact_checked {encoding}", _mean(encoding, "exact")


def digests() -> dict[str, str]:
    """Name and digest of each case, in the driver's words."""
    made = {name: digest_of(result) for encoding in ENCODINGS for name, result in _of_encoding(encoding)}
    made["divide_exact"] = digest_of(_summed("f32", truncate=False).mean(math.fsum(WEIGHTS)))
    made["multiply"] = _in_place(reference.clip_, 1, max_norm=5.0)
    made["add_gaussian"] = _in_place(reference.add_gaussian_, 1, sigma=1.5, offset=77, **_stream())
    noise = reference.Accumulator(N, frac_bits=FRAC_BITS, offset=3 * 1024)
    noise.add_noise(1.5, **_stream())
    made["add_gaussian_exact"] = digest_of(noise.totals())
    made["sgd"] = _in_place(reference.sgd_, 2, lr=0.1)
    made["momentum"] = _in_place(reference.momentum_, 3, lr=0.1, beta=0.9)
    words = np.concatenate([values(row) for row in range(4)]).view(np.uint32)
    made["read4"] = digest_of(words.sum(keepdims=True, dtype=np.uint32))
    made["adagrad"] = _in_place(reference.adagrad_, 3, moments=[1], lr=0.1)
    made["adam"] = _in_place(reference.adam_, 4, moments=[2], lr=0.1)
    made["yogi"] = _in_place(reference.yogi_, 4, moments=[2], lr=0.1)
    made["fadas"] = _in_place(reference.fadas_, 5, moments=[2, 3], lr=0.1)
    return {name: f"{value % 2**64:016x}" for name, value in made.items()}
