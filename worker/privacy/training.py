"""The loop: from a task and a model's per-example gradients to a fit that keeps a promise.

Rules that hold here:

* With `LocalPrivacy` the whole task is committed to the ledger first. Then, step by step: coins, clipped sum, noise,
  division by the constant, w ← w − lr · g. An empty batch is a step like any other: noise over the divisor.
* With `GradientSum` the fit has the sign of a step, trained − base = −Σ clip(g), in float64, so that subtracting the
  base again gives the sum back and not its rounding.
* A fit says nothing else: no metrics, and not how many records there were.
* Keys come from the operating system; tests put in their own.
"""

import logging
import math
import os
from collections.abc import Callable

import numpy as np

from fedmq.fedcore.apps import Fit, TaskContext, Weights
from fedmq.fedcore.errors import ClientAppError
from fedmq.fedcore.layout import Flat
from fedmq.fedcore.privacy.mechanisms import NOISE_NONCE

from .gradients import Gradients, clipped_sum
from .ledger import Ledger, secret, state_of
from .plan import GradientSum, LocalPrivacy
from .sampling import KEY_BYTES, poisson_sample, sum_key

__all__ = ["PrivateTraining", "noisy_mean"]

log = logging.getLogger("fedmq.worker")


class PrivateTraining:
    """Trains under one promise.

    Parameters
    ----------
    privacy : LocalPrivacy or GradientSum
        The promise. Noise that has to be calibrated is calibrated here, which takes seconds.
    lr : float
        The rate of a local step; ``task.config["lr"]`` overrides it. A gradient sum has none.
    random : callable
        ``random(n)`` gives n secret bytes.

    Raises
    ------
    PrivacyError
        When the promise cannot be kept; see `LocalPrivacy.calibrated`.
    """

    def __init__(
        self,
        privacy: LocalPrivacy | GradientSum,
        *,
        lr: float = 0.1,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.privacy = privacy.calibrated() if isinstance(privacy, LocalPrivacy) else privacy
        self._lr = lr
        self._random = random

    def fit(self, model: Gradients, weights: Weights, task: TaskContext) -> Fit:
        """Train from `weights`, or sum one sample's gradients at them.

        Raises
        ------
        BudgetExhausted
            When the steps of this task would pass the cap.
        PrivacyError
            When the worker has no state folder.
        StateError
            When the ledger cannot be read or written.
        TaskCancelled
            Between two steps. What was committed stays spent.
        """
        flat = model.trained.flatten(weights)
        if isinstance(self.privacy, GradientSum):
            total = self._sum(model, flat, task, self.privacy)
            return Fit(model.trained.unflatten(flat.astype(np.float64) - total, weights), 1)
        lr = _rate(task.config.get("lr", self._lr))
        Ledger(state_of(task)).commit(self.privacy)
        for _ in range(self.privacy.steps_per_task):
            task.check_cancelled()
            flat -= np.float32(lr) * noisy_mean(model, flat, self.privacy, random=self._random)
        return Fit(model.trained.unflatten(flat, weights), self.privacy.records)

    @staticmethod
    def _sum(model: Gradients, flat: Flat, task: TaskContext, privacy: GradientSum) -> Flat:
        max_grad_norm, sampling_rate = privacy.of(task.config)
        key = sum_key(secret(state_of(task)), task.version, flat)
        sample = poisson_sample(key, model.records, sampling_rate)
        sums, left_out = clipped_sum(model.rows(flat, sample), flat.size, max_grad_norm=max_grad_norm)
        _report(left_out)
        return sums.mean(1.0)


def noisy_mean(
    model: Gradients, flat: Flat, plan: LocalPrivacy, *, random: Callable[[int], bytes] = os.urandom
) -> Flat:
    """One step's gradient: what the accountant charges for.

    Parameters
    ----------
    model : Gradients
        The records.
    flat : ndarray of float32, shape (n,)
        Where the gradients are taken.
    plan : LocalPrivacy
        Calibrated.
    random : callable
        ``random(n)`` gives n secret bytes.

    Returns
    -------
    ndarray of float32, shape (n,)
        ( Σ clip_S(g_i) + N(0, (z S)² I) ) / D over a Poisson sample.
    """
    sample = poisson_sample(random(KEY_BYTES), model.records, plan.sampling_rate)
    sums, left_out = clipped_sum(
        model.rows(flat, sample), flat.size, max_grad_norm=plan.max_grad_norm, sigma=plan.sigma
    )
    _report(left_out)
    sums.add_noise(plan.sigma, key=random(KEY_BYTES), nonce=NOISE_NONCE)
    return sums.mean(plan.divisor)


def _report(left_out: int) -> None:
    """In the worker's own log, which holds what it may know of its data; never in a message."""
    if left_out:
        log.warning("gradients that are not finite count as zero", extra={"records": left_out})


def _rate(lr: object) -> float:
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < math.inf:
        raise ClientAppError(f"lr must be a positive number, got {lr!r}")
    return float(lr)
