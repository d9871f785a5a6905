"""A clip norm that follows the updates: where it goes, and what it costs."""

import hashlib
import hmac
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore import kernels
from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.privacy.accounting import gaussian_epsilon
from fedmq.fedcore.privacy.adaptive import CLIP_MAX, CLIP_MIN, AdaptiveClipping, centred_count, count_key
from fedmq.fedcore.privacy.mechanisms import NOISE_NONCE, WorkerLevel, frozen_digest
from fedmq.fedcore.privacy.sampled_workers import SampledWorkers

RULE = AdaptiveClipping(quantile=0.5, rate=0.2, count_noise=1.0)
DELTA = 1e-5


def follow(rule: AdaptiveClipping, norms: Sequence[float], clip_norm: float, versions: int) -> float:
    """C after so many versions of the same updates, without noise."""
    for _ in range(versions):
        count = centred_count(norms, clip_norm)
        clip_norm = rule.next_clip_norm(clip_norm, count=count, denominator=len(norms))
    return clip_norm


def test_the_rule_by_hand() -> None:
    """All ten are below 2: C e^(-0.2 · 0.5); all above: C e^(0.2 · 0.5); half of them: C stays."""
    below, above, half = [1.0] * 10, [3.0] * 10, [1.0] * 5 + [3.0] * 5
    assert follow(RULE, below, 2.0, 1) == pytest.approx(2 * 0.9048374180359595, rel=1e-15)
    assert follow(RULE, above, 2.0, 1) == pytest.approx(2 * 1.1051709180756477, rel=1e-15)
    assert follow(RULE, half, 2.0, 1) == 2.0
    assert follow(RULE, below, 2.0, 3) == pytest.approx(2 * math.exp(-0.3), rel=1e-14)
    assert centred_count([2.0], 2.0) == 0.5  # b = 1 of an update that is just as long


@pytest.mark.parametrize("first", [1e-4, 1e4])
@pytest.mark.parametrize(("quantile", "rank"), [(0.5, 10), (0.8, 16), (0.1, 2)])
def test_it_comes_to_rest_at_the_quantile(first: float, quantile: float, rank: int) -> None:
    """Wherever it began: between the neighbours in rank of the norm that a share of γ does not pass."""
    norms = np.sort(np.random.default_rng(5).lognormal(0.0, 1.0, 21))
    rule = AdaptiveClipping(quantile=quantile, rate=0.2, count_noise=1.0)
    found = follow(rule, list(norms), first, 600)
    assert norms[rank - 1] * 0.97 < found < norms[rank + 1] * 1.03


@pytest.mark.parametrize(("count", "end"), [(1e12, CLIP_MIN), (-1e12, CLIP_MAX), (math.inf, CLIP_MIN)])
def test_it_stays_within_its_range(count: float, end: float) -> None:
    """Whatever the noise says, the next sum has a grid."""
    assert RULE.next_clip_norm(1.0, count=count, denominator=1.0) == end


@given(st.floats(-5, 5), st.floats(1e-3, 1e3))
def test_a_step_is_the_exponential_to_the_last_bit_but_one(count: float, clip_norm: float) -> None:
    """The C library's may be off by one; this one is the same on every machine."""
    found = RULE.next_clip_norm(clip_norm, count=count, denominator=10.0)
    assert found == pytest.approx(clip_norm * math.exp(-0.2 * (count / 10.0)), rel=1e-15)


@pytest.mark.parametrize("z", [0.6, 1.0, 1.9])
def test_both_sums_together_cost_what_is_charged(z: float) -> None:
    """ε of the two Gaussians, composed by dp-accounting, is that of one with the multiplier z."""
    import dp_accounting as dp
    from dp_accounting import pld

    rule = AdaptiveClipping(quantile=0.5, rate=0.2, count_noise=1.0)
    accountant = pld.PLDAccountant()
    # The count's sensitivity is ½, so that σ_b = 1 is a multiplier of 2.
    both = [dp.GaussianDpEvent(rule.update_noise(z)), dp.GaussianDpEvent(2 * rule.count_noise)]
    accountant.compose(dp.ComposedDpEvent(both))
    assert accountant.get_epsilon(DELTA) == pytest.approx(gaussian_epsilon(z, DELTA), rel=1e-4)
    assert WorkerLevel(1.0, z, 20, rule).spend.noise_multiplier == z


