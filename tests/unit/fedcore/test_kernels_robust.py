"""The contract of median and trimmed mean: numpy's answers, in any order, of finite updates only."""

import math
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.fedcore.codecs import ENCODINGS

KEY = bytes(32)

ks = st.integers(1, 12) | st.sampled_from([31, 32, 33, 63, 64, 65, 100])
sizes = st.sampled_from([0, 1, 3, 1024, 1025, 5000])


def vectors(seed: int, k: int, n: int) -> np.ndarray:
    """Repeatable float32 rows with many equal values."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random((k, n)) < 0.3, 0.5, rng.standard_normal((k, n))).astype(np.float32)


@given(st.integers(0, 2**32), ks, sizes)
@settings(max_examples=40)
def test_the_median_is_numpys(kernels: ModuleType, seed: int, k: int, n: int) -> None:
    """The middle value, or the float64 mean of the two middle ones, rounded once."""
    x = vectors(seed, k, n)
    expected = np.median(x.astype(np.float64), axis=0).astype(np.float32)
    assert (kernels.median(list(x)) == expected).all()


@given(st.integers(0, 2**32), ks, sizes, st.data())
@settings(max_examples=40)
def test_the_trimmed_mean_adds_what_is_kept_from_below(
    kernels: ModuleType, seed: int, k: int, n: int, data: st.DataObject
) -> None:
    """Sorted, cut at both ends, added in float64 in that order, divided, rounded once."""
    trim = data.draw(st.integers(0, (k - 1) // 2))
    x = vectors(seed, k, n)
    total = np.zeros(n)
    for row in np.sort(x, axis=0)[trim : k - trim]:
        total = total + row
    expected = (total / (k - 2 * trim)).astype(np.float32)
    assert kernels.trimmed_mean(list(x), trim).tobytes() == expected.tobytes()


@given(st.integers(0, 2**32), st.integers(2, 9), st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_the_order_of_updates_does_not_matter(kernels: ModuleType, seed: int, k: int, random: object) -> None:
    """Bits are the same for every permutation, zeros of both signs included."""
    x = vectors(seed, k, 2000)
    x[:, :500] = np.where(x[:, :500] > 0, 0.0, -0.0)
    order = list(range(k))
    random.shuffle(order)
    shuffled = [x[i] for i in order]
    trim = (k - 1) // 2
    assert kernels.median(list(x)).tobytes() == kernels.median(shuffled).tobytes()
    assert kernels.trimmed_mean(list(x), trim).tobytes() == kernels.trimmed_mean(shuffled, trim).tobytes()


def test_outliers_do_not_move_the_median(kernels: ModuleType) -> None:
    """Two of five may say anything that is finite."""
    honest = [np.full(100, v, np.float32) for v in (0.9, 1.0, 1.1)]
    wild = [np.full(100, v, np.float32) for v in (1e38, -1e38)]
    assert (kernels.median([*honest, *wild]) == np.float32(1.0)).all()
    assert kernels.trimmed_mean([*honest, *wild], 1) == pytest.approx(np.ones(100), rel=1e-6)


def test_the_mean_of_two_large_middles_does_not_overflow(kernels: ModuleType) -> None:
    """They are added in float64."""
    largest = np.finfo(np.float32).max
    assert kernels.median([np.full(2, largest), np.full(2, largest)]).tolist() == [float(largest)] * 2


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encoded_updates_count_as_what_they_decode_to(kernels: ModuleType, encoding: str) -> None:
    """Also when they lie at odd addresses, and when each has its own encoding."""
    n = 70_000
    payloads = [kernels.encode(row, encoding, key=KEY) for row in vectors(1, 3, n)]
    values = [kernels.decode(payload, encoding, n) for payload in payloads]
    unaligned = [memoryview(b"x" + payload)[1:] for payload in payloads]
    assert (kernels.median(unaligned, encoding=encoding) == kernels.median(values)).all()
    mixed = [payloads[0], values[1], values[2]]
    names = [encoding, "f32", "f32"]
    assert (kernels.trimmed_mean(mixed, 1, encoding=names) == kernels.median(values)).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_updates_that_are_not_finite_are_refused_by_place(kernels: ModuleType, bad: float) -> None:
    """And `out` keeps what it held, wherever the value stands."""
    n = 300_000
    for position in (0, n - 1):
        payloads = [np.zeros(n, np.float32) for _ in range(3)]
        payloads[1][position] = bad
        out = np.full(n, 7, np.float32)
        with pytest.raises(ValueError, match=r"payloads\[1\]"):
            kernels.median(payloads, out=out)
        with pytest.raises(ValueError, match=r"payloads\[1\]"):
            kernels.trimmed_mean(payloads, 1, out=out)
        assert (out == 7).all()


def test_results_can_be_written_where_the_caller_wants_them(kernels: ModuleType) -> None:
    """`out` is filled and returned."""
    out = np.zeros(2, np.float32)
    rows = [np.full(2, v, np.float32) for v in (1, 2, 4)]
    assert kernels.median(rows, out=out) is out
    assert out.tolist() == [2, 2]
    assert kernels.trimmed_mean(rows, 0, out=out) is out
    assert out == pytest.approx([7 / 3, 7 / 3])


@pytest.mark.parametrize(("trim", "error"), [(-1, ValueError), (2, ValueError), (0.2, TypeError)])
def test_trim_is_a_number_of_updates_that_leaves_some(kernels: ModuleType, trim: float, error: type) -> None:
    """An infeasible or fractional trim is refused by name."""
    with pytest.raises(error, match="trim"):
        kernels.trimmed_mean([np.zeros(1, np.float32)] * 4, trim)
