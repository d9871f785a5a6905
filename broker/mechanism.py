"""The privacy mechanism of a federation: from its `[privacy]` table to constants that hold for its life."""

from fedmq.fedcore.config import (
    AsyncMode,
    Config,
    Correlated,
    Privacy,
    SampledPrivacy,
    WorkerPrivacy,
    check_count_noise,
)
from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.privacy.accounting import Spend, epsilon, poisson_noise
from fedmq.fedcore.privacy.adaptive import AdaptiveClipping
from fedmq.fedcore.privacy.correlated import Bisr, Participation, best_bandwidth
from fedmq.fedcore.privacy.correlated_level import CorrelatedWorkerLevel
from fedmq.fedcore.privacy.mechanisms import Mechanism, RecordLevel, WorkerLevel
from fedmq.fedcore.privacy.sampled_workers import Coin, SampledWorkers


def mechanism(config: Config, calibrated: float | None = None, bandwidth: int | None = None) -> Mechanism:
    """The mechanism that every version is made with.

    Parameters
    ----------
    config : Config
        With a `[privacy]` table.
    calibrated : float, optional
        The noise multiplier that this federation was started with. Without it, the table's is checked
        against the budget; where the table has none, it is calibrated, which takes some seconds where records
        are sampled.
    bandwidth : int, optional
        Likewise p of correlated noise; without it the table's, or the one of least error.

    Raises
    ------
    ConfigError
        When the clip norm is to be adapted, and the count that this takes would cost the whole budget.
    PrivacyError
        When what is planned costs more than the budget, or dp-accounting is needed and not installed.
    """
    privacy = config.privacy
    assert privacy is not None
    noise_multiplier = calibrated
    if noise_multiplier is None:
        noise_multiplier = _configured(privacy) if privacy.noise_multiplier else _calibrated(privacy)
    if isinstance(privacy, WorkerPrivacy):
        assert isinstance(config.mode, AsyncMode)  # the config was checked
        buffer = config.mode.buffer
        if privacy.correlated is not None:
            noise = _correlated(privacy.correlated, privacy.max_participations, noise_multiplier, bandwidth)
            return CorrelatedWorkerLevel(privacy.clip_norm, buffer, noise)
        adaptive = _adaptive(privacy, noise_multiplier, buffer)
        return WorkerLevel(privacy.clip_norm, noise_multiplier, buffer, adaptive)
    if isinstance(privacy, SampledPrivacy):
        adaptive = _adaptive(privacy, noise_multiplier, privacy.divisor)
        return SampledWorkers(
            privacy.clip_norm, noise_multiplier, privacy.sampling_rate, privacy.divisor, adaptive
        )
    return RecordLevel(
        max_grad_norm=privacy.max_grad_norm,
        noise_multiplier=noise_multiplier,
        sampling_rate=privacy.sampling_rate,
        divisor=privacy.divisor,
        max_batch=privacy.max_batch,
    )


def left_by_first(private: Mechanism | None) -> float | None:
    """The clip norm of updates that are folded onto version 0, where it is adapted."""
    return private.clip.left_by_first if isinstance(private, WorkerLevel | SampledWorkers) else None


def _adaptive(
    privacy: WorkerPrivacy | SampledPrivacy, noise_multiplier: float, divisor: float
) -> AdaptiveClipping | None:
    table = privacy.adaptive_clip
    if table is None:
        return None
    check_count_noise(table, noise_multiplier, divisor)
    return AdaptiveClipping(quantile=table.quantile, rate=table.rate, count_noise=table.deviation(divisor))


def _correlated(table: Correlated, most: int, noise_multiplier: float, bandwidth: int | None) -> Bisr:
    pattern = Participation(versions=table.versions, most=most, separation=table.min_separation)
    return Bisr(
        bandwidth=bandwidth or table.bandwidth or best_bandwidth(pattern),
        noise_multiplier=noise_multiplier,
        participation=pattern,
    )


def coin(config: Config, master_key: bytes) -> Coin | None:
    """What decides, in secret, whom a round asks; None where no coin does."""
    privacy = config.privacy
    return Coin(master_key, privacy.sampling_rate) if isinstance(privacy, SampledPrivacy) else None


def _calibrated(privacy: Privacy | WorkerPrivacy | SampledPrivacy) -> float:
    rate, steps = _planned(privacy)
    return poisson_noise(epsilon_target=privacy.epsilon, delta=privacy.delta, sampling_rate=rate, steps=steps)


def _configured(privacy: Privacy | WorkerPrivacy | SampledPrivacy) -> float:
    noise_multiplier = privacy.noise_multiplier
    assert noise_multiplier is not None
    rate, steps = _planned(privacy)
    cost = epsilon([Spend(noise_multiplier, rate, steps)], privacy.delta)
    if cost > privacy.epsilon:
        raise PrivacyError(
            f"privacy.noise_multiplier is {noise_multiplier:g}: with it {_priced(privacy)} cost "
            f"epsilon {cost:.3g}, and privacy.epsilon is {privacy.epsilon:g}; raise it, or leave it out "
            "to have it calibrated"
        )
    return noise_multiplier


def _priced(privacy: Privacy | WorkerPrivacy | SampledPrivacy) -> str:
    """What the budget is for, in the words of the table."""
    if not isinstance(privacy, WorkerPrivacy):
        return f"privacy.steps = {privacy.steps}"
    if privacy.correlated is not None:
        return f"privacy.correlated.versions = {privacy.correlated.versions} together"
    return f"privacy.max_participations = {privacy.max_participations}"


def _planned(privacy: Privacy | WorkerPrivacy | SampledPrivacy) -> tuple[float, int]:
    """The sampling rate, and how many releases a record, or a worker at its cap, has a part in."""
    if not isinstance(privacy, WorkerPrivacy):
        return privacy.sampling_rate, privacy.steps
    if privacy.correlated is not None:
        return 1.0, 1  # all versions are one release, whose sensitivity knows k and b
    return 1.0, privacy.max_participations
