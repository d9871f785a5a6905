"""The privacy mechanism of a federation: from its `[privacy]` table to constants that hold for its life."""

import math

from fedmq.fedcore.config import AsyncMode, Config, Privacy, WorkerPrivacy
from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.privacy.accounting import Spend, epsilon, gaussian_noise, poisson_noise
from fedmq.fedcore.privacy.mechanisms import Mechanism, RecordLevel, WorkerLevel

DIGITS = 4
"""A noise multiplier that is calibrated here has so many significant digits, rounded up."""


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
        return WorkerLevel(privacy.clip_norm, noise_multiplier, config.mode.buffer)
    return RecordLevel(
        max_grad_norm=privacy.max_grad_norm,
        noise_multiplier=noise_multiplier,
        sampling_rate=privacy.sampling_rate,
        divisor=privacy.divisor,
        max_batch=privacy.max_batch,
    )


def _calibrated(privacy: Privacy | WorkerPrivacy) -> float:
    if isinstance(privacy, WorkerPrivacy):
        # k releases with z are one with z / √k.
        z = gaussian_noise(privacy.epsilon, privacy.delta) * math.sqrt(privacy.max_participations)
        scale = 10.0 ** (DIGITS - 1 - math.floor(math.log10(z)))
        return math.ceil(z * scale) / scale
    return poisson_noise(
        epsilon_target=privacy.epsilon,
        delta=privacy.delta,
        sampling_rate=privacy.sampling_rate,
        steps=privacy.steps,
    )


def _configured(privacy: Privacy | WorkerPrivacy) -> float:
    noise_multiplier = privacy.noise_multiplier
    assert noise_multiplier is not None
    if isinstance(privacy, WorkerPrivacy):
        key, planned = "privacy.max_participations", Spend(noise_multiplier, 1.0, privacy.max_participations)
    else:
        key, planned = "privacy.steps", Spend(noise_multiplier, privacy.sampling_rate, privacy.steps)
    cost = epsilon([planned], privacy.delta)
    if cost > privacy.epsilon:
        raise PrivacyError(
            f"privacy.noise_multiplier is {noise_multiplier:g}: with it {key} = {planned.steps} cost "
            f"epsilon {cost:.3g}, and privacy.epsilon is {privacy.epsilon:g}; raise it, or leave it out "
            "to have it calibrated"
        )
    return noise_multiplier
