"""Parity of median, trimmed_mean and pairwise_sq_distances."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.fedcore.codecs import ENCODINGS

NETWORK = 32  # up to here rows are sorted in registers, beyond in parts that are merged
BLOCK = 16 * 1024
SIZES = st.one_of(
    st.sampled_from([0, 1, 15, 16, 17, 63, 64, 65, 1023, 1024, 1025, 2049]), st.integers(0, 3000)
)
COUNTS = st.integers(1, 40)
SEEDS = st.integers(0, 2**32)
THREADS = st.sampled_from([1, 2, 3])
FINITE = ("normal", "ties", "wide", "zeros")
EXTREMES = np.array([0, 2.0**-149, 2.0**-126, 1, 1 + 2.0**-23, 2.0**127 * (2 - 2.0**-23)], np.float32)


@pytest.fixture(scope="session")
def mixed(reference: ModuleType, vector: Callable[..., Any]) -> Callable[..., tuple[list[bytes], list[str]]]:
    """Make k payloads of n values, of any encoding each, some of them twice."""

    def make(k: int, n: int, seed: int, kinds: tuple[str, ...]) -> tuple[list[bytes], list[str]]:
        rng = np.random.default_rng(seed)
        encodings = [str(name) for name in rng.choice(ENCODINGS, k)]
        payloads = [
            reference.encode(vector(str(rng.choice(kinds)), n, seed + i), name, key=bytes(32))
            for i, name in enumerate(encodings)
        ]
        for i in np.flatnonzero(rng.random(k) < 0.2):
            payloads[i], encodings[i] = payloads[0], encodings[0]
        return payloads, encodings

    return make


@given(COUNTS, SIZES, SEEDS, THREADS, st.data())
@settings(max_examples=150, deadline=None)
def test_mixed_payloads(
    native: ModuleType,
    reference: ModuleType,
    mixed: Callable[..., tuple[list[bytes], list[str]]],
    unaligned: Callable[[bytes, int], memoryview],
    same_bits: Callable[[Any, Any], None],
    k: int,
    n: int,
    seed: int,
    threads: int,
    data: st.DataObject,
) -> None:
    """Any encodings, at any address, in any order of arrival, with duplicates and zeros of both signs."""
    payloads, names = mixed(k, n, seed, FINITE)
    trim = data.draw(st.integers(0, (k - 1) // 2), "trim")
    order = data.draw(st.permutations(range(k)), "order")
    moved = [unaligned(payloads[i], i % 8) for i in order]
    options = {"encoding": [names[i] for i in order], "threads": threads}
    same_bits(native.median(moved, **options), reference.median(payloads, encoding=names))
    same_bits(
        native.trimmed_mean(moved, trim, **options), reference.trimmed_mean(payloads, trim, encoding=names)
    )


@given(COUNTS, SEEDS, st.data())
@settings(max_examples=60, deadline=None)
def test_extremes_of_float32(
    native: ModuleType,
    reference: ModuleType,
    same_bits: Callable[[Any, Any], None],
    k: int,
    seed: int,
    data: st.DataObject,
) -> None:
    """The largest and the smallest values, denormals among them, of both signs."""
    rng = np.random.default_rng(seed)
    rows = list(rng.choice(EXTREMES, (k, 100)) * rng.choice(np.float32([-1, 1]), (k, 100)))
    trim = data.draw(st.integers(0, (k - 1) // 2), "trim")
    same_bits(native.median(rows), reference.median(rows))
    same_bits(native.trimmed_mean(rows, trim), reference.trimmed_mean(rows, trim))
    same_bits(native.pairwise_sq_distances(rows), reference.pairwise_sq_distances(rows))


@pytest.mark.parametrize("k", range(1, 15))
def test_networks_sort_all_zeros_and_ones(native: ModuleType, k: int) -> None:
    """A network that sorts every sequence of zeros and ones sorts everything (Knuth, vol. 3, 5.3.4, theorem Z)."""
    columns = np.arange(2**k)
    rows = [(columns >> r & 1).astype(np.float32) for r in range(k)]
    ones = sum(rows)
    for trim in range((k - 1) // 2 + 1):
        kept = k - 2 * trim
        expected = np.clip(ones - trim, 0, kept).astype(np.float64) / kept
        assert (native.trimmed_mean(rows, trim) == expected.astype(np.float32)).all()
    assert (native.median(rows) == np.median(rows, axis=0)).all()


@pytest.mark.parametrize("k", [NETWORK - 1, NETWORK, NETWORK + 1, 63, 64, 65, 129, 200])
def test_rows_are_sorted_wherever_one_lies(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    same_bits: Callable[[Any, Any], None],
    k: int,
) -> None:
    """Around the sizes where the way of sorting changes."""
    rows = [vector("wide", 1100, seed) for seed in range(k)]
    same_bits(native.median(rows), reference.median(rows))
    for trim in (0, 1, k // 3, (k - 1) // 2):
        same_bits(native.trimmed_mean(rows, trim), reference.trimmed_mean(rows, trim))


@pytest.mark.parametrize("k", [1, 6, 7, 35])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_a_large_vector(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    same_bits: Callable[[Any, Any], None],
    k: int,
    threads: int,
) -> None:
    """Above the size where threads start to work; into the caller's array."""
    rows = [vector("normal", 300_001, seed) for seed in range(k)]
    out = np.empty(300_001, np.float32)
    assert native.median(rows, out=out, threads=threads) is out
    same_bits(out, reference.median(rows))
    trim = (k - 1) // 3
    assert native.trimmed_mean(rows, trim, out=out, threads=threads) is out
    same_bits(out, reference.trimmed_mean(rows, trim))
    same_bits(native.pairwise_sq_distances(rows, threads=threads), reference.pairwise_sq_distances(rows))


