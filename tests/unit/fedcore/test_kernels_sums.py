"""The contract of the Accumulator: exact, in any order, within its ranges, and private when told."""

import math
from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedmq.fedcore.codecs import ENCODINGS
from fedmq.fedcore.kernels import dyadic, frac_bits_for
from fedmq.fedcore.kernels import reference_noise as noise

KEY = bytes(range(32))
NONCE = bytes(12)

sizes = st.sampled_from([0, 1, 7, 1023, 1024, 1025, 3000])
weights = st.floats(0, 1000)


def vector(seed: int, n: int, scale: float = 1.0) -> np.ndarray:
    """A repeatable float32 vector."""
    return (scale * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


# Choosing the grid


@given(st.floats(0, 1e30), st.integers(1, 10_000), st.floats(0, 1e30))
def test_f_is_the_largest_that_fits(bound: float, k: int, sigma: float) -> None:
    """B·2^F < 2^51 and (K·B + 9.5σ)·2^F < 2^62, and F + 1 breaks one of them or is above 100."""
    assume(bound > 0 or sigma > 0)
    f = frac_bits_for(bound, k, sigma)

    def fits(f: int) -> bool:
        unit = Fraction(2) ** f
        return bound * unit < 2**51 and Fraction(k * bound + 9.5 * sigma) * unit < 2**62

    assert fits(f)
    assert f == 100 or not fits(f + 1)
    assert f <= 100


def test_f_of_nothing_is_zero() -> None:
    """With neither updates nor noise there is nothing to resolve."""
    assert frac_bits_for(0.0, 5, 0.0) == 0


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_f_needs_finite_bounds(bad: float) -> None:
    """A bound or a sigma that is negative or not finite is refused by name."""
    with pytest.raises(ValueError, match="bound"):
        frac_bits_for(bad, 1)
    with pytest.raises(ValueError, match="sigma"):
        frac_bits_for(1.0, 1, bad)
    with pytest.raises(ValueError, match="too large"):
        frac_bits_for(1e300, 1)


@given(weights)
def test_weights_become_multiples_of_two_to_the_minus_twenty(weight: float) -> None:
    """The nearest multiple, so that their sums are exact."""
    made = dyadic(weight)
    assert (made * 2**20).is_integer()
    assert abs(Fraction(made) - Fraction(weight)) <= Fraction(1, 2**21)
    assert dyadic(made) == made


# Adding


@given(st.integers(0, 2**32), sizes, st.floats(0, 100), st.integers(-10, 40), st.booleans())
@settings(max_examples=40)
def test_an_update_is_added_as_the_definition_says(
    kernels: ModuleType, seed: int, n: int, weight: float, frac_bits: int, truncate: bool
) -> None:
    """q = rint or trunc of x · (w · 2^F), element by element in plain Python."""
    x = vector(seed, n)
    total = kernels.Accumulator(n, frac_bits=frac_bits)
    assert total.add(x, weight=weight, truncate=truncate) is None
    scale = dyadic(weight) * 2.0**frac_bits
    expected = [math.trunc(v * scale) if truncate else round(v * scale) for v in x.tolist()]
    assert total.totals().dtype == np.int64
    assert total.totals().tolist() == expected


def test_halves_go_to_the_even_integer(kernels: ModuleType) -> None:
    """Ties to even, on both sides of zero; −0 leaves no trace."""
    total = kernels.Accumulator(6, frac_bits=0)
    total.add(np.array([0.5, 1.5, 2.5, -0.5, -1.5, -0.0], np.float32))
    assert total.totals().tolist() == [0, 2, 2, 0, -2, 0]


updates = st.lists(
    st.tuples(st.integers(0, 2**32), st.sampled_from(ENCODINGS), weights, st.none() | st.floats(0.1, 100)),
    min_size=2,
    max_size=6,
)


@given(updates, sizes, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_the_order_of_arrival_does_not_matter(
    kernels: ModuleType, updates: list, n: int, random: object
) -> None:
    """Any permutation of any updates, clipped or not, gives the same bits."""

    def summed(order: list) -> tuple[bytes, bytes]:
        total = kernels.Accumulator(n, frac_bits=28)
        for seed, encoding, weight, max_norm in order:
            payload = kernels.encode(vector(seed, n), encoding, key=KEY)
            total.add(payload, encoding=encoding, weight=weight, max_norm=max_norm)
        return total.totals().tobytes(), total.mean(3.0).tobytes()

    shuffled = list(updates)
    random.shuffle(shuffled)
    assert summed(updates) == summed(shuffled)


@given(updates, st.integers(0, 5))
@settings(max_examples=20)
def test_sums_that_are_merged_are_the_sum_of_all(kernels: ModuleType, updates: list, cut: int) -> None:
    """Two accumulators over parts of the updates merge into that of the whole."""
    n = 1500
    whole, left, right = (kernels.Accumulator(n, frac_bits=28) for _ in range(3))
    for i, (seed, _, weight, max_norm) in enumerate(updates):
        x = vector(seed, n)
        for total in (whole, left if i < cut else right):
            total.add(x, weight=weight, max_norm=max_norm)
    left.merge(right)
    assert (left.totals() == whole.totals()).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_encoded_update_adds_what_it_decodes_to(kernels: ModuleType, encoding: str) -> None:
    """All kernels see the float32 values of decode, also when the payload lies at an odd address."""
    n = 70_000
    payload = kernels.encode(vector(3, n), encoding, key=KEY)
    unaligned = memoryview(b"x" + payload)[1:]
    encoded, plain = (kernels.Accumulator(n, frac_bits=40) for _ in range(2))
    encoded.add(unaligned, encoding=encoding, weight=0.3)
    plain.add(kernels.decode(payload, encoding, n), weight=0.3)
    assert (encoded.totals() == plain.totals()).all()


# Clipping


def test_a_long_update_is_scaled_to_the_norm(kernels: ModuleType) -> None:
    """The factor max_norm / norm multiplies the dyadic weight in float64."""
    x = vector(4, 5000)
    norm = math.sqrt(kernels.sum_squares(x))
    total = kernels.Accumulator(5000, frac_bits=40)
    assert total.add(x, weight=0.75, max_norm=2.5) == norm
    scale = 0.75 * (2.5 / norm) * 2.0**40
    assert (total.totals() == np.rint(x.astype(np.float64) * scale).astype(np.int64)).all()


def test_a_short_update_is_left_alone(kernels: ModuleType) -> None:
    """Nothing changes at or below the norm; the norm is still returned."""
    x = np.array([3, 4], np.float32)
    total = kernels.Accumulator(2, frac_bits=0)
    assert total.add(x, max_norm=5.0) == 5.0
    assert total.totals().tolist() == [3, 4]


def test_a_tile_is_clipped_by_the_norm_of_the_whole(kernels: ModuleType) -> None:
    """With a norm given, that one counts, and nothing is computed or returned."""
    x = np.array([3, 4], np.float32)
    total = kernels.Accumulator(2, frac_bits=20)
    assert total.add(x, norm=10.0, max_norm=5.0) is None
    assert total.mean(1.0).tolist() == [1.5, 2.0]


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 1000]), st.floats(1e-3, 1e3), st.floats(0, 8))
@settings(max_examples=60)
def test_a_truncated_update_is_never_longer_than_allowed(
    kernels: ModuleType, seed: int, n: int, max_norm: float, weight: float
) -> None:
    """In exact arithmetic: ‖q‖ ≤ w · max_norm · 2^F. That is what the noise is calibrated to."""
    x = vector(seed, n, scale=max_norm * 2.0 ** (seed % 30 - 10))
    frac_bits = frac_bits_for(8 * max_norm, 1)
    total = kernels.Accumulator(n, frac_bits=frac_bits)
    total.add(x, weight=weight, max_norm=max_norm, truncate=True)
    allowed = Fraction(dyadic(weight)) * Fraction(max_norm) * Fraction(2) ** frac_bits
    assert sum(q * q for q in total.totals().tolist()) <= allowed**2


