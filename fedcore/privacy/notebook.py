"""Clip a torch model's gradients and add calibrated noise, in a loop of one's own.

For notebooks and for loops that fedmq does not run. The noise is calibrated for **one release**: one call of
`DifferentialPrivacy.add_noise`. Who calls it again and again composes releases and must account for them
(`fedmq.fedcore.privacy.accounting`).

Rules that hold here:

* All gradients of a model are one vector: their joint norm is clipped, 0-d parameters included.
* Every parameter that wants a gradient gets noise, also where backward left none: who got noise must not depend
  on data.
* A gradient with NaN or Inf is refused before anything is written. NaN passes a clip unnoticed.
* Noise is ChaCha20, keyed by the operating system anew for every release.
* torch is imported by the caller; here only when something is called.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..errors import PrivacyError
from .accounting import gaussian_noise

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["DifferentialPrivacy"]


class DifferentialPrivacy:
    """The Gaussian mechanism on a model's gradients, calibrated for one release.

    Whose privacy that is depends on what the gradient is of: where it comes from one record, or is clipped before
    it is summed over records, it is a record's; where it comes from one worker's whole data, it is the worker's.
    The gradient of a *batch*, clipped as a whole, hides the batch being there or not.

    Parameters
    ----------
    epsilon, delta : float
        The budget of one release; ε > 0, δ in (0, 1).
    max_grad_norm : float
        S > 0: the norm to which gradients are clipped, and the sensitivity that the noise is scaled with.

    Attributes
    ----------
    noise_multiplier : float
        The smallest z with which one release costs at most (ε, δ), by the analytic Gaussian mechanism.

    Raises
    ------
    PrivacyError
        When a value is out of range.

    References
    ----------
    Balle & Wang, *Improving the Gaussian Mechanism for Differential Privacy*, arXiv:1805.06530.

    Examples
    --------
    >>> privacy = DifferentialPrivacy(epsilon=3.0, delta=1e-5, max_grad_norm=1.0)
    >>> privacy
    DifferentialPrivacy(epsilon=3.0, delta=1e-05, max_grad_norm=1.0): noise_multiplier 1.391 for one release
    """

    def __init__(self, epsilon: float, delta: float, max_grad_norm: float) -> None:
        if not 0 < max_grad_norm < math.inf:
            raise PrivacyError(f"max_grad_norm must be positive and finite, got {max_grad_norm}")
        self.epsilon = epsilon
        self.delta = delta
        self.max_grad_norm = max_grad_norm
        self.noise_multiplier = gaussian_noise(epsilon, delta)

    def __repr__(self) -> str:
        return (
            f"DifferentialPrivacy(epsilon={self.epsilon}, delta={self.delta}, max_grad_norm={self.max_grad_norm}): "
            f"noise_multiplier {self.noise_multiplier:.4g} for one release"
        )

    def clip_gradients(self, model: nn.Module) -> float:
        """Scale all gradients of `model` together so that their joint norm is at most `max_grad_norm`.

        Parameters
        ----------
        model : torch.nn.Module
            After ``backward()``. Its gradients are changed in place.

        Returns
        -------
        float
            The norm before.

        Raises
        ------
        PrivacyError
            When there is no gradient, or one holds NaN or Inf. Nothing is then changed.
        """
        gradients = [p.grad for p in _trained(model) if p.grad is not None]
        if not gradients:
            raise PrivacyError("the model has no gradients to clip; call backward() first")
        flat = _flat(gradients)
        norm = kernels.clip_(flat, self.max_grad_norm)
        if norm > self.max_grad_norm:
            _write(flat, gradients)
        return norm

    def add_noise(self, model: nn.Module, noise_scale: float | None = None) -> float:
        """Add Gaussian noise to the gradients of `model`; clip them first.

        Parameters
        ----------
        model : torch.nn.Module
            Its gradients are changed in place; a parameter without one counts as having zeros.
        noise_scale : float, optional
            The noise multiplier z ≥ 0: the noise's standard deviation is ``noise_scale * max_grad_norm``. When it
            is left out, `noise_multiplier`, which makes this one release (ε, δ)-private.

        Returns
        -------
        float
            The standard deviation.

        Raises
        ------
        PrivacyError
            When `noise_scale` is negative or not finite, a gradient holds NaN or Inf, or there is nothing to
            train. Nothing is then changed.
        """
        scale = self.noise_multiplier if noise_scale is None else noise_scale
        if not 0 <= scale < math.inf:
            raise PrivacyError(f"noise_scale must be finite and ≥ 0, got {noise_scale}")
        parameters = list(_trained(model))
        if not parameters:
            raise PrivacyError("the model has no parameter that wants a gradient")
        sigma = scale * self.max_grad_norm
        flat = _flat([_gradient(parameter) for parameter in parameters])
        kernels.add_gaussian_(flat, sigma, key=os.urandom(32), nonce=bytes(12))
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = _gradient(parameter)
        _write(flat, [_gradient(parameter) for parameter in parameters])
        return sigma


def _trained(model: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    import torch

    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _flat(gradients: list[torch.Tensor]) -> NDArray[np.float32]:
    """All gradients as one new float32 vector."""
    import torch

    parts = [gradient.detach().reshape(-1).to("cpu", torch.float32) for gradient in gradients]
    flat: NDArray[np.float32] = torch.cat(parts).numpy()
    if not math.isfinite(kernels.sum_squares(flat)):
        raise PrivacyError(
            "a gradient holds NaN or Inf; it cannot be clipped, so that no privacy could be promised"
        )
    return flat


def _write(flat: NDArray[np.float32], gradients: list[torch.Tensor]) -> None:
    import torch

    with torch.no_grad():
        sizes = [gradient.numel() for gradient in gradients]
        for part, gradient in zip(torch.from_numpy(flat).split(sizes), gradients, strict=True):
            gradient.copy_(part.view(gradient.shape))
