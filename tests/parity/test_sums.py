"""Parity of the Accumulator."""

import itertools
import math
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.fedcore.codecs import ENCODINGS

KEY, NONCE = bytes(range(32)), bytes(range(12))

SIZES = st.one_of(
    st.sampled_from([0, 1, 3, 1023, 1024, 1025, 4095, 4096, 4097, 16383, 16384, 16385]), st.integers(0, 3000)
)
SEEDS = st.integers(0, 2**32)
UPDATES = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["normal", "ties", "wide", "zeros"]),
            "encoding": st.sampled_from(ENCODINGS),
            "weight": st.floats(0, 1000),
            "max_norm": st.none() | st.floats(1e-3, 1e3),
            "norm": st.none() | st.floats(0, 1e4),
            "truncate": st.booleans(),
            "as": st.sampled_from(["bytes", "memoryview", "array"]),
            "shift": st.integers(0, 7),
        }
    ),
    max_size=18,
)


@given(
    SIZES,
    SEEDS,
    UPDATES,
    st.integers(0, 20),
    st.sampled_from([0, 1024, 2**20]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None)
def test_mixed_updates(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    unaligned: Callable[[bytes, int], memoryview],
    same_bits: Callable[[Any, Any], None],
    n: int,
    seed: int,
    updates: list[dict[str, Any]],
    frac_bits: int,
    offset: int,
    shuffler: Any,
) -> None:
    """Encodings, weights, clipping and rounding of any mixture; in another order, at any alignment."""
    one = native.Accumulator(n, frac_bits=frac_bits, offset=offset)
    other = reference.Accumulator(n, frac_bits=frac_bits, offset=offset)
    made = []
    for i, update in enumerate(updates):
        payload = reference.encode(vector(update["kind"], n, seed + i), update["encoding"], key=KEY)
        how = {name: update[name] for name in ("encoding", "weight", "norm", "max_norm", "truncate")}
        made.append((i, payload, how, other.add(payload, **how)))
    shuffler.shuffle(made)
    for i, payload, how, norm in made:
        moved = unaligned(payload, updates[i]["shift"])
        form = {"bytes": payload, "memoryview": memoryview(payload), "array": moved}[updates[i]["as"]]
        assert one.add(form, **how) == norm
    same_bits(one.totals(), other.totals())
    same_bits(one.mean(7.25), other.mean(7.25))
    for sums in (one, other):
        sums.add_noise(2.5, key=KEY, nonce=NONCE)
        sums.subtract_noise(0.3, key=bytes(32), nonce=NONCE)
    same_bits(one.totals(), other.totals())


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("truncate", [False, True])
def test_threads_share_a_large_sum(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    same_bits: Callable[[Any, Any], None],
    threads: int,
    truncate: bool,
) -> None:
    """Above the size where threads start to work, too."""
    n = 256 * 1024 + 4097
    one = native.Accumulator(n, frac_bits=24, offset=2048, threads=threads)
    other = reference.Accumulator(n, frac_bits=24, offset=2048)
    for i, encoding in enumerate(("f32", "i8", "f32", "bf16", "f16")):
        payload = native.encode(vector("normal", n, i), encoding, key=KEY)
        for sums in (one, other):
            sums.add(payload, encoding=encoding, weight=0.3 + i, max_norm=5.0, truncate=truncate)
    for sums in (one, other):
        sums.add_noise(0.7, key=KEY, nonce=NONCE)
    same_bits(one.totals(), other.totals())
    same_bits(one.mean(3.3), other.mean(3.3))


def test_order_of_arrival_does_not_matter(
    native: ModuleType, vector: Callable[..., Any], same_bits: Callable[[Any, Any], None]
) -> None:
    """All 120 orders of five updates."""
    payloads = [vector("normal", 1025, seed).tobytes() for seed in range(5)]
    sums = native.Accumulator(1025, frac_bits=30)
    expected = None
    for order in itertools.permutations(range(5)):
        sums.reset()
        for i in order:
            sums.add(payloads[i], weight=1 + i / 3)
        if expected is None:
            expected = sums.totals()
        same_bits(sums.totals(), expected)


@pytest.mark.parametrize("log_scale", [20, 40, 50, 58])
def test_noise_beyond_the_range_of_values(
    native: ModuleType, reference: ModuleType, same_bits: Callable[[Any, Any], None], log_scale: int
) -> None:
    """Noise may be as large as the sum, not only below 2^51."""
    one, other = (module.Accumulator(5000, frac_bits=log_scale) for module in (native, reference))
    for sums in (one, other):
        sums.add_noise(1.1, key=KEY, nonce=NONCE)
        sums.subtract_noise(0.9, key=bytes(32), nonce=NONCE)
    same_bits(one.totals(), other.totals())
    same_bits(one.mean(3.0), other.mean(3.0))


@given(st.lists(st.integers(-(2**50), 2**50), min_size=1, max_size=40), st.integers(-30, 30))
@settings(max_examples=60, deadline=None)
def test_rounding_near_the_end_of_the_range(
    native: ModuleType,
    reference: ModuleType,
    same_bits: Callable[[Any, Any], None],
    numbers: list[int],
    frac_bits: int,
) -> None:
    """Values up to 2^51, ties among them, to nearest and toward zero."""
    x = np.array(numbers, np.float64).astype(np.float32) * np.float32(2.0**-frac_bits)
    for truncate in (False, True):
        one, other = (module.Accumulator(x.size, frac_bits=frac_bits) for module in (native, reference))
        for sums in (one, other):
            for weight in (1.0, 0.5, 0.75, 1.0 / 3.0, 1.5):
                sums.add(x.tobytes(), weight=weight, truncate=truncate)
        same_bits(one.totals(), other.totals())


def test_merge(native: ModuleType, vector: Callable[..., Any], same_bits: Callable[[Any, Any], None]) -> None:
    """Two sums added are the sum of all, with updates still waiting in both, and of one with itself."""
    payloads = [vector("normal", 777, seed).tobytes() for seed in range(7)]
    left, right, whole = (native.Accumulator(777, frac_bits=30) for _ in range(3))
    for i, payload in enumerate(payloads):
        (left if i % 2 else right).add(payload)
        whole.add(payload)
    left.merge(right)
    same_bits(left.totals(), whole.totals())
    left.merge(left)
    same_bits(left.totals(), 2 * whole.totals())


def test_a_kept_update_belongs_to_nobody_else(native: ModuleType) -> None:
    """Until eight have come, updates may wait inside; the caller may yet change, close and drop what it gave."""
    sums = native.Accumulator(4, frac_bits=10)
    changed = np.ones(4, np.float32)
    sums.add(changed)
    changed[:] = 50.0
    with memoryview(np.full(4, 2, np.float32).tobytes()) as view:
        sums.add(view)
    with memoryview(bytearray(np.full(4, 4, np.float32).tobytes())) as view:
        sums.add(view.toreadonly())
    assert sums.totals().tolist() == [7 << 10] * 4


def test_what_is_refused_leaves_no_trace(native: ModuleType, reference: ModuleType) -> None:
    """Updates out of range, in one value or in the sum, are refused by both and the sum is as it was."""
    huge = np.full(3, 2.0**30, np.float32).tobytes()
    for bad, how in (
        (np.float32([1, np.nan, 1]).tobytes(), {}),
        (np.float32([1, np.inf, 1]).tobytes(), {"max_norm": 1.0}),
        (np.full(3, 2.0**31, np.float32).tobytes(), {}),
        (huge, {"weight": 2.0}),
        (b"\x00" * 11, {}),
    ):
        for module in (native, reference):
            sums = module.Accumulator(3, frac_bits=20)
            sums.add(np.ones(3, np.float32).tobytes())
            with pytest.raises(ValueError):
                sums.add(bad, **how)
            assert sums.totals().tolist() == [1 << 20] * 3
    for module in (native, reference):
        sums = module.Accumulator(3, frac_bits=20)
        for _ in range(2**13 - 1):
            sums.add(huge)
        with pytest.raises(ValueError, match="63 bits"):
            sums.add(huge)
        assert sums.totals().tolist() == [(2**13 - 1) << 50] * 3


@given(
    SIZES,
    SEEDS,
    UPDATES.filter(bool),
    st.integers(0, 44),
    st.none() | st.floats(1e-3, 1e3),
    st.booleans(),
    st.sampled_from([0.0, 1e-3, 0.7, 1.0, 40.0]),
    st.sampled_from([0, 2048]),
)
@settings(max_examples=80, deadline=None)
def test_updates_added_together(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    unaligned: Callable[[bytes, int], memoryview],
    same_bits: Callable[[Any, Any], None],
    n: int,
    seed: int,
    updates: list[dict[str, Any]],
    frac_bits: int,
    max_norm: float | None,
    truncate: bool,
    honesty: float,
    offset: int,
) -> None:
    """The same sum, and the same refusals, as one after the other; whatever was there before, whatever norms say."""
    together, twin, single = (
        module.Accumulator(n, frac_bits=frac_bits, offset=offset) for module in (native, reference, reference)
    )
    encodings = [update["encoding"] for update in updates]
    weights = [update["weight"] for update in updates]
    payloads = [
        reference.encode(vector(update["kind"], n, seed + i), update["encoding"], key=KEY)
        for i, update in enumerate(updates)
    ]
    norms = [
        honesty * reference.sum_squares(payload, encoding=encoding) ** 0.5
        for payload, encoding in zip(payloads, encodings, strict=True)
    ]
    moved = [unaligned(payload, update["shift"]) for payload, update in zip(payloads, updates, strict=True)]
    how = {"max_norm": max_norm, "truncate": truncate}
    try:
        twin.add_all(payloads, weights, norms, encoding=encodings, **how)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error).partition(":")[0])):
            together.add_all(moved, weights, norms, encoding=encodings, **how)
    else:
        together.add_all(moved, weights, norms, encoding=encodings, **how)
        for payload, encoding, weight, norm in zip(payloads, encodings, weights, norms, strict=True):
            single.add(payload, encoding=encoding, weight=weight, norm=norm, **how)
        same_bits(together.totals(), single.totals())
    same_bits(together.totals(), twin.totals())
    for sums in (together, twin):
        sums.add_noise(2.5, key=KEY, nonce=NONCE)
    same_bits(together.mean(7.25), twin.mean(7.25))
    for sums in (together, twin):
        sums.reset(4096)
        sums.add_noise(2.5, key=KEY, nonce=NONCE)
    same_bits(together.totals(), twin.totals())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("bad", [math.nan, -math.inf, 2.0**31])