def test_an_update_exactly_at_its_norm_survives_truncation_almost_whole(kernels: ModuleType) -> None:
    """The safety margin costs 2^-32, no more."""
    total = kernels.Accumulator(1, frac_bits=50)
    total.add(np.array([1.0], np.float32), max_norm=1.0, truncate=True)
    assert 1.0 - total.totals()[0] / 2.0**50 == pytest.approx(2.0**-32, rel=0.01)


# Ranges: what raises has added nothing


def refused(kernels: ModuleType, total: object, match: str, *args: object, **kwargs: object) -> None:
    """`add` raises, says why, and the sum and what it may still take are what they were."""
    before = total.totals()
    with pytest.raises(ValueError, match=match):
        total.add(*args, **kwargs)
    assert (total.totals() == before).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2.0**51, -(2.0**51)])
@pytest.mark.parametrize("truncate", [False, True])
def test_a_value_out_of_range_is_refused(kernels: ModuleType, bad: float, truncate: bool) -> None:
    """NaN, infinities, and 2^51 in units of the grid, wherever it stands; NaN even with weight 0."""
    n = 100_000
    total = kernels.Accumulator(n, frac_bits=0)
    total.add(np.ones(n, np.float32))
    for position in (0, 70_000, n - 1):
        x = np.ones(n, np.float32)
        x[position] = bad
        refused(kernels, total, "payload", x, truncate=truncate)
        if not math.isfinite(bad):
            refused(kernels, total, "payload", x, weight=0.0)
            refused(kernels, total, "payload", x, max_norm=1.0)
            refused(kernels, total, "payload", x, norm=2.0, max_norm=1.0)