vector = st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3)


@given(st.lists(vector, min_size=1, max_size=6), st.data())
def test_a_worker_moves_both_by_at_most_its_share(updates: list[list[float]], data: st.DataObject) -> None:
    """‖(Σ w clip(Δ) / z_Δ C, Σ (b − ½) / σ_b)‖ moves by 1/z at most when any one of them counts as zero."""
    clip_norm, z = data.draw(st.floats(0.1, 20)), data.draw(st.floats(0.1, 1.9))
    weights = data.draw(st.lists(st.floats(0, 1), min_size=len(updates), max_size=len(updates)))
    gone = data.draw(st.integers(0, len(updates) - 1))
    with_norms = [float(np.linalg.norm(u)) for u in updates]
    without_norms = [math.nan if i == gone else norm for i, norm in enumerate(with_norms)]
    moved = weights[gone] * min(with_norms[gone], clip_norm) / (RULE.update_noise(z) * clip_norm)
    counts = [centred_count(norms, clip_norm) for norms in (with_norms, without_norms)]
    assert math.hypot(moved, (counts[0] - counts[1]) / RULE.count_noise) <= 1 / z * (1 + 1e-12)


def test_an_update_that_is_not_finite_is_not_counted() -> None:
    """It is a worker that counts as zero: neither below nor above, so that it cannot drive C."""
    assert centred_count([math.nan, math.inf, 0.5], 1.0) == centred_count([0.5], 1.0) == 0.5
    assert centred_count([0.0], 1.0) == 0.5  # one that holds zeros is short


Make = Callable[..., WorkerLevel | SampledWorkers]


def arrivals(clip_norm: float, z: float, rule: AdaptiveClipping | None = None) -> WorkerLevel:
    return WorkerLevel(clip_norm, z, 20, rule)


def coin(clip_norm: float, z: float, rule: AdaptiveClipping | None = None) -> SampledWorkers:
    return SampledWorkers(clip_norm, z, 0.3, 20.0, rule)


both_mechanisms = pytest.mark.parametrize("make", [arrivals, coin])


@both_mechanisms
@pytest.mark.parametrize("z", [2.0, 7.0])
def test_a_count_that_costs_everything_is_refused(z: float, make: Make) -> None:
    """z ≥ 2 σ_b leaves nothing for the updates, however large their noise."""
    with pytest.raises(PrivacyError, match="below twice count_noise, which is 2"):
        make(1.0, z, RULE)


