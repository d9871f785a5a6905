"""The contract of encode and decode: nearest values, unbiased int8, and no infinity or NaN unseen."""

import math
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.fedcore.codecs import ENCODINGS, size_range
from fedmq.fedcore.kernels import reference_chacha as chacha

KEY = bytes(range(32))
MAX = float(np.finfo(np.float32).max)

sizes = st.sampled_from([0, 1, 5, 1023, 1024, 1025, 2048, 70_001])
singles = st.floats(width=32, allow_nan=False, allow_infinity=False)


def vector(seed: int, n: int) -> np.ndarray:
    """A repeatable float32 vector."""
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def bits(x: np.ndarray) -> np.ndarray:
    """The bits of float32 values."""
    return x.view(np.uint32)


@given(st.sampled_from(ENCODINGS), sizes, st.integers(0, 2**32))
@settings(max_examples=40)
def test_a_payload_has_its_size_and_decodes_to_float32(
    kernels: ModuleType, encoding: str, n: int, seed: int
) -> None:
    """What decode gives is a new, writable float32 vector; encoding it again loses nothing (but in i8)."""
    payload = kernels.encode(vector(seed, n), encoding, key=KEY)
    assert type(payload) is bytes
    least, most = size_range(encoding, n)
    assert least <= len(payload) <= most
    x = kernels.decode(payload, encoding, n)
    assert x.dtype == np.float32
    assert x.shape == (n,)
    assert x.flags.writeable
    if encoding != "i8":
        assert kernels.encode(x, encoding) == payload


@given(st.lists(st.integers(0, 2**32 - 1)))
@settings(max_examples=40)
def test_f32_keeps_every_bit(kernels: ModuleType, patterns: list[int]) -> None:
    """NaNs, zeros of either sign, subnormals: f32 is the value itself, little-endian."""
    x = np.array(patterns, np.uint32).view(np.float32)
    payload = kernels.encode(x, "f32")
    assert payload == np.array(patterns, "<u4").tobytes()
    assert (bits(kernels.decode(payload, "f32", len(x))) == patterns).all()


def test_every_half_comes_back(kernels: ModuleType) -> None:
    """All 65,536 patterns of f16 and bf16: decoded exactly, and encoded to themselves, NaNs to one NaN."""
    patterns = np.arange(65_536, dtype="<u2")
    halves = kernels.decode(patterns, "f16", 65_536)
    uppers = kernels.decode(patterns, "bf16", 65_536)
    number = ~np.isnan(patterns.view("<f2"))
    assert (halves[number] == patterns.view("<f2")[number].astype(np.float64)).all()
    assert np.isnan(halves[~number]).all()
    assert (bits(uppers)[~np.isnan(uppers)] >> 16 == patterns[~np.isnan(uppers)]).all()
    for encoding, values, nan in (("f16", halves, 0x7E00), ("bf16", uppers, 0x7FC0)):
        again = np.frombuffer(kernels.encode(values, encoding), "<u2")
        assert (again == np.where(np.isnan(values), nan, patterns)).all()


@pytest.mark.parametrize("encoding", ["f16", "bf16"])
def test_halfway_between_two_halves_goes_to_the_even_one(kernels: ModuleType, encoding: str) -> None:
    """Each midpoint of neighbours and the float32 on either side of it, over all finite patterns."""
    patterns = np.arange(0x7C00 if encoding == "f16" else 0x7F80, dtype="<u2")
    values = kernels.decode(patterns, encoding, len(patterns)).astype(np.float64)
    above = values[1:]
    middle = ((values[:-1] + above) / 2).astype(np.float32)  # exact, but for bf16's smallest
    exact = middle.astype(np.float64) * 2 == values[:-1] + above
    assert np.count_nonzero(~exact) == 0
    even = np.where(patterns[:-1] % 2 == 0, patterns[:-1], patterns[1:])
    for x, expected in (
        (middle, even),
        (np.nextafter(middle, np.float32(0)), patterns[:-1]),
        (np.nextafter(middle, np.float32(np.inf)), patterns[1:]),
    ):
        assert (np.frombuffer(kernels.encode(x, encoding), "<u2") == expected).all()
        assert (np.frombuffer(kernels.encode(-x, encoding), "<u2") == expected + 0x8000).all()


@pytest.mark.parametrize(
    ("encoding", "first", "infinity"),
    [("f16", 65_520.0, 0x7C00), ("bf16", float.fromhex("0x1.ffp127"), 0x7F80)],
)
def test_what_is_too_large_becomes_an_infinity(
    kernels: ModuleType, encoding: str, first: float, infinity: int
) -> None:
    """From half a step above the largest value on; so that it is seen as not finite."""
    below = np.nextafter(np.float32(first), np.float32(0))
    x = np.array([below, first, MAX, math.inf], np.float32)
    expected = [infinity - 1, infinity, infinity, infinity]
    assert np.frombuffer(kernels.encode(x, encoding), "<u2").tolist() == expected
    assert np.frombuffer(kernels.encode(-x, encoding), "<u2").tolist() == [v + 0x8000 for v in expected]


# i8