def test_the_largest_values_are_taken(kernels: ModuleType) -> None:
    """The last float32 below 2^51, on both sides of zero."""
    largest = np.nextafter(np.float32(2.0**51), np.float32(0))
    total = kernels.Accumulator(2, frac_bits=0)
    total.add(np.array([largest, -largest]))
    assert total.totals().tolist() == [int(largest), -int(largest)]


def test_a_sum_that_could_overflow_is_refused(kernels: ModuleType) -> None:
    """The largest |q| of all that was added stay below 2^63 together, whatever their signs and places."""
    total = kernels.Accumulator(2, frac_bits=0)
    x = np.array([2.0**50, 0], np.float32)
    for _ in range(2**13 - 1):
        total.add(x)
    refused(kernels, total, "payload", -x)
    total.add(x, weight=0.5)
    total.reset()
    total.add(x)
    assert total.totals().tolist() == [2**50, 0]


def test_merging_keeps_to_the_range_as_well(kernels: ModuleType) -> None:
    """The reach of both sums counts, and a refused merge changes nothing."""
    left, right = kernels.Accumulator(1, frac_bits=0), kernels.Accumulator(1, frac_bits=0)
    left.add_noise(2.0**58, key=KEY, nonce=NONCE)
    right.add_noise(2.0**59, key=KEY, nonce=NONCE)
    before = left.totals()
    left.merge(right)
    merged = left.totals()
    assert merged == before + right.totals()
    with pytest.raises(ValueError, match="other"):
        left.merge(right)
    assert left.totals() == merged


def test_sums_of_another_shape_do_not_merge(kernels: ModuleType) -> None:
    """n, frac_bits and offset must agree; a thing that is no sum is a TypeError."""
    total = kernels.Accumulator(5, frac_bits=3)
    others = [(6, 3, 0), (5, 4, 0), (5, 3, 1024)]
    for n, frac_bits, offset in others:
        with pytest.raises(ValueError, match="other"):
            total.merge(kernels.Accumulator(n, frac_bits=frac_bits, offset=offset))
    with pytest.raises(TypeError):
        total.merge(np.zeros(5))


# Noise


@pytest.mark.parametrize(("sigma", "frac_bits"), [(0.5, 40), (3.0, 0), (1.0, 58), (0.0, 10)])
def test_noise_is_the_rounded_stream(kernels: ModuleType, sigma: float, frac_bits: int) -> None:
    """rint(normal · (σ · 2^F)) on top of what is there, far beyond 2^51 too."""
    n = 3000
    total = kernels.Accumulator(n, frac_bits=frac_bits, offset=2048)
    total.add_noise(sigma, key=KEY, nonce=NONCE)
    stream = np.concatenate([tile for _, tile in noise.normals(KEY, NONCE, 2048, 2048 + n)])
    assert (total.totals() == np.rint(stream * (sigma * 2.0**frac_bits)).astype(np.int64)).all()