@pytest.mark.parametrize("q", [0.05, 0.5])
def test_a_sample_of_both_sums_costs_what_one_release_of_the_joint_noise_costs(q: float) -> None:
    """δ of the pair, of a worker that a coin took into both sums or into none, integrated over the plane."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    z = 1.2
    charged = from_gaussian_mechanism(coin(1.0, z, RULE).spend.noise_multiplier, sampling_prob=q)
    moved = (
        1 / RULE.update_noise(z),
        0.5 / RULE.count_noise,
    )  # in units of the noise: N(0, I) without the worker
    axis = np.linspace(-8, 8, 801)
    x, y = np.meshgrid(axis, axis)
    density = np.exp(-(x**2 + y**2) / 2) / (2 * math.pi) * (axis[1] - axis[0]) ** 2
    ratio = 1 - q + q * np.exp(moved[0] * x + moved[1] * y - (moved[0] ** 2 + moved[1] ** 2) / 2)
    for epsilon in (0.1, 0.5):
        removed = float((density * np.maximum(ratio - math.exp(epsilon), 0)).sum())
        added = float((density * np.maximum(1 - math.exp(epsilon) * ratio, 0)).sum())
        assert max(removed, added) == pytest.approx(charged.get_delta_for_epsilon(epsilon), rel=5e-3)


@pytest.mark.parametrize(
    "wrong", [{"rate": 0.0}, {"rate": math.inf}, {"count_noise": 0.0}, {"quantile": 1.5}, {"quantile": -0.1}]
)
def test_a_rule_out_of_range_does_not_exist(wrong: dict[str, float]) -> None:
    """A count without noise would be a leak."""
    with pytest.raises(PrivacyError, match="must be"):
        AdaptiveClipping(**{"quantile": 0.5, "rate": 0.2, "count_noise": 1.0} | wrong)


@both_mechanisms
def test_the_first_clip_norm_lies_in_the_range(make: Make) -> None:
    """Where it is constant it may be anything."""
    with pytest.raises(PrivacyError, match="clip_norm must be from 1e-12 to 1e"):
        make(1e13, 1.0, RULE)
    assert make(1e13, 1.0).clip_norm == 1e13


@both_mechanisms
def test_a_version_is_made_with_the_clip_norm_that_the_one_before_left(make: Make) -> None:
    """σ = z_Δ C, the bound C; what is charged and the divisor do not move."""
    workers = make(1.0, 1.2, RULE)
    used = workers.onto(3.0)
    assert (used.max_update_norm, used.sigma) == (3.0, RULE.update_noise(1.2) * 3.0)
    assert (used.spend, used.denominator, used.clip.left_by_first) == (workers.spend, 20.0, 3.0)
    assert RULE.update_noise(1.2) == pytest.approx((1.2**-2 - 2.0**-2) ** -0.5, rel=1e-14)
    constant = make(1.0, 1.2)
    assert constant.onto(None) == constant
    for mechanism, left in ((constant, 3.0), (workers, None)):
        with pytest.raises(PrivacyError, match="the version before left"):
            mechanism.onto(left)


def test_the_counts_noise_is_gaussian_and_follows_from_the_versions_key() -> None:
    """N(0, σ_b²) over many keys; the same number for the same key, in both backends."""
    rule = AdaptiveClipping(quantile=0.5, rate=0.2, count_noise=2.0)
    keys = [i.to_bytes(32, "little") for i in range(4000)]
    noise = np.array([rule.noisy(3.5, key) for key in keys]) - 3.5
    assert abs(noise.mean()) < 4 * 2.0 / 4000**0.5
    assert noise.std() == pytest.approx(2.0, rel=0.05)
    assert 0.035 < (abs(noise) > 4.0).mean() < 0.057  # beyond two standard deviations
    with kernels.use("python"):
        assert [rule.noisy(3.5, key) - 3.5 for key in keys[:50]] == noise[:50].tolist()


def test_the_counts_stream_is_not_the_updates() -> None:
    """HKDF-Expand of the version's key under a label of its own."""
    key = bytes(range(32))
    assert count_key(key) == hmac.new(key, b"fedmq count 1" + b"\x01", hashlib.sha256).digest()
    total = kernels.Accumulator(1, frac_bits=20)
    total.add_noise(1.0, key=key, nonce=NOISE_NONCE)
    assert RULE.noisy(0.0, key) != math.ldexp(int(total.totals()[0]), -20)


def test_what_the_count_is_made_with_is_in_the_digest() -> None:
    """Another C, or another σ_b, is another release: other noise. Without a count it is as it ever was."""
    rows = [(b"task", b"payload")]
    digests = {
        frozen_digest(rows, frac_bits=40, sigma=2.0, counted=counted)
        for counted in (None, (1.0, 2.0), (1.5, 2.0), (1.0, 2.5))
    }
    assert len(digests) == 4
    was = hashlib.sha256(b"fedmq frozen 1" + bytes.fromhex("28000000000000000000000000000040"))
    assert frozen_digest([], frac_bits=40, sigma=2.0) == was.digest()
