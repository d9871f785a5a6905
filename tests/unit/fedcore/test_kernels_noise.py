"""The contract of the noise: RFC 8439's words, accurate transforms, a stream by position, normal numbers."""

import hashlib
import math
import statistics
from decimal import Decimal, localcontext
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.fedcore.kernels import reference_chacha as chacha
from fedmq.fedcore.kernels import reference_noise as noise

KEY = bytes(range(32))
NONCE = bytes(range(100, 112))
N = 1 << 21

ULP = 2.0**-52

GOLDEN_FIRST = ["-0x1.adf8d2017fd30p-1", "-0x1.c5006cb8626dcp-2", "-0x1.14bbd74268c83p-1"]
GOLDEN_DIGEST = "bad0a0b9c77a055fbc1c08a340fbeac96145d55fb18d351ca6dbc5284a7b4532"


def normals(start: int, stop: int, key: bytes = KEY, nonce: bytes = NONCE) -> np.ndarray:
    """Normals [start, stop) of a stream, in one array."""
    return np.concatenate([tile for _, tile in noise.normals(key, nonce, start, stop)])


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    """Two million normals of one fixed stream."""
    return normals(0, N)


# ChaCha20


def test_the_block_function_is_that_of_rfc_8439() -> None:
    """Section 2.3.2: key, nonce and counter 1 give the printed state."""
    words = chacha.blocks(KEY, bytes.fromhex("000000090000004a00000000"), 1, 1)[:, 0]
    expected = (
        "e4e7f110 15593bd1 1fdd0f50 c47120a3 c7f4d1c7 0368c033 9aaa2204 4e6cd4c3"
        "466482d2 09aa9f07 05d7c214 a2028bd9 d19c12b5 b94e16de e883d0cb 4e3c50a2"
    )
    assert "".join(f"{word:08x}" for word in words) == expected.replace(" ", "")


@pytest.mark.parametrize(
    ("key", "nonce", "counter", "keystream"),
    [
        ("00" * 32, "00" * 12, 0, "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"),
        ("00" * 32, "00" * 12, 1, "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"),
        ("00" * 31 + "01", "00" * 12, 1, "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"),
        (
            "00ff" + "00" * 30,
            "00" * 12,
            2,
            "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca",
        ),
        ("00" * 32, "00" * 11 + "02", 0, "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"),
    ],
)
def test_keystreams_are_those_of_rfc_8439(key: str, nonce: str, counter: int, keystream: str) -> None:
    """Appendix A.1: the first half of each of the five test vectors."""
    words = chacha.blocks(bytes.fromhex(key), bytes.fromhex(nonce), counter, 1)[:8, 0]
    assert words.astype("<u4").tobytes().hex() == keystream


def test_blocks_side_by_side_are_blocks_one_by_one() -> None:
    """A block does not depend on its neighbours, up to the last counter."""
    many = chacha.blocks(KEY, NONCE, 2**32 - 5, 5)
    for i in range(5):
        assert (chacha.blocks(KEY, NONCE, 2**32 - 5 + i, 1)[:, 0] == many[:, i]).all()


def test_words_come_by_group_then_word_then_block() -> None:
    """Position 256 g + 16 i + b of the stream of words is word i of block 16 g + b."""
    words = chacha.words(KEY, NONCE, 0, 1000)
    for position in (0, 1, 15, 16, 17, 255, 256, 511, 999):
        g, i, b = position // 256, position % 256 // 16, position % 16
        assert words[position] == chacha.blocks(KEY, NONCE, 16 * g + b, 1)[i, 0]
    assert (chacha.words(KEY, NONCE, 300, 777) == words[300:777]).all()


# The one-word transforms