@pytest.mark.parametrize(("sigma", "frac_bits"), [(0.5, 40), (3.0, 0), (1.0, 58), (0.0, 10)])
def test_noise_is_taken_away_to_the_bit(kernels: ModuleType, sigma: float, frac_bits: int) -> None:
    """Correlated noise relies on it: subtracting is adding the negated integers."""
    n = 3000
    added, taken = (kernels.Accumulator(n, frac_bits=frac_bits, offset=2048) for _ in range(2))
    added.add_noise(sigma, key=KEY, nonce=NONCE)
    taken.subtract_noise(sigma, key=KEY, nonce=NONCE)
    assert (taken.totals() == -added.totals()).all()
    taken.add_noise(sigma, key=KEY, nonce=NONCE)
    assert not taken.totals().any()


@given(st.integers(0, 6), st.integers(0, 6))
@settings(max_examples=15)
def test_tiles_get_the_noise_of_their_places(kernels: ModuleType, first: int, tiles: int) -> None:
    """A tile with its offset gets just that part of the noise of the whole."""
    whole = kernels.Accumulator(12 * 1024 + 77, frac_bits=30)
    whole.add_noise(1.5, key=KEY, nonce=NONCE)
    tile = kernels.Accumulator(tiles * 1024 + 77, frac_bits=30, offset=first * 1024)
    tile.add_noise(1.5, key=KEY, nonce=NONCE)
    start = first * 1024
    assert (tile.totals() == whole.totals()[start : start + tiles * 1024 + 77]).all()


def test_noise_that_could_overflow_is_refused(kernels: ModuleType) -> None:
    """9.5 σ must fit beside the sum."""
    total = kernels.Accumulator(10, frac_bits=0)
    for sigma in (2.0**60, 2.0**62, 1e300):
        for change in (total.add_noise, total.subtract_noise):
            with pytest.raises(ValueError, match="sigma"):
                change(sigma, key=KEY, nonce=NONCE)
    assert not total.totals().any()


# Reading


@given(st.lists(st.integers(-(2**50), 2**50).map(lambda v: v / 8), min_size=1), st.floats(1e-3, 1e6))
@settings(max_examples=40)
def test_the_mean_is_rounded_from_float64_once(
    kernels: ModuleType, values: list[float], denominator: float
) -> None:
    """float32(float64(total) / (denominator · 2^F))."""
    x = np.array(values, np.float32)
    total = kernels.Accumulator(len(x), frac_bits=3)
    total.add(x, weight=1 / 8)
    expected = (total.totals().astype(np.float64) / (denominator * 8)).astype(np.float32)
    assert total.mean(denominator).tobytes() == expected.tobytes()


def test_the_mean_can_be_written_where_the_caller_wants_it(kernels: ModuleType) -> None:
    """`out` is filled and returned; the sum stays."""
    total = kernels.Accumulator(3, frac_bits=10)
    total.add(np.array([1, 2, 3], np.float32))
    out = np.zeros(5, np.float32)
    part = out[1:4]
    assert total.mean(2.0, part) is part
    assert out.tolist() == [0, 0.5, 1.0, 1.5, 0]
    assert total.mean(1.0, out=part).tolist() == [1, 2, 3]


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_denominator_is_positive_and_finite(kernels: ModuleType, bad: float) -> None:
    """And `out` is not touched by a refused one."""
    total = kernels.Accumulator(2, frac_bits=0)
    out = np.full(2, 9, np.float32)
    with pytest.raises(ValueError, match="denominator"):
        total.mean(bad, out)
    assert out.tolist() == [9, 9]


def test_totals_are_a_copy(kernels: ModuleType) -> None:
    """Writing to them does not change the sum."""
    total = kernels.Accumulator(2, frac_bits=0)
    total.totals()[:] = 5
    assert total.totals().tolist() == [0, 0]
