"""Server optimizers as one pass over a model, the same bits on every machine: the definition.

Rules
-----
- Parameters, state and delta are float32. They are widened to float64, all arithmetic is float64 in the order
  that the formulas are written in, and parameters and state are rounded to float32 once, when stored: a step
  uses the new state before it is rounded.
- ``1 − β`` is computed once, in float64. A product of a number and a sum is not expanded; there is no fused
  multiply-add.
- The delta d points where the model shall go (trained − base): steps are added.
- The delta is finite: it comes from an exact sum. A NaN would stay in the state for ever.

References
----------
.. [1] S. Reddi et al., "Adaptive Federated Optimization", arXiv:2003.00295.
.. [2] T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the effects of non-identical data distribution for federated
   visual classification" (FedAvgM), arXiv:1909.06335.
.. [3] Y. Wang et al., "FADAS: Towards federated adaptive asynchronous optimization", arXiv:2407.18365.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from . import reference_checks as checks

__all__ = ["adagrad_", "adam_", "fadas_", "momentum_", "sgd_", "yogi_"]

_TILE: Final = 16 * 1024

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def _tiles(n: int) -> Iterator[slice]:
    for start in range(0, n, _TILE):
        yield slice(start, min(start + _TILE, n))


def _arrays(params: F32, delta: F32, threads: int | None, **state: F32) -> tuple[F32, ...]:
    """Checked and flat: params, the state in its order, delta."""
    flat = checks.writable_f32("params", params)
    rest = [checks.writable_f32(name, array, flat.size) for name, array in state.items()]
    checks.threads(threads)
    d = checks.readable_f32("delta", delta, flat.size)
    checks.disjoint(params=flat, **dict(zip(state, rest, strict=True)), delta=d)
    return flat, *rest, d


def sgd_(params: F32, delta: F32, *, lr: float, threads: int | None = None) -> None:
    """w = w + lr · d, in place. FedAvg and FedBuff with a server learning rate.

    Parameters
    ----------
    params : ndarray of float32, any shape, C-contiguous and writable
        The model w, changed in place.
    delta : ndarray of float32, as many elements
        The combined update d.
    lr : float
        Server learning rate, finite and 0 or more.
    threads : int, optional
        Accepted for the native twin; the bits do not depend on it.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. Nothing is then changed.
    """
    lr = checks.nonnegative("lr", lr)
    w, d = _arrays(params, delta, threads)
    with np.errstate(all="ignore"):
        for at in _tiles(w.size):
            w[at] = w[at].astype(np.float64) + lr * d[at].astype(np.float64)


def momentum_(
    params: F32, velocity: F32, delta: F32, *, lr: float, beta: float = 0.9, threads: int | None = None
) -> None:
    """v = β · v + d; w = w + lr · v, in place. FedAvgM.

    Parameters
    ----------
    params, delta, lr, threads
        As for `sgd_`.
    velocity : ndarray of float32, as many elements, writable
        The state v, zeros before the first step.
    beta : float
        β, in [0, 1).

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. Nothing is then changed.
    """
    lr, beta = checks.nonnegative("lr", lr), checks.fraction("beta", beta)
    w, state, d = _arrays(params, delta, threads, velocity=velocity)
    with np.errstate(all="ignore"):
        for at in _tiles(w.size):
            v = beta * state[at].astype(np.float64) + d[at].astype(np.float64)
            w[at] = w[at].astype(np.float64) + lr * v
            state[at] = v


def adagrad_(
    params: F32, v: F32, delta: F32, *, lr: float, eps: float = 1e-3, threads: int | None = None
) -> None:
    """v = v + d · d; w = w + (lr · d) / (√v + ε), in place.

    Parameters
    ----------
    params, delta, lr, threads
        As for `sgd_`.
    v : ndarray of float32, as many elements, writable
        The state, zeros before the first step.
    eps : float
        ε, finite and above 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. Nothing is then changed.
    """
    lr, eps = checks.nonnegative("lr", lr), checks.positive("eps", eps)
    w, state, d_all = _arrays(params, delta, threads, v=v)
    with np.errstate(all="ignore"):
        for at in _tiles(w.size):
            d = d_all[at].astype(np.float64)
            second = state[at].astype(np.float64) + d * d
            w[at] = w[at].astype(np.float64) + (lr * d) / (np.sqrt(second) + eps)
            state[at] = second


def adam_(
    params: F32,
    m: F32,
    v: F32,
    delta: F32,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-3,
    threads: int | None = None,
) -> None:
    """m = β1 · m + (1 − β1) · d; v = β2 · v + (1 − β2) · (d · d); w = w + (lr · m) / (√v + ε), in place.

    There is no bias correction here; a caller that wants it passes lr · √(1 − β2^t) / (1 − β1^t) as `lr`.

    Parameters
    ----------
    params, delta, lr, threads
        As for `sgd_`.
    m, v : ndarray of float32, as many elements, writable
        The state, zeros before the first step.
    beta1, beta2 : float
        In [0, 1).
    eps : float
        ε, finite and above 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. Nothing is then changed.
    """
    lr, eps = checks.nonnegative("lr", lr), checks.positive("eps", eps)
    beta1, beta2 = checks.fraction("beta1", beta1), checks.fraction("beta2", beta2)
    w, m_all, v_all, d_all = _arrays(params, delta, threads, m=m, v=v)
    with np.errstate(all="ignore"):
        for at in _tiles(w.size):
            d = d_all[at].astype(np.float64)
            first = _decayed(m_all[at], beta1, d)
            second = _decayed(v_all[at], beta2, d * d)
            w[at] = w[at].astype(np.float64) + (lr * first) / (np.sqrt(second) + eps)
            m_all[at] = first
            v_all[at] = second


def yogi_(
    params: F32,
    m: F32,
    v: F32,
    delta: F32,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-3,
    threads: int | None = None,
) -> None:
    """m as in `adam_`; v = v − ((1 − β2) · (d · d)) · sign(v − d · d); w = w + (lr · m) / (√v + ε), in place.

    sign is −1, 0 or 1. Parameters and errors as for `adam_`.
    """
    lr, eps = checks.nonnegative("lr", lr), checks.positive("eps", eps)
    beta1, beta2 = checks.fraction("beta1", beta1), checks.fraction("beta2", beta2)
    w, m_all, v_all, d_all = _arrays(params, delta, threads, m=m, v=v)
    with np.errstate(all="ignore"):
        for at in _tiles(w.size):
            d = d_all[at].astype(np.float64)
            first = _decayed(m_all[at], beta1, d)
            square = d * d
            second = v_all[at].astype(np.float64)
            second -= ((1.0 - beta2) * square) * np.sign(second - square)
            w[at] = w[at].astype(np.float64) + (lr * first) / (np.sqrt(second) + eps)
            m_all[at] = first
            v_all[at] = second


def fadas_(
    params: F32,
    m: F32,
    v: F32,
    vhat: F32,
    delta: F32,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-3,
    threads: int | None = None,
) -> None:
    """m, v as in `adam_`; v̂ = v if v > v̂ else v̂; w = w + (lr · m) / (√v̂ + ε), in place.

    FADAS is AMSGrad whose `lr` the caller lowers to min(lr, 1 / τ_max) where updates are late. Parameters and
    errors as for `adam_`; `vhat` is a third state, zeros before the first step.
    """
    lr, eps = checks.nonnegative("lr", lr), checks.positive("eps", eps)
    beta1, beta2 = checks.fraction("beta1", beta1), checks.fraction("beta2", beta2)
    w, m_all, v_all, vhat_all, d_all = _arrays(params, delta, threads, m=m, v=v, vhat=vhat)
    with np.errstate(all="ignore"):
        for at in _tiles(w.size):
            d = d_all[at].astype(np.float64)
            first = _decayed(m_all[at], beta1, d)
            second = _decayed(v_all[at], beta2, d * d)
            largest = vhat_all[at].astype(np.float64)
            largest = np.where(second > largest, second, largest)
            w[at] = w[at].astype(np.float64) + (lr * first) / (np.sqrt(largest) + eps)
            m_all[at] = first
            v_all[at] = second
            vhat_all[at] = largest


def _decayed(state: F32, beta: float, new: F64) -> F64:
    """β · state + (1 − β) · new."""
    return beta * state.astype(np.float64) + (1.0 - beta) * new
