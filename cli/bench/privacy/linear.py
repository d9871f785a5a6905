"""Softmax regression on one flat vector, with the clipped gradient sum that private training is made of.

The gradient of one example is an outer product, (x, 1) δᵀ with δ = softmax(logits) − onehot(y), so that its norm is
‖δ‖ √(‖x‖² + 1). To clip it is to scale δ: a sum of clipped gradients costs no more than a plain one, and no example's
gradient is ever held (Goodfellow, arXiv:1510.01799).

The vector is float32[classes · (features + 1)]: a row for each class, the bias at its end.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...demo.data import Features, Labels, Shard

__all__ = ["Linear"]

_ROWS: Final = 256
"""Examples at a time: they are read twice, and stay in the processor's cache between."""

Flat = NDArray[np.float32]
Indices = NDArray[np.intp]


class Linear:
    """A linear model and the examples that it is trained on.

    Parameters
    ----------
    shard : Shard
    classes : int
    """

    def __init__(self, shard: Shard, classes: int) -> None:
        self._x, self._y = shard.x, shard.y
        self._classes = classes
        self._lengths = np.sqrt(np.einsum("ij,ij->i", shard.x, shard.x, dtype=np.float64) + 1)

    def __len__(self) -> int:
        return len(self._y)

    @property
    def n(self) -> int:
        """How many parameters there are."""
        return int(self._x.shape[1] + 1) * self._classes

    def clipped_gradient_sum(self, flat: Flat, rows: Indices, *, max_norm: float) -> Flat:
        """The sum of the gradients of some examples, each scaled down to a norm of at most `max_norm`."""
        weights = self._matrix(flat)
        total = np.zeros_like(weights)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            x = self._x[part]
            gap = _gap(x, self._y[part], weights)
            norms = np.sqrt(np.einsum("ij,ij->i", gap, gap, dtype=np.float64)) * self._lengths[part]
            gap *= np.minimum(1.0, max_norm / np.maximum(norms, 1e-30)).astype(np.float32)[:, None]
            total[:, :-1] += gap.T @ x
            total[:, -1] += gap.sum(axis=0)
        return total.ravel()

    def accuracy(self, flat: Flat) -> float:
        """The share of the examples that it classifies correctly."""
        weights = self._matrix(flat)
        right = 0
        for start in range(0, len(self), 4096):
            logits = self._x[start : start + 4096] @ weights[:, :-1].T + weights[:, -1]
            right += int((logits.argmax(axis=1) == self._y[start : start + 4096]).sum())
        return float(right / len(self))

    def _matrix(self, flat: Flat) -> Flat:
        return flat.reshape(self._classes, -1)


def _gap(x: Features, y: Labels, weights: Flat) -> Flat:
    """softmax(logits) − onehot(y): the gradient of the cross-entropy by the logits."""
    logits = x @ weights[:, :-1].T + weights[:, -1]
    logits -= logits.max(axis=1, keepdims=True)
    gap: Flat = np.exp(logits)
    gap /= gap.sum(axis=1, keepdims=True)
    gap[np.arange(len(y)), y] -= np.float32(1)
    return gap