def edges_and_random_words() -> np.ndarray:
    """Words near every power of two and at both ends, where mistakes live, and random ones."""
    near = [
        max(0, min(2**64 - 1, 2**k + d)) for k in range(65) for d in (-2049, -1025, -2, -1, 0, 1, 2, 1025)
    ]
    root = [int(2**k * math.sqrt(0.5)) + d for k in range(12, 65) for d in (-1, 0, 1)]
    random = np.random.default_rng(5).integers(0, 2**64, 1500, np.uint64)
    return np.unique(np.concatenate([np.array(near + root, np.uint64), random]))


def test_the_radius_is_accurate_for_every_size_of_word() -> None:
    """Within 2 units in the last place of √(−2 ln u), u being the float64 that the definition says."""
    r = edges_and_random_words()
    made = noise.radius(r)
    with localcontext() as context:
        context.prec = 40
        for word, value in zip(r.tolist(), made.tolist(), strict=True):
            u = Decimal(float(word) + 0.5) / Decimal(2) ** 64
            exact = (-2 * u.ln()).sqrt()
            assert abs(Decimal(value) - exact) <= exact * Decimal(2 * ULP)


def test_the_radius_never_grows_with_its_word_and_has_the_stated_ends() -> None:
    """From 9.4926 at word 0 to 0 at the largest, falling (a last place of rounding aside)."""
    made = noise.radius(edges_and_random_words())
    assert made[0] == pytest.approx(math.sqrt(130 * math.log(2)), rel=1e-15)
    assert made[0] < noise.MAX_RADIUS
    assert made[-1] == 0.0
    assert (np.diff(made) <= 2 * ULP * made[:-1]).all()


def test_neighbouring_words_keep_their_order_through_the_radius() -> None:
    """Runs of neighbouring float64 values, in places of every size, do not rise by more than a last place."""
    for k in range(12, 64, 3):
        step = max(1, 2 ** (k - 52))
        run = 2**k + step * np.arange(2000, dtype=np.uint64)
        made = noise.radius(run.astype(np.uint64))
        assert (np.diff(made) <= ULP * made[:-1]).all()
        assert made[0] > made[-1]


def decimal_sine_and_cosine(x: Decimal) -> tuple[Decimal, Decimal]:
    """Taylor's series, for |x| < 1."""
    sine = cosine = Decimal(0)
    term = Decimal(1)
    for i in range(1, 32, 2):
        cosine += term
        term = term * x / i
        sine += term
        term = -term * x / (i + 1)
    return sine, cosine


def test_points_of_the_circle_are_accurate() -> None:
    """Sine and cosine are within 2 units in the last place over the whole arc, and exact in its middle."""
    pi = Decimal("3.14159265358979323846264338327950288419716939937510")
    fractions = [0, 1, 2**51 - 1, 2**51, 2**51 + 1, 2**52 - 1]
    fractions += np.random.default_rng(6).integers(0, 2**52, 1500).tolist()
    x, y = noise.unit_vectors(np.array([f << 10 for f in fractions], np.uint64))
    with localcontext() as context:
        context.prec = 40
        for f, cosine, sine in zip(fractions, x.tolist(), y.tolist(), strict=True):
            t = Decimal(f) / Decimal(2) ** 52 - Decimal("0.5")
            exact_sine, exact_cosine = decimal_sine_and_cosine(t * pi / 2)
            assert abs(Decimal(cosine) - exact_cosine) <= exact_cosine * Decimal(ULP)
            assert abs(Decimal(sine) - exact_sine) <= abs(exact_sine) * Decimal(2 * ULP)
    assert (x[3], y[3]) == (1.0, 0.0)


def test_the_sine_rises_and_the_cosine_turns_once() -> None:
    """Over runs of neighbouring fractions the sine never falls, and the cosine falls away from the middle."""
    for start in (0, 2**50, 2**51 - 1000, 2**51, 2**52 - 2000):
        run = (start + np.arange(2000, dtype=np.uint64)).astype(np.uint64)
        x, y = noise.unit_vectors(run << np.uint64(10))
        assert (np.diff(y) >= 0).all()
        assert y[-1] > y[0]
        away = np.diff(x) * np.where(run[1:] > 2**51, -1, 1)
        assert (away >= -ULP).all()
    assert np.abs(x).max() <= 1.0


