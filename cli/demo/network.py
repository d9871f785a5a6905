"""The demo's network in plain numpy: Linear – ReLU – Linear with softmax cross-entropy.

Small enough that the demo needs no framework, and of the same names and shapes as the torch module of
`torch_network`. Weights are float32 under PyTorch's names: a weight is [out, in].

The gradient of a linear layer for *one* example is an outer product, δ xᵀ, so that its norm is ‖δ‖·‖x‖. That is
how `clipped_gradient_sum` clips every example's gradient without ever holding one
(Goodfellow, arXiv:1510.01799).
"""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from .data import Features, Labels, Shard

__all__ = ["HIDDEN", "Measured", "clipped_gradient_sum", "initial_weights", "measure", "train"]

HIDDEN: Final = 32
_EVALUATE_BATCH: Final = 4096

Weights = dict[str, NDArray[np.float32]]


class Measured(msgspec.Struct, frozen=True):
    """Mean cross-entropy, and the fraction that was classified correctly."""

    loss: float
    accuracy: float


def initial_weights(features: int, *, classes: int = 10, hidden: int = HIDDEN, seed: int = 0) -> Weights:
    """Uniform in ±1/√fan_in, which is what ``torch.nn.Linear`` starts with."""
    rng = np.random.default_rng([seed, 0x1A17])

    def uniform(fan_in: int, *shape: int) -> NDArray[np.float32]:
        drawn: NDArray[np.float64] = rng.uniform(-1, 1, shape) / np.sqrt(fan_in)
        return drawn.astype(np.float32)

    return {
        "fc1.weight": uniform(features, hidden, features),
        "fc1.bias": uniform(features, hidden),
        "fc2.weight": uniform(hidden, classes, hidden),
        "fc2.bias": uniform(hidden, classes),
    }


def train(
    weights: Weights, shard: Shard, *, epochs: int, batch: int, lr: float, rng: np.random.Generator
) -> float:
    """Minibatch SGD in place over shuffled epochs.

    Parameters
    ----------
    weights : dict of float32 arrays
        Trained in place.
    shard : Shard
        n examples; the last batch of an epoch may be smaller.
    epochs, batch : int
        ≥ 1.
    lr : float
        Step size on the batch's mean gradient.
    rng : numpy.random.Generator
        Decides the order of the examples, and nothing else is random.

    Returns
    -------
    float
        The mean cross-entropy over the last epoch, measured on the way.
    """
    loss = 0.0
    for _ in range(epochs):
        loss = 0.0
        order = rng.permutation(len(shard))
        for start in range(0, len(order), batch):
            part = shard.take(order[start : start + batch])
            hidden, logits = _forward(weights, part.x)
            probabilities, losses = _softmax(logits, part.y)
            loss += float(losses.sum())
            d_logits = _loss_gradient(probabilities, part.y) / np.float32(len(part))
            for name, gradient in _gradients(weights, part.x, hidden, d_logits).items():
                weights[name] -= np.float32(lr) * gradient
    return loss / len(shard)


def clipped_gradient_sum(weights: Weights, shard: Shard, *, max_norm: float) -> Weights:
    """Sum the gradients of single examples, each scaled down to a norm of at most `max_norm`.

    Parameters
    ----------
    weights : dict of float32 arrays
        Not changed.
    shard : Shard
        n ≥ 0 examples; none give a sum of zeros.
    max_norm : float
        S: what any one example can add to the sum.
    """
    hidden, logits = _forward(weights, shard.x)
    probabilities, _ = _softmax(logits, shard.y)
    d_logits = _loss_gradient(probabilities, shard.y)
    d_hidden = (d_logits @ weights["fc2.weight"]) * (hidden > 0)
    # The bias is a weight whose input is 1, hence the + 1.
    squares = _row_squares(d_hidden) * (_row_squares(shard.x) + 1)
    squares += _row_squares(d_logits) * (_row_squares(hidden) + 1)
    factors = np.minimum(1.0, max_norm / np.maximum(np.sqrt(squares), 1e-30))
    return _gradients(weights, shard.x, hidden, d_logits * factors[:, None].astype(np.float32))


def measure(weights: Weights, shard: Shard) -> Measured:
    """Loss and accuracy on a shard."""
    loss, correct = 0.0, 0
    for start in range(0, len(shard), _EVALUATE_BATCH):
        x, y = shard.x[start : start + _EVALUATE_BATCH], shard.y[start : start + _EVALUATE_BATCH]
        _, logits = _forward(weights, x)
        loss += float(_softmax(logits, y)[1].sum())
        correct += int((logits.argmax(axis=1) == y).sum())
    return Measured(loss / len(shard), correct / len(shard))


def _forward(weights: Weights, x: Features) -> tuple[Features, Features]:
    hidden = np.maximum(x @ weights["fc1.weight"].T + weights["fc1.bias"], np.float32(0))
    return hidden, hidden @ weights["fc2.weight"].T + weights["fc2.bias"]


def _softmax(logits: Features, y: Labels) -> tuple[Features, Features]:
    """Probabilities, and each example's cross-entropy."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    losses = np.log(sums[:, 0]) - shifted[np.arange(len(y)), y]
    return exponentials / sums, losses


def _loss_gradient(probabilities: Features, y: Labels) -> Features:
    gradient = probabilities.copy()
    gradient[np.arange(len(y)), y] -= np.float32(1)
    return gradient


def _gradients(weights: Weights, x: Features, hidden: Features, d_logits: Features) -> Weights:
    """Backpropagate rows of dL/dlogits; what they are scaled by scales each example's gradient."""
    d_hidden = (d_logits @ weights["fc2.weight"]) * (hidden > 0)
    return {
        "fc1.weight": d_hidden.T @ x,
        "fc1.bias": d_hidden.sum(axis=0),
        "fc2.weight": d_logits.T @ hidden,
        "fc2.bias": d_logits.sum(axis=0),
    }


def _row_squares(rows: Features) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return squares
