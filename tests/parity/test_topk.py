"""Parity of sparse payloads: what one backend writes, reads or refuses, the other does too."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedmq.fedcore.codecs import TOPK_BLOCK, TOPK_HEAD, topk_part

SIZES = st.sampled_from(
    [1, 127, 128, 129, 4097, TOPK_BLOCK - 1, TOPK_BLOCK, TOPK_BLOCK + 1, 3 * TOPK_BLOCK + 5]
)
SHARES = st.sampled_from([0.0, 0.0005, 0.01, 0.1, 0.5, 1.0])
SEEDS = st.integers(0, 2**32)


def sparse(seed: int, n: int, share: float) -> Any:
    """A float32 vector of which about a share is not zero."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < share, rng.standard_normal(n), 0.0).astype(np.float32)


@given(SEEDS, SIZES, SHARES, st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_sparse_payloads(
    native: ModuleType,
    reference: ModuleType,
    unaligned: Callable[[bytes, int], memoryview],
    same_bits: Callable[[Any, Any], None],
    seed: int,
    n: int,
    share: float,
    shift: int,
) -> None:
    """Written alike, read alike, summed alike; and summed as the values are when they are not sparse."""
    x = sparse(seed, n, share)
    payload = reference.encode(x, "topk")
    assert native.encode(x, "topk") == payload
    moved = unaligned(payload, shift)
    read = reference.decode(payload, "topk", n)
    same_bits(native.decode(moved, "topk", n), read)
    assert native.sum_squares(moved, encoding="topk", n=n) == reference.sum_squares(read)
    for truncate in (False, True):
        totals = []
        for backend, data, encoding in (
            (native, moved, "topk"),
            (reference, payload, "topk"),
            (native, read, "f32"),
        ):
            sums = backend.Accumulator(n, frac_bits=30)
            sums.add(data, encoding=encoding, weight=0.7, max_norm=2.0, truncate=truncate)
            totals.append(sums.totals())
        same_bits(totals[0], totals[1])
        same_bits(totals[0], totals[2])
    for mode in ("exact", "f64", "f32"):
        rows, names = [x, moved, x[::-1].copy(), moved], ["f32", "topk", "f32", "topk"]
        mean = native.weighted_mean(rows, [1, 2, 3, 4], encoding=names, mode=mode)
        same_bits(mean, reference.weighted_mean(rows, [1, 2, 3, 4], encoding=names, mode=mode))


@given(SEEDS, st.sampled_from([1 << 19, (1 << 19) + 77]), st.sampled_from([1, 2, 3]))
@settings(max_examples=8, deadline=None)
def test_threads_and_tiles_sum_sparse_payloads_alike(
    native: ModuleType, same_bits: Callable[[Any, Any], None], seed: int, n: int, threads: int
) -> None:
    """Any number of threads, and the parts of a payload one by one, give the sum of the whole."""
    x = sparse(seed, n, 0.02)
    payload = native.encode(x, "topk")
    whole = native.Accumulator(n, frac_bits=30, threads=threads)
    whole.add(payload, encoding="topk")
    dense = native.Accumulator(n, frac_bits=30)
    dense.add(native.decode(payload, "topk", n))
    same_bits(whole.totals(), dense.totals())
    tile = 5 * TOPK_BLOCK
    for start in range(0, n, tile):
        stop = min(start + tile, n)
        first, last = topk_part(memoryview(payload), start, stop)
        part = native.Accumulator(stop - start, frac_bits=30, offset=start)
        part.add(payload[first:last], encoding="topk")
        same_bits(part.totals(), whole.totals()[start:stop])


def verdict(call: Callable[[], Any]) -> tuple[str, Any]:
    """What a call says: its result, or why it refuses."""
    try:
        return "made", call()
    except ValueError as error:
        return "refused", str(error)


def norm_in_pieces(backend: ModuleType, data: bytes, n: int, step: int) -> float:
    """The streamed norm of bytes that come so many at a time."""
    norm = backend.Norm("topk", n)
    for start in range(0, len(data), step):
        norm.update(data[start : start + step])
    return float(norm.value())


HEADS = st.builds(TOPK_HEAD.pack, *[st.one_of(st.integers(0, 40), st.sampled_from([TOPK_BLOCK, 65535]))] * 3)
BLOCKS = st.builds(
    lambda span, gaps, values: TOPK_HEAD.pack(span, len(values) // 2, len(gaps)) + gaps + values,
    st.one_of(st.integers(0, 600), st.just(TOPK_BLOCK)),
    st.lists(st.sampled_from([0, 1, 5, 0x7F, 0x80, 0x81, 0xFF]), max_size=6).map(bytes),
    st.lists(
        st.sampled_from([b"\x00\x3c", b"\x00\x80", b"\x00\x00", b"\x01\x00", b"\x00\xbc"]), max_size=6
    ).map(b"".join),
)
BYTES = st.one_of(
    st.binary(max_size=80),
    st.lists(BLOCKS, max_size=4).map(b"".join),
    st.builds(lambda head, rest: head + rest, HEADS, st.binary(max_size=200)),
)


@given(
    BYTES, st.one_of(st.integers(0, 50), st.sampled_from([TOPK_BLOCK, TOPK_BLOCK + 5])), st.integers(1, 100)
)
@settings(max_examples=1500, deadline=None)
@example(TOPK_HEAD.pack(3, 1, 1) + b"\x02\x00\x3c", 3, 1)
@example(TOPK_HEAD.pack(65535, 65535, 65535) + bytes(70_000), 3, 9000)
def test_any_bytes_are_read_alike_or_refused_with_one_reason(
    native: ModuleType, reference: ModuleType, data: bytes, n: int, step: int
) -> None:
    """Both backends accept the same bytes, and refuse the others in the same words; in pieces too, as words go."""
    calls = {
        "whole": lambda backend: backend.sum_squares(data, encoding="topk", n=n).hex(),
        "decoded": lambda backend: backend.decode(data, "topk", n).tobytes(),
        "streamed": lambda backend: norm_in_pieces(backend, data, n, step).hex(),
    }
    for name, call in calls.items():
        ours, theirs = verdict(lambda call=call: call(native)), verdict(lambda call=call: call(reference))
        assert ours[0] == theirs[0]
        # Which of two faults shows first depends on what came together; which NaN a NaN is, nobody promises.
        if name != "streamed" if ours[0] == "refused" else name != "decoded":
            assert ours[1] == theirs[1]
    # What is accepted is what this would write of the values; a NaN has other bits there.
    if verdict(lambda: reference.decode(data, "topk", n))[0] == "made":
        x = reference.decode(data, "topk", n)
        if not np.isnan(x).any():
            assert native.encode(x, "topk") == data


@given(SEEDS, st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_payloads(native: ModuleType, reference: ModuleType, seed: int, data: st.DataObject) -> None:
    """A flipped byte, a cut or an inserted one: both refuse it for one reason, or it is another payload."""
    n = data.draw(st.sampled_from([300, TOPK_BLOCK + 300]))
    payload = bytearray(reference.encode(sparse(seed, n, 0.02), "topk"))
    at = data.draw(st.integers(0, len(payload) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "insert", "swap"])):
        case "flip":
            payload[at] ^= data.draw(st.integers(1, 255))
        case "cut":
            del payload[at:]
        case "insert":
            payload[at:at] = bytes([data.draw(st.integers(0, 255))])
        case _:
            payload[at], payload[at - 1] = payload[at - 1], payload[at]
    sums = [backend.Accumulator(n, frac_bits=20) for backend in (native, reference)]
    ours, theirs = (verdict(lambda total=total: total.add(bytes(payload), encoding="topk")) for total in sums)
    assert ours[0] == theirs[0]
    assert (sums[0].totals() == sums[1].totals()).all()
    if ours[0] == "refused" and "block" in ours[1]:
        assert ours == theirs