def test_two_bits_of_the_angle_choose_the_arc() -> None:
    """Bit 62 negates the first coordinate, then bit 63 exchanges both."""
    angle = 123_456_789_012 << 10
    words = np.array([angle, angle | 1 << 62, angle | 1 << 63, angle | 3 << 62], np.uint64)
    x, y = noise.unit_vectors(words)
    assert x.tolist() == [x[0], -x[0], y[0], y[0]]
    assert y.tolist() == [y[0], y[0], x[0], -x[0]]


def test_the_ten_lowest_bits_of_the_angle_are_not_used() -> None:
    """The angle has 52 bits and two for the arc."""
    x, y = noise.unit_vectors(np.array([2**40, 2**40 + 1023], np.uint64))
    assert x[0] == x[1]
    assert y[0] == y[1]


# The stream


def test_a_pair_of_words_makes_a_pair_of_normals_at_the_stated_positions() -> None:
    """Position 128 g + 32 p + b, and 16 later, come from words 4p … 4p + 3 of block 16 g + b."""
    stream = normals(0, 512)
    for g, p, b in ((0, 0, 0), (0, 3, 15), (1, 2, 7), (3, 1, 4)):
        w = chacha.blocks(KEY, NONCE, 16 * g + b, 1)[4 * p : 4 * p + 4, 0].astype(np.uint64)
        r = noise.radius(w[:1] | w[1:2] << np.uint64(32))
        x, y = noise.unit_vectors(w[2:3] | w[3:4] << np.uint64(32))
        at = 128 * g + 32 * p + b
        assert stream[at] == (r * x)[0]
        assert stream[at + 16] == (r * y)[0]


