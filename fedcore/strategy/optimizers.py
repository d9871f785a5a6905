"""The server optimizers: what turns a combined update d into a step of the model.

Each is a kernel (`fedmq.fedcore.kernels`), the names of the state vectors that it keeps, and its rate. The
formulas stand with the kernels; here is what surrounds them:

* State is float32 vectors as long as the model, zeros before the first step. Whoever drives the optimizer keeps
  them, durably, and may apply it tile by tile: every kernel is elementwise.
* What depends on the whole step (bias correction, how late the updates were) enters through the rate alone, so
  that the tiles of one step agree.

FedAsync is the exception: it needs neither state nor kernel, but the model that its update was trained from
(`Mixing`).

References
----------
Reddi et al., *Adaptive Federated Optimization*, arXiv:2003.00295; Hsu et al. (FedAvgM), arXiv:1909.06335;
Wang et al. (FADAS), arXiv:2407.18365; Xie et al. (FedAsync), arXiv:1903.03934.
"""

import math
from collections.abc import Callable, Sequence
from typing import assert_never, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from .. import config, kernels

__all__ = ["Mixing", "ServerOptimizer", "make"]

Flat = NDArray[np.float32]

_PIECE = 16 * 1024
"""Elements that `Mixing` has in float64 at a time."""


class ServerOptimizer(msgspec.Struct, frozen=True):
    """One optimizer with its hyperparameters; make it with `make`.

    Parameters
    ----------
    kernel : str
        The name of its function in `fedmq.fedcore.kernels`.
    slots : tuple of str
        Names of its state vectors, in the order in which the kernel takes them.
    rate : callable
        ``rate(step, tau_max)``: the learning rate of a step, counted from 1, whose stalest update missed
        `tau_max` versions.
    hyper : dict of str to float
        The kernel's other keyword arguments.
    """

    kernel: str
    slots: tuple[str, ...]
    rate: Callable[[int, int], float]
    hyper: dict[str, float] = {}

    def init(self, n: int) -> tuple[Flat, ...]:
        """The state of a model of `n` elements before its first step: zeros."""
        return tuple(np.zeros(n, np.float32) for _ in self.slots)

    def apply(
        self,
        params: Flat,
        state: Sequence[Flat],
        delta: Flat,
        *,
        step: int,
        tau_max: int = 0,
        threads: int | None = None,
    ) -> None:
        """Take one step in place, on a whole model or on the same tile of everything.

        Parameters
        ----------
        params : float32[n]
            The model, changed in place.
        state : sequence of float32[n]
            One for each of `slots`, changed in place.
        delta : float32[n]
            The combined update.
        step : int
            The number of this step, from 1; the version that it makes.
        tau_max : int
            The staleness of the stalest update in it.
        threads : int, optional
            For the kernel; the bits do not depend on it.

        Raises
        ------
        ValueError
            When the number or the lengths of the vectors do not fit.
        """
        if len(state) != len(self.slots):
            raise ValueError(f"{self.kernel} keeps {len(self.slots)} state vectors, got {len(state)}")
        function = getattr(kernels, self.kernel)
        function(params, *state, delta, lr=self.rate(step, tau_max), threads=threads, **self.hyper)


class Mixing(msgspec.Struct, frozen=True):
    """FedAsync: w ← (1 − α s) w + α s x, where x = b + Δ is what a worker trained from its base b.

    It is computed as w + α (s Δ + s (b − w)): s Δ is the combined update, of an exact sum like any other, and what
    b − w adds is zero for a fresh update. In float64, elementwise, rounded to float32 once; numpy for both backends
    of the kernels, so that they give the same bits.

    Parameters
    ----------
    alpha : float
        α in (0, 1].

    Examples
    --------
    >>> w, base, d = (np.full(1, value, np.float32) for value in (4.0, 2.0, 0.5))
    >>> Mixing(0.5).apply(w, d, base, share=0.5)  # x = 3, and a quarter of the way from 4 to it
    >>> w.tolist()
    [3.75]
    """

    alpha: float

    @property
    def slots(self) -> tuple[str, ...]:
        """It keeps no state."""
        return ()

    def apply(self, params: Flat, delta: Flat, base: Flat, *, share: float) -> None:
        """Mix one update in, in place, on a whole model or on the same tile of everything.

        Parameters
        ----------
        params : float32[n]
            The model w, changed in place.
        delta : float32[n]
            The combined update, s Δ.
        base : float32[n]
            The model b that the update was trained from.
        share : float
            s, the update's weight over the denominator.
        """
        with np.errstate(over="ignore"):
            for start in range(0, len(params), _PIECE):
                at = slice(start, start + _PIECE)
                w = params[at].astype(np.float64)
                step = base[at].astype(np.float64)
                step -= w
                step *= share
                step += delta[at]
                step *= self.alpha
                w += step
                params[at] = w


_Moved = config.Sgd | config.Momentum | config.Adagrad | config.Adam | config.Yogi | config.Fadas
"""What moves the model by the combined update alone."""


@overload
def make(table: _Moved) -> ServerOptimizer: ...
@overload
def make(table: config.FedAsync) -> Mixing: ...
def make(table: config.Optimizer) -> ServerOptimizer | Mixing:
    """The optimizer that the ``[optimizer]`` table describes.

    Examples
    --------
    >>> optimizer = make(config.Momentum(lr=0.5, beta=0.9))
    >>> params, state = np.zeros(2, np.float32), optimizer.init(2)
    >>> optimizer.apply(params, state, np.ones(2, np.float32), step=1)
    >>> optimizer.slots, params.tolist()
    (('velocity',), [0.5, 0.5])
    """
    match table:
        case config.FedAsync():
            return Mixing(table.alpha)
        case config.Sgd(lr=lr):
            return ServerOptimizer("sgd_", (), _constant(lr))
        case config.Momentum(lr=lr):
            return ServerOptimizer("momentum_", ("velocity",), _constant(lr), {"beta": table.beta})
        case config.Adagrad(lr=lr):
            return ServerOptimizer("adagrad_", ("v",), _constant(lr), {"eps": table.eps})
        case config.Adam(lr=lr) | config.Yogi(lr=lr):
            rate = _corrected(lr, table.beta1, table.beta2) if table.bias_correction else _constant(lr)
            return ServerOptimizer(f"{table.kind}_", ("m", "v"), rate, _moments(table))
        case config.Fadas(lr=lr):
            rate = _delayed(lr, table.delay_threshold)
            return ServerOptimizer("fadas_", ("m", "v", "vhat"), rate, _moments(table))
        case _:
            assert_never(table)


def _moments(table: config.Adam | config.Yogi | config.Fadas) -> dict[str, float]:
    return {"beta1": table.beta1, "beta2": table.beta2, "eps": table.eps}


def _constant(lr: float) -> Callable[[int, int], float]:
    return lambda step, tau_max: lr


def _corrected(lr: float, beta1: float, beta2: float) -> Callable[[int, int], float]:
    """η √(1 − β2^t) / (1 − β1^t): Adam's bias correction (Kingma & Ba, arXiv:1412.6980, section 2)."""
    return lambda step, tau_max: lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)


def _delayed(lr: float, threshold: int) -> Callable[[int, int], float]:
    """η while τ_max ≤ τ_c, then min(η, 1/τ_max)."""
    return lambda step, tau_max: lr if tau_max <= threshold else min(lr, 1 / tau_max)