@given(COUNTS, st.integers(1, 3000), SEEDS, st.sampled_from(ENCODINGS), st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_not_finite_is_refused(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    k: int,
    n: int,
    seed: int,
    encoding: str,
    data: st.DataObject,
) -> None:
    """The first payload that holds a NaN or an infinity is named, and nothing has been written."""
    rows = [vector("normal", n, seed + i) for i in range(k)]
    bad = data.draw(st.sets(st.integers(0, k - 1), min_size=1, max_size=3), "bad")
    for i in bad:
        place = data.draw(st.integers(0, n - 1), "place")
        rows[i][place] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]), "value")
    payloads = [reference.encode(row, encoding, key=bytes(32)) for row in rows]
    out = np.full(n, 7, np.float32)
    for module in (native, reference):
        for call, args in ((module.median, ()), (module.trimmed_mean, ((k - 1) // 2,))):
            with pytest.raises(ValueError, match="must be finite") as error:
                call(payloads, *args, encoding=encoding, out=out)
            assert str(error.value) == f"payloads[{min(bad)}] must be finite; it holds a NaN or an infinity"
    assert (out == 7).all()


@given(
    COUNTS,
    st.one_of(st.sampled_from([0, 1, 255, 256, 257, BLOCK - 1, BLOCK, BLOCK + 1]), st.integers(0, 3000)),
    SEEDS,
    THREADS,
    st.integers(0, 7),
)
@settings(max_examples=80, deadline=None)
def test_distances(
    native: ModuleType,
    reference: ModuleType,
    mixed: Callable[..., tuple[list[bytes], list[str]]],
    unaligned: Callable[[bytes, int], memoryview],
    same_bits: Callable[[Any, Any], None],
    k: int,
    n: int,
    seed: int,
    threads: int,
    shift: int,
) -> None:
    """Each pair adds its squares in the same order, NaNs and infinities included."""
    payloads, names = mixed(k, n, seed, (*FINITE, "anything"))
    moved = [unaligned(payload, shift) for payload in payloads]
    same_bits(
        native.pairwise_sq_distances(moved, encoding=names, threads=threads),
        reference.pairwise_sq_distances(payloads, encoding=names),
    )


def test_distances_of_many(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    same_bits: Callable[[Any, Any], None],
) -> None:
    """More blocks and groups of rows than are kept at once."""
    n = 30 * BLOCK + 5
    rows = [vector("normal", n, 1) * np.float32(1 + i / 7) for i in range(99)]
    shown = slice(0, 99, 14)
    found = native.pairwise_sq_distances(rows, threads=2)
    same_bits(np.ascontiguousarray(found[shown, shown]), reference.pairwise_sq_distances(rows[shown]))
    assert (found == found.T).all()
    assert not np.diag(found).any()
