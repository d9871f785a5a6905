"""The contract of norms: one order of additions, however the bytes arrive."""

import itertools
import math
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.fedcore.codecs import ENCODINGS

KEY = bytes(32)
BLOCK, LANES = 16 * 1024, 16

sizes = st.sampled_from([0, 1, 15, 16, 17, 1024, 1025, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 333])


def vector(seed: int, n: int) -> np.ndarray:
    """A repeatable float32 vector with values of many sizes (all finite in f16): the order of additions shows."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n) * np.exp(4 * rng.standard_normal(n))
    return x.clip(-60_000, 60_000).astype(np.float32)


def plain_sum_of_squares(values: list[float]) -> float:
    """The definition, one addition at a time."""
    total = 0.0
    for start in range(0, len(values), BLOCK):
        lanes = [0.0] * LANES
        for j, v in enumerate(values[start : start + BLOCK]):
            lanes[j % LANES] += v * v
        half = LANES
        while half > 1:
            half //= 2
            for i in range(half):
                lanes[i] += lanes[i + half]
        total += lanes[0]
    return total


def test_numpy_adds_rows_in_order() -> None:
    """What the reference builds on: reducing a middle axis adds row after row, in every shape."""
    for shape in ((1, 1024, 16), (4, 1024, 16), (1, 1, 16), (1, 7, 16), (3, 2, 1024, 16)):
        x = np.random.default_rng(0).random(shape)
        rows = np.zeros((*shape[:-2], 16))
        for r in range(shape[-2]):
            rows += x[..., r, :]
        assert (np.add.reduce(x, axis=-2) == rows).all()


@given(st.integers(0, 2**32), sizes)
@settings(max_examples=25)
def test_a_sum_of_squares_is_added_in_the_stated_order(kernels: ModuleType, seed: int, n: int) -> None:
    """Blocks of 16 Ki, sixteen lanes, a tree, block after block."""
    x = vector(seed, n)
    assert kernels.sum_squares(x) == plain_sum_of_squares(x.tolist())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_encoded_update_has_the_norm_of_its_values(kernels: ModuleType, encoding: str) -> None:
    """Also when the payload lies at an odd address."""
    n = 3 * BLOCK + 1025
    payload = kernels.encode(vector(1, n), encoding, key=KEY)
    expected = kernels.sum_squares(kernels.decode(payload, encoding, n))
    assert kernels.sum_squares(payload, encoding=encoding) == expected
    assert kernels.sum_squares(memoryview(b"x" + payload)[1:], encoding=encoding) == expected


@given(st.sampled_from(ENCODINGS), sizes, st.lists(st.integers(0, 40_000), max_size=8))
@settings(max_examples=40)
def test_a_norm_can_be_streamed_in_any_pieces(
    kernels: ModuleType, encoding: str, n: int, cuts: list[int]
) -> None:
    """Norm gives the bits of the root of sum_squares, wherever the pieces are cut."""
    payload = kernels.encode(vector(2, n), encoding, key=KEY)
    norm = kernels.Norm(encoding)
    edges = sorted({0, len(payload), *(min(cut, len(payload)) for cut in cuts)})
    for first, last in itertools.pairwise(edges):
        norm.update(memoryview(payload)[first:last])
    assert norm.value() == math.sqrt(kernels.sum_squares(payload, encoding=encoding))


def test_a_norm_can_be_asked_on_the_way(kernels: ModuleType) -> None:
    """value() is the norm so far, and more may follow."""
    norm = kernels.Norm("f32")
    assert norm.value() == 0.0
    x = vector(3, 2 * BLOCK)
    norm.update(x[:100])
    assert norm.value() == math.sqrt(kernels.sum_squares(x[:100]))
    norm.update(x[100:])
    assert norm.value() == math.sqrt(kernels.sum_squares(x))


@pytest.mark.parametrize(
    ("encoding", "size", "missing"),
    [("f32", 7, 1), ("f16", 3, 1), ("bf16", 1, 1), ("i8", 4, 1), ("i8", 1030, 3)],
)
def test_half_a_value_has_no_norm(kernels: ModuleType, encoding: str, size: int, missing: int) -> None:
    """Bytes that end inside a value are an error, streamed or whole; the missing bytes may still come."""
    norm = kernels.Norm(encoding)
    norm.update(bytes(size))
    with pytest.raises(ValueError, match="bytes"):
        norm.value()
    with pytest.raises(ValueError, match="bytes"):
        kernels.sum_squares(bytes(size), encoding=encoding)
    norm.update(bytes(missing))
    assert norm.value() == 0.0


@pytest.mark.parametrize("position", [0, 20, BLOCK, 2 * BLOCK + 4])
def test_infinities_and_nans_are_seen(kernels: ModuleType, position: int) -> None:
    """Wherever they stand, in f32 as in the encodings that can hold them."""
    x = np.ones(2 * BLOCK + 5, np.float32)
    for value, seen in ((math.inf, math.isinf), (-math.inf, math.isinf), (math.nan, math.isnan)):
        x[position] = value
        for encoding in ("f32", "f16", "bf16"):
            assert seen(kernels.sum_squares(kernels.encode(x, encoding), encoding=encoding))
        assert math.isnan(kernels.sum_squares(kernels.encode(x, "i8", key=KEY), encoding="i8"))


def test_the_largest_values_do_not_overflow(kernels: ModuleType) -> None:
    """A float32 squared is far inside float64."""
    x = np.full(1000, np.finfo(np.float32).max)
    assert math.sqrt(kernels.sum_squares(x)) == pytest.approx(math.sqrt(1000) * 2.0**128, rel=1e-6)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
@settings(max_examples=40)
def test_no_value_is_larger_than_the_norm(kernels: ModuleType, values: list[float]) -> None:
    """Not by one rounding: the fixed-point grid relies on it."""
    x = np.array(values, np.float32)
    assert np.abs(x.astype(np.float64)).max() <= math.sqrt(kernels.sum_squares(x))


# clip_


def test_clip_scales_a_long_vector_in_place(kernels: ModuleType) -> None:
    """x · (max_norm / norm) in float64, rounded once; the norm before is returned."""
    x = vector(4, 3 * BLOCK + 5)
    before, norm = x.copy(), math.sqrt(kernels.sum_squares(x))
    assert kernels.clip_(x, 10.0) == norm
    assert (x == (before * np.float64(10.0 / norm)).astype(np.float32)).all()
    assert math.sqrt(kernels.sum_squares(x)) == pytest.approx(10.0, rel=1e-6)


@pytest.mark.parametrize("values", [[], [0, 0], [3, 4], [-0.0]])
def test_clip_leaves_a_short_vector_alone(kernels: ModuleType, values: list[float]) -> None:
    """Nothing, zeros, and a norm that just fits keep their bits."""
    x = np.array(values, np.float32)
    before = x.tobytes()
    assert kernels.clip_(x, 5.0) == math.hypot(*values)
    assert x.tobytes() == before


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clip_refuses_what_no_factor_makes_finite(kernels: ModuleType, bad: float) -> None:
    """A NaN must not slip through a clip; the vector is not touched."""
    x = np.array([1, bad, 2], np.float32)
    before = x.tobytes()
    with pytest.raises(ValueError, match="x must be finite"):
        kernels.clip_(x, 1.0)
    assert x.tobytes() == before


# pairwise_sq_distances


@given(st.integers(1, 6), sizes, st.sampled_from(ENCODINGS))
@settings(max_examples=15)
def test_distances_are_sums_of_squares_of_differences(
    kernels: ModuleType, k: int, n: int, encoding: str
) -> None:
    """Each pair in the order of sum_squares; symmetric, with a diagonal of zeros."""
    payloads = [kernels.encode(vector(seed, n), encoding, key=KEY) for seed in range(k)]
    made = kernels.pairwise_sq_distances(payloads, encoding=encoding)
    values = [kernels.decode(payload, encoding, n).astype(np.float64) for payload in payloads]
    assert made.dtype == np.float64
    assert made.shape == (k, k)
    assert (made == made.T).all()
    assert not np.diag(made).any()
    for i in range(k):
        for j in range(i):
            assert made[i, j] == plain_sum_of_squares((values[i] - values[j]).tolist())


def test_distances_of_close_models_are_right(kernels: ModuleType) -> None:
    """Where ‖a‖² + ‖b‖² − 2 a·b in float32 would be all rounding."""
    a = vector(5, 20_000)
    b = a.copy()
    b[7] += np.float32(0.25)
    expected = float(np.float64(b[7]) - np.float64(a[7])) ** 2
    assert kernels.pairwise_sq_distances([a, b])[0, 1] == expected


def test_distances_over_tiles_add_up(kernels: ModuleType) -> None:
    """Tiles of whole blocks, added in order, give the bits of the whole."""
    a, b = vector(6, 3 * BLOCK), vector(7, 3 * BLOCK)
    total = 0.0
    for start in range(0, 3 * BLOCK, BLOCK):
        total += kernels.pairwise_sq_distances([a[start : start + BLOCK], b[start : start + BLOCK]])[0, 1]
    assert kernels.pairwise_sq_distances([a, b])[0, 1] == total