def test_a_refused_group_leaves_no_trace(
    native: ModuleType, same_bits: Callable[[Any, Any], None], threads: int, truncate: bool, bad: float
) -> None:
    """One bad value among many good updates: the sum is as before, and takes the good ones afterwards."""
    n = 300_000
    payloads = [np.random.default_rng(seed).standard_normal(n).astype(np.float32) for seed in range(11)]
    weights, norms = [1.0 + i / 3 for i in range(11)], [native.sum_squares(x) ** 0.5 for x in payloads]
    sums = native.Accumulator(n, frac_bits=20, threads=threads)
    sums.add_all(payloads[:5], weights[:5], norms[:5], truncate=truncate)
    before = sums.totals()
    damaged = [x.copy() for x in payloads]
    damaged[9][n - 2] = bad
    for norm in (norms[9], 1e9):
        with pytest.raises(ValueError, match=r"payloads\[9\]"):
            sums.add_all(damaged, weights, [*norms[:9], norm, norms[10]], truncate=truncate)
        same_bits(sums.totals(), before)
    sums.add_all(payloads[5:], weights[5:], norms[5:], truncate=truncate)
    whole = native.Accumulator(n, frac_bits=20)
    for x, weight in zip(payloads, weights, strict=True):
        whole.add(x, weight=weight, truncate=truncate)
    same_bits(sums.totals(), whole.totals())


@pytest.mark.parametrize("bits", [1, 20, 49, 50])
def test_the_room_that_a_group_takes(native: ModuleType, reference: ModuleType, bits: int) -> None:
    """2^bits for each update, or what it needs where a value is at the very end: seen in the noise that still fits."""
    for value in (-(2.0**bits), 2.0**bits, 2.0**bits - 0.5 if bits < 23 else -(2.0 ** (bits - 1))):
        for sigma in (2.0**59, 0.97 * 2.0**63 / 9.5 - 2.0 ** (bits + 3), 2.0**63 / 9.5 - 2.0**bits):
            fits = []
            for module in (native, reference):
                sums = module.Accumulator(2, frac_bits=0)
                x = np.float32([value, 0.25])
                sums.add_all([x] * 9, [1.0] * 9, [np.nextafter(2.0**bits, 0)] * 9)
                try:
                    sums.add_noise(sigma, key=KEY, nonce=NONCE)
                    fits.append(True)
                except ValueError:
                    fits.append(False)
            assert fits[0] == fits[1]
