"""The distribution of the noise that the kernels make: as compiled on millions, as defined on fewer.

Keys are fixed, so a test passes always or never. Limits are five standard errors of the statistic on either side: too
good a fit is a mistake too. The transforms of single words are looked at in tests/unit/fedcore/test_kernels_noise.py.
"""

import math
import statistics
from types import ModuleType
from typing import Any

import numpy as np
import pytest

KEY, NONCE = bytes(range(7, 39)), bytes(range(50, 62))
NORMAL = statistics.NormalDist()


def normals(module: ModuleType, n: int, key: bytes = KEY, nonce: bytes = NONCE, offset: int = 0) -> Any:
    """Normals of a stream, as float32."""
    x = np.zeros(n, np.float32)
    module.add_gaussian_(x, 1.0, key=key, nonce=nonce, offset=offset)
    return x


def above(limit: float) -> float:
    """The probability that a normal exceeds the limit."""
    return math.erfc(limit / math.sqrt(2)) / 2


def assert_filled(counts: Any, expected: Any) -> None:
    """χ² of all cells, against its mean and its standard deviation."""
    chi2 = ((counts - expected) ** 2 / expected).sum()
    freedom = np.size(counts) - 1
    assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.fixture(scope="module", params=["native", "reference"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    """Each backend in turn."""
    found: ModuleType = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def sample(module: ModuleType, native: ModuleType) -> Any:
    """Eight million normals of the compiled kernels, one million of the definition, as float64."""
    return normals(module, 1 << (23 if module is native else 20)).astype(np.float64)


@pytest.fixture(scope="module")
def cells(sample: Any) -> Any:
    """Which of 1024 equally likely bins each normal lies in."""
    edges = [NORMAL.inv_cdf(i / 1024) for i in range(1, 1024)]
    return np.searchsorted(edges, sample).astype(np.int16)


def test_moments_up_to_the_sixth(sample: Any) -> None:
    """0, 1, 0, 3, 0, 15; the variance of z^k is that of the 2k-th moment."""
    moments = {2 * k: math.prod(range(1, 2 * k, 2)) for k in range(7)} | dict.fromkeys((1, 3, 5), 0)
    power = np.ones_like(sample)
    for k in range(1, 7):
        power *= sample
        error = math.sqrt((moments[2 * k] - moments[k] ** 2) / sample.size)
        assert abs(power.mean() - moments[k]) < 5 * error


def test_1024_equally_likely_bins_fill_equally(cells: Any) -> None:
    """The body of the distribution."""
    assert_filled(np.bincount(cells, minlength=1024), cells.size / 1024)


def test_the_two_normals_of_a_pair_are_independent(sample: Any, cells: Any) -> None:
    """Sine and cosine share a radius: 32 × 32 cells fill equally, values and squares are uncorrelated."""
    first, second = np.moveaxis(sample.reshape(-1, 2, 16), 1, 0)
    for f in (lambda z: z, lambda z: (z * z - 1) / math.sqrt(2)):
        assert abs((f(first) * f(second)).mean()) < 5 / math.sqrt(first.size)
    one, other = np.moveaxis(cells.reshape(-1, 2, 16) // 32, 1, 0)
    assert_filled(np.bincount((one * 32 + other).ravel(), minlength=1024), one.size / 1024)


def test_the_angle_and_the_radius_of_a_pair_are_independent(sample: Any) -> None:
    """32 directions by 32 equally likely rings fill equally: each quadrant, each side of each arc."""
    x, y = np.moveaxis(sample.reshape(-1, 2, 16), 1, 0).reshape(2, -1)
    direction = np.minimum((np.arctan2(y, x) / (2 * math.pi) + 0.5) * 32, 31).astype(np.int64)
    ring = np.minimum(np.exp(-(x * x + y * y) / 2) * 32, 31).astype(np.int64)
    assert_filled(np.bincount(direction * 32 + ring, minlength=1024), x.size / 1024)


def test_normals_at_a_distance_are_uncorrelated(sample: Any) -> None:
    """Values and squares, 1 to 64 apart, and as far as groups, blocks of a payload and ranges of threads."""
    for z in (sample, (sample * sample - 1) / math.sqrt(2)):
        for lag in (*range(1, 65), 112, 127, 128, 129, 144, 256, 1024, 16_384, 262_144):
            assert abs(z[:-lag] @ z[lag:] / (z.size - lag)) < 5 / math.sqrt(z.size - lag)


def test_lanes_of_neighbouring_groups_are_uncorrelated(sample: Any) -> None:
    """All pairs of a position of one group and a position of the next, of values and of squares."""
    for z in (sample, (sample * sample - 1) / math.sqrt(2)):
        groups = z.reshape(-1, 128)
        correlations = groups[:-1].T @ groups[1:] / (len(groups) - 1)
        assert np.abs(correlations).max() < 6 / math.sqrt(len(groups) - 1)


def test_streams_of_neighbouring_names_are_uncorrelated(module: ModuleType) -> None:
    """One bit of one byte of the key or of the nonce makes another stream; so does the distance within one."""
    n = 1 << 16
    base = normals(module, n)
    others = [normals(module, n, offset=offset) for offset in (n, 1 << 30, (1 << 35) - n)]
    for i in range(44):
        name = bytearray(KEY + NONCE)
        name[i] ^= 1 << i % 8
        others.append(normals(module, n, bytes(name[:32]), bytes(name[32:])))
    for other in others:
        assert not (base == other).all()
        for power in (1, 2):
            correlation = np.corrcoef(base.astype(np.float64) ** power, other.astype(np.float64) ** power)[
                0, 1
            ]
            assert abs(correlation) < 5 / math.sqrt(n)


def test_tails_hold_as_many_as_they_should(native: ModuleType) -> None:
    """Beyond 3, 4, 4.5 and 5 σ, on either side, of 134 million; and none beyond what 64 bits can give."""
    step, steps = 1 << 22, 32
    limits = (3.0, 4.0, 4.5, 5.0)
    counts = np.zeros((2, len(limits)))
    largest = 0.0
    for i in range(steps):
        z = normals(native, step, offset=i * step)
        far = z[np.abs(z) > limits[0]]
        counts += [[np.count_nonzero(side > limit) for limit in limits] for side in (far, -far)]
        largest = max(largest, float(np.abs(far).max()))
    for side in counts:
        for limit, count in zip(limits, side, strict=True):
            expected = step * steps * above(limit)
            assert abs(count - expected) < 5 * math.sqrt(expected), limit
    assert 5.0 < largest < 9.5


def integers(module: ModuleType, n: int, scale: float, frac_bits: int) -> Any:
    """The noise on an integer sum whose standard deviation is `scale` units of the last place."""
    total = module.Accumulator(n, frac_bits=frac_bits)
    total.add_noise(scale / 2.0**frac_bits, key=KEY, nonce=NONCE)
    return total.totals()


@pytest.mark.parametrize("scale", [1.5, 3.7, 1000.0])
def test_moments_of_noise_on_integers(module: ModuleType, scale: float) -> None:
    """Those of a normal with Sheppard's corrections for the rounding: σ² + 1/12, 3 σ⁴ + σ²/2 + 1/80."""
    n = 1 << 20
    k = integers(module, n, scale, 20).astype(np.float64)
    for power, expected in (
        (1, 0),
        (2, scale**2 + 1 / 12),
        (3, 0),
        (4, 3 * scale**4 + scale**2 / 2 + 1 / 80),
    ):
        values = k**power
        assert abs(values.mean() - expected) < 5 * values.std() / math.sqrt(n)


@pytest.mark.parametrize("scale", [0.4, 3.7])
def test_every_integer_is_as_likely_as_it_should_be(module: ModuleType, scale: float) -> None:
    """The probability of k is that of a normal between k − ½ and k + ½; the ends hold what is beyond."""
    n = 1 << 20
    end = round(3 * scale)
    k = np.clip(integers(module, n, scale, 4), -end, end)
    edges = [0.0, *(NORMAL.cdf((i + 0.5) / scale) for i in range(-end, end)), 1.0]
    assert_filled(np.bincount(k + end, minlength=2 * end + 1), n * np.diff(edges))


def test_tails_of_noise_on_integers(native: ModuleType) -> None:
    """Where noise is wider than the values may be, beyond 2^51, it has the same tails."""
    n, scale = 1 << 23, 2.0**55
    k = integers(native, n, scale, 40)
    for limit in (3.0, 4.0, 4.5):
        expected = n * above(limit)
        for count in (np.count_nonzero(k > limit * scale), np.count_nonzero(k < -limit * scale)):
            assert abs(count - expected) < 5 * math.sqrt(expected)
