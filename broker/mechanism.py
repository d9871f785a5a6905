"""The privacy mechanism of a federation: from its `[privacy]` table to constants that hold for its life."""

from fedmq.fedcore.config import AsyncMode, Config, Privacy, WorkerPrivacy, check_count_noise
from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.privacy.accounting import Spend, epsilon, poisson_noise
from fedmq.fedcore.privacy.adaptive import AdaptiveClipping
from fedmq.fedcore.privacy.mechanisms import Mechanism, RecordLevel, WorkerLevel


def mechanism(config: Config, calibrated: float | None = None) -> Mechanism:
    """The mechanism that every version is made with.

    Parameters
    ----------
    config : Config
        With a `[privacy]` table.
    calibrated : float, optional
        The noise multiplier that this federation was started with. Without it, the table's is checked
        against the budget; where the table has none, it is calibrated, which takes some seconds where records
        are sampled.

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
        return WorkerLevel(
            privacy.clip_norm,
            noise_multiplier,
            config.mode.buffer,
            _adaptive(privacy, noise_multiplier, config.mode.buffer),
        )
    return RecordLevel(
        max_grad_norm=privacy.max_grad_norm,
        noise_multiplier=noise_multiplier,
        sampling_rate=privacy.sampling_rate,
        divisor=privacy.divisor,
        max_batch=privacy.max_batch,
    )


def _adaptive(privacy: WorkerPrivacy, noise_multiplier: float, divisor: float) -> AdaptiveClipping | None:
    table = privacy.adaptive_clip
    if table is None:
        return None
    check_count_noise(table, noise_multiplier, divisor)
    return AdaptiveClipping(quantile=table.quantile, rate=table.rate, count_noise=table.deviation(divisor))


def _calibrated(privacy: Privacy | WorkerPrivacy) -> float:
    rate, steps = _planned(privacy)
    return poisson_noise(epsilon_target=privacy.epsilon, delta=privacy.delta, sampling_rate=rate, steps=steps)


def _configured(privacy: Privacy | WorkerPrivacy) -> float:
    noise_multiplier = privacy.noise_multiplier
    assert noise_multiplier is not None
    key = "privacy.steps" if isinstance(privacy, Privacy) else "privacy.max_participations"
    rate, steps = _planned(privacy)
    cost = epsilon([Spend(noise_multiplier, rate, steps)], privacy.delta)
    if cost > privacy.epsilon:
        raise PrivacyError(
            f"privacy.noise_multiplier is {noise_multiplier:g}: with it {key} = {steps} cost "
            f"epsilon {cost:.3g}, and privacy.epsilon is {privacy.epsilon:g}; raise it, or leave it out "
            "to have it calibrated"
        )
    return noise_multiplier


def _planned(privacy: Privacy | WorkerPrivacy) -> tuple[float, int]:
    """The sampling rate, and how many releases a record, or a worker at its cap, has a part in."""
    if isinstance(privacy, Privacy):
        return privacy.sampling_rate, privacy.steps
    return 1.0, privacy.max_participations