def scales_and_values(payload: bytes, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The float32 scales, and the int8 values, of an i8 payload."""
    scales, values = [], []
    for start in range(0, len(payload), 1028):
        scales.append(np.frombuffer(payload[start : start + 4], "<f4")[0])
        values.append(np.frombuffer(payload[start + 4 : start + 1028], np.int8))
    return np.array(scales, np.float32), np.concatenate([*values, np.zeros(0, np.int8)])[:n]


@given(st.integers(0, 2**32), sizes, st.sampled_from([1e-42, 1e-20, 1.0, 1e30]))
@settings(max_examples=30)
def test_i8_rounds_as_the_definition_says(kernels: ModuleType, seed: int, n: int, size: float) -> None:
    """floor(x / scale + (word + ½) / 2^32), the words being the keyed stream's."""
    x = vector(seed, n) * np.float32(size)
    scales, q = scales_and_values(kernels.encode(x, "i8", key=KEY, nonce=bytes(12)), n)
    words = chacha.words(KEY, bytes(12), 0, n)
    per_value = np.repeat(scales.astype(np.float64), 1024)[:n]
    for b, scale in enumerate(scales):
        largest = np.abs(x[b * 1024 : (b + 1) * 1024]).max()
        assert np.float64(scale) * 127 >= largest
        assert scale == 0 or np.float64(np.nextafter(scale, np.float32(0))) * 127 < largest
    v = x.astype(np.float64) / np.where(per_value > 0, per_value, 1.0)
    assert (q == np.floor(v + (words + 0.5) / 2**32)).all()


@given(st.integers(0, 2**32), sizes)
@settings(max_examples=20)
def test_i8_is_wrong_by_less_than_a_step(kernels: ModuleType, seed: int, n: int) -> None:
    """|decoded − x| < scale: at most 1/127 of the largest value of the block."""
    x = vector(seed, n)
    payload = kernels.encode(x, "i8", key=KEY)
    scales, _ = scales_and_values(payload, n)
    error = np.abs(kernels.decode(payload, "i8", n).astype(np.float64) - x)
    assert (error <= np.repeat(scales.astype(np.float64), 1024)[:n] * (1 + 1e-6)).all()


def test_i8_is_right_on_average(kernels: ModuleType) -> None:
    """Over many keys the mean of what is decoded is the value: five standard errors of every coordinate."""
    x = np.concatenate([[1.0], np.linspace(-1, 1, 600), [1e-4]]).astype(np.float32)
    rounds = 1000
    total = np.zeros(len(x))
    for i in range(rounds):
        payload = kernels.encode(x, "i8", key=KEY, nonce=i.to_bytes(12, "little"))
        total += kernels.decode(payload, "i8", len(x))
    v = x.astype(np.float64) * 127
    spread = np.sqrt((v - np.floor(v)) * (np.ceil(v) - v)) / 127
    assert (np.abs(total / rounds - x) <= 5 * spread / math.sqrt(rounds) + 1e-6).all()


def test_a_key_makes_i8_repeatable_and_no_key_makes_it_new(kernels: ModuleType) -> None:
    """The same key and nonce give the same bytes; without a key the system draws one."""
    x = vector(1, 3000)
    assert kernels.encode(x, "i8", key=KEY) == kernels.encode(x, "i8", key=KEY, nonce=bytes(12))
    assert kernels.encode(x, "i8", key=KEY) != kernels.encode(x, "i8", key=KEY, nonce=b"another one.")
    assert kernels.encode(x, "i8") != kernels.encode(x, "i8")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_i8_block_that_is_not_finite_says_so(kernels: ModuleType, bad: float) -> None:
    """Its scale is a NaN and its values are zeros; the blocks beside it are as they were."""
    x = vector(2, 2500)
    clean = kernels.encode(x, "i8", key=KEY)
    x[1500] = bad
    payload = kernels.encode(x, "i8", key=KEY)
    assert payload[:1028] == clean[:1028]
    assert payload[2056:] == clean[2056:]
    assert payload[1028:2056] == bytes.fromhex("0000c07f") + bytes(1024)
    decoded = kernels.decode(payload, "i8", 2500)
    assert np.isnan(decoded[1024:2048]).all()
    assert np.isfinite(decoded[:1024]).all()


def test_i8_blocks_of_zeros_and_of_extremes(kernels: ModuleType) -> None:
    """Zeros stay zeros; the smallest and the largest float32 survive without an infinity."""
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    for values in ([0.0, -0.0], [tiny, -tiny], [MAX, -MAX, 1.0], [-MAX, tiny]):
        x = np.array(values, np.float32)
        decoded = kernels.decode(kernels.encode(x, "i8", key=KEY), "i8", len(x))
        assert np.isfinite(decoded).all()
        assert decoded[0] == pytest.approx(values[0], rel=1e-5)


@given(st.lists(singles, min_size=1, max_size=50))
@settings(max_examples=40)
def test_i8_never_leaves_its_levels(kernels: ModuleType, values: list[float]) -> None:
    """q is within ±127 whatever the values, and what is decoded is finite."""
    x = np.array(values, np.float32)
    payload = kernels.encode(x, "i8", key=KEY)
    assert -128 not in np.frombuffer(payload[4:], np.int8)
    assert np.isfinite(kernels.decode(payload, "i8", len(x))).all()