@given(st.integers(0, 70_000), st.integers(0, 3000))
@settings(max_examples=30)
def test_a_normal_depends_on_its_position_alone(start: int, length: int) -> None:
    """Any stretch of the stream is that stretch of the whole, however it is cut into tiles."""
    part = np.array([value for _, tile in noise.normals(KEY, NONCE, start, start + length) for value in tile])
    whole = normals(start // 128 * 128, start // 128 * 128 + 3200)
    assert (part == whole[start % 128 :][:length]).all()


def test_the_stream_is_the_same_on_every_machine() -> None:
    """Bits that were computed once, for good: a version must be reproducible for years."""
    made = normals(0, 100_000)
    first = [value.hex() for value in made[:3].tolist()]
    assert first == GOLDEN_FIRST
    assert hashlib.sha256(made.astype("<f8").tobytes()).hexdigest() == GOLDEN_DIGEST


def test_keys_and_nonces_name_different_streams() -> None:
    """One bit of either changes everything."""
    base = normals(0, 1000)
    other_key = normals(0, 1000, key=KEY[:-1] + bytes([KEY[-1] ^ 1]))
    other_nonce = normals(0, 1000, nonce=NONCE[:-1] + bytes([NONCE[-1] ^ 1]))
    for other in (other_key, other_nonce):
        assert not (base == other).any()
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / math.sqrt(1000)


# The distribution; limits are five standard errors of the statistic.


def test_moments_are_those_of_the_normal_distribution(sample: np.ndarray) -> None:
    """Mean 0, variance 1, skewness 0, fourth moment 3, sixth 15."""
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert np.mean(sample**power) == pytest.approx(expected, abs=5 * math.sqrt(variance / N))


def test_1024_equally_likely_bins_fill_equally(sample: np.ndarray) -> None:
    """χ² with 1023 degrees of freedom."""
    edges = [statistics.NormalDist().inv_cdf(i / 1024) for i in range(1, 1024)]
    counts = np.bincount(np.searchsorted(edges, sample), minlength=1024)
    chi2 = ((counts - N / 1024) ** 2).sum() / (N / 1024)
    assert abs(chi2 - 1023) < 5 * math.sqrt(2 * 1023)


@pytest.mark.parametrize("limit", [3.0, 4.0, 4.5])
def test_tails_hold_as_many_as_they_should(sample: np.ndarray, limit: float) -> None:
    """Counts beyond ±limit σ are those of a normal distribution, on both sides."""
    expected = N * math.erfc(limit / math.sqrt(2)) / 2
    for side in (sample, -sample):
        assert abs(np.count_nonzero(side > limit) - expected) < 5 * math.sqrt(expected)


def test_the_far_tail_is_reached() -> None:
    """Words that no sample meets give radii of the right probability: P(R > r) = exp(−r²/2)."""
    words = np.array([1 << k for k in range(1, 64)], np.uint64)
    probability = np.array([(2.0**k + 0.5) / 2.0**64 for k in range(1, 64)])
    assert np.exp(-(noise.radius(words) ** 2) / 2) == pytest.approx(probability, rel=1e-13)


@pytest.mark.parametrize("lag", [1, 2, 15, 16, 17, 31, 32, 64, 127, 128, 256, 2048, 65_536])
def test_normals_at_a_distance_are_uncorrelated(sample: np.ndarray, lag: int) -> None:
    """Neither the values nor their squares, at the distances where the construction could show through."""
    z, squares = sample, (sample**2 - 1) / math.sqrt(2)
    for values in (z, squares):
        assert abs(np.mean(values[:-lag] * values[lag:])) < 5 / math.sqrt(N - lag)


def test_lanes_of_a_group_are_uncorrelated(sample: np.ndarray) -> None:
    """All 8128 pairs of the 128 positions of a group, values and squares."""
    lanes = sample.reshape(-1, 128)
    for values in (lanes, lanes**2):
        correlation = np.corrcoef(values, rowvar=False) - np.eye(128)
        assert np.abs(correlation).max() < 6 / math.sqrt(len(lanes))


# add_gaussian_


def test_noise_is_added_in_float64_and_rounded_once(kernels: ModuleType) -> None:
    """x + sigma · normal, for any sigma, at any offset."""
    x = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    noisy = x.copy()
    kernels.add_gaussian_(noisy, 0.7, key=KEY, nonce=NONCE, offset=333)
    assert (noisy == (x + 0.7 * normals(333, 1333)).astype(np.float32)).all()


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 2**34))
@settings(max_examples=20)
def test_a_vector_may_be_noised_in_pieces(kernels: ModuleType, n: int, cut: int, offset: int) -> None:
    """Two calls with their offsets give the bits of one."""
    cut = min(cut, n)
    whole, pieces = np.zeros(n, np.float32), np.zeros(n, np.float32)
    kernels.add_gaussian_(whole, 2.0, key=KEY, nonce=NONCE, offset=offset)
    kernels.add_gaussian_(pieces[:cut], 2.0, key=KEY, nonce=NONCE, offset=offset)
    kernels.add_gaussian_(pieces[cut:], 2.0, key=KEY, nonce=NONCE, offset=offset + cut)
    assert whole.tobytes() == pieces.tobytes()


def test_no_sigma_means_no_noise(kernels: ModuleType) -> None:
    """sigma = 0 leaves a vector as it is."""
    x = np.arange(1, 100, dtype=np.float32)
    kernels.add_gaussian_(x, 0.0, key=KEY, nonce=NONCE)
    assert (x == np.arange(1, 100)).all()


def test_the_stream_ends_where_its_block_counter_does(kernels: ModuleType) -> None:
    """The last position is 2^35 − 1; beyond it the counter would repeat, so that is refused."""
    x = np.zeros(128, np.float32)
    kernels.add_gaussian_(x, 1.0, key=KEY, nonce=NONCE, offset=2**35 - 128)
    assert np.count_nonzero(x) == 128
    before = x.copy()
    with pytest.raises(ValueError, match="offset"):
        kernels.add_gaussian_(x, 1.0, key=KEY, nonce=NONCE, offset=2**35 - 127)
    assert (x == before).all()
