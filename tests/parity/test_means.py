"""Parity of weighted_mean."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.fedcore.codecs import ENCODINGS

SIZES = st.one_of(
    st.sampled_from([0, 1, 1023, 1025, 4095, 4097, 8191, 8193, 16383, 16385]), st.integers(0, 3000)
)
ROWS = st.lists(
    st.tuples(
        st.sampled_from(ENCODINGS),
        st.floats(0.01, 1000),
        st.sampled_from(["normal", "ties", "wide", "zeros"]),
        st.integers(0, 7),
    ),
    min_size=1,
    max_size=18,
)


@given(
    SIZES,
    ROWS,
    st.sampled_from(["exact", "f64", "f32"]),
    st.none() | st.floats(1e-3, 1e3),
    st.none() | st.integers(0, 16),
    st.integers(0, 2**32),
)
@settings(max_examples=100, deadline=None)
def test_mixed_payloads(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    unaligned: Callable[[bytes, int], memoryview],
    same_bits: Callable[[Any, Any], None],
    n: int,
    rows: list[tuple[str, float, str, int]],
    mode: str,
    max_norm: float | None,
    frac_bits: int | None,
    seed: int,
) -> None:
    """Every mode, with and without clipping and a given grid."""
    encodings = [row[0] for row in rows]
    weights = [row[1] for row in rows]
    payloads = [
        reference.encode(vector(kind, n, seed + i), encoding, key=bytes(32))
        for i, (encoding, _, kind, _) in enumerate(rows)
    ]
    moved = [unaligned(payload, row[3]) for payload, row in zip(payloads, rows, strict=True)]
    options = {"encoding": encodings, "mode": mode, "max_norm": max_norm, "frac_bits": frac_bits}
    same_bits(
        native.weighted_mean(moved, weights, **options), reference.weighted_mean(payloads, weights, **options)
    )


@pytest.mark.parametrize("mode", ["exact", "f64", "f32"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_a_large_mean(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    same_bits: Callable[[Any, Any], None],
    mode: str,
    threads: int,
) -> None:
    """Above the size where threads start to work; into the caller's array."""
    payloads = [vector("normal", 300_001, seed) for seed in range(6)]
    out = np.empty(300_001, np.float32)
    found = native.weighted_mean(payloads, np.arange(1, 7), mode=mode, out=out, threads=threads)
    assert found is out
    same_bits(out, reference.weighted_mean(payloads, np.arange(1, 7), mode=mode))


@given(
    st.lists(st.integers(-(2**51) - 2**29, 2**51 + 2**29), min_size=1, max_size=20),
    st.sampled_from([0.25, 1 / 3, 0.5, 0.75, 1.0]),
    st.sampled_from([-40, 0, 30]),
)
@settings(max_examples=200, deadline=None)
def test_values_near_the_end_of_the_range(
    native: ModuleType,
    reference: ModuleType,
    same_bits: Callable[[Any, Any], None],
    numbers: list[int],
    weight: float,
    frac_bits: int,
) -> None:
    """Values up to 2^51 in units of the grid: both give the same mean, or both refuse and write nothing."""
    x = np.array(numbers, np.float64).astype(np.float32) * np.float32(2.0**-frac_bits)
    ones = np.ones(x.size, np.float32)
    made, errors = [], []
    for module in (native, reference):
        out = np.full(x.size, 7, np.float32)
        try:
            module.weighted_mean([ones, x], [1.0, weight], frac_bits=frac_bits, out=out)
            same_bits(out, module.weighted_mean([ones, x], [1.0, weight], frac_bits=frac_bits))
        except ValueError:
            assert (out == 7).all()
            errors.append(module)
        made.append(out)
    assert len(errors) in (0, 2)
    same_bits(*made)


def test_nothing_is_written_when_a_payload_is_refused(native: ModuleType, reference: ModuleType) -> None:
    """A NaN in the last payload leaves the caller's array as it was."""
    good, bad = np.ones(5, np.float32), np.float32([1, 1, 1, 1, np.nan])
    for module in (native, reference):
        for options in ({}, {"frac_bits": 20}, {"mode": "f64", "max_norm": 1.0}):
            out = np.full(5, 7, np.float32)
            with pytest.raises(ValueError, match=r"payloads\[1\]"):
                module.weighted_mean([good, bad], [1, 1], out=out, **options)
            assert out.tolist() == [7.0] * 5
