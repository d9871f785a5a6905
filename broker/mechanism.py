"""The privacy mechanism of a federation: from its `[privacy]` table to constants that hold for its life."""

from fedmq.fedcore.config import Privacy
from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.privacy.accounting import Spend, epsilon, poisson_noise
from fedmq.fedcore.privacy.mechanisms import RecordLevel


def mechanism(privacy: Privacy, calibrated: float | None = None) -> RecordLevel:
    """The mechanism that every version is made with.

    Parameters
    ----------
    privacy : Privacy
        The table.
    calibrated : float, optional
        The noise multiplier that this federation was started with. Without it, the table's is checked
        against the budget; where the table has none, it is calibrated, which takes some seconds.

    Raises
    ------
    PrivacyError
        When the planned steps cost more than the budget, or dp-accounting is needed and not installed.
    """
    noise_multiplier = calibrated
    if noise_multiplier is None:
        noise_multiplier = _configured(privacy) if privacy.noise_multiplier else _calibrated(privacy)
    return RecordLevel(
        max_grad_norm=privacy.max_grad_norm,
        noise_multiplier=noise_multiplier,
        sampling_rate=privacy.sampling_rate,
        divisor=privacy.divisor,
        max_batch=privacy.max_batch,
    )


def _calibrated(privacy: Privacy) -> float:
    return poisson_noise(
        epsilon_target=privacy.epsilon,
        delta=privacy.delta,
        sampling_rate=privacy.sampling_rate,
        steps=privacy.steps,
    )


def _configured(privacy: Privacy) -> float:
    noise_multiplier = privacy.noise_multiplier
    assert noise_multiplier is not None
    cost = epsilon([Spend(noise_multiplier, privacy.sampling_rate, privacy.steps)], privacy.delta)
    if cost > privacy.epsilon:
        raise PrivacyError(
            f"privacy.noise_multiplier is {noise_multiplier:g}: with it privacy.steps = {privacy.steps} cost "
            f"epsilon {cost:.3g}, and privacy.epsilon is {privacy.epsilon:g}; raise it, or leave it out "
            "to have it calibrated"
        )
    return noise_multiplier
