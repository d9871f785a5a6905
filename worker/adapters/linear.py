"""Linear models under record-level privacy, on numpy alone: for edge boxes without torch.

    app = PrivateLinearApp(
        (x, y), kind="softmax", classes=10,
        privacy=LocalPrivacy(noise_multiplier=2.0, delta=1e-5, max_grad_norm=1.0, sampling_rate=0.1, divisor=50,
                             max_steps=100),
    )

===========  =============================  ==========================================
kind         y                              loss of one record, o = W x + b
===========  =============================  ==========================================
"linear"     float[n] or float[n, outputs]  ½ ‖o − y‖²
"logistic"   0 or 1, [n]                    log(1 + exp(o)) − y o
"softmax"    whole numbers 0 … classes − 1  cross-entropy
===========  =============================  ==========================================

Rules that hold here:

* Weights have PyTorch's names and shapes: ``weight`` [outputs, features], ``bias`` [outputs], float32, zeros at first.
* A record's gradient is an outer product, δ xᵀ, and δ for the bias, with δ = ∂loss/∂o.
* Evaluation is on `test` alone, which the promise does not cover: it should be public. Without it the app takes no
  such tasks.
"""

from collections.abc import Iterator
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedmq.fedcore.errors import ClientAppError
from fedmq.fedcore.layout import Flat

from ..client import Evaluation, Fit, TaskContext, Weights
from ..privacy import GradientSum, LocalPrivacy
from ..privacy.gradients import Rows, Trained
from ..privacy.sampling import Indices
from ..privacy.training import PrivateTraining

__all__ = ["LinearGradients", "PrivateLinearApp"]

Kind = Literal["linear", "logistic", "softmax"]
Floats = NDArray[np.float64]

_AT_ONCE: Final = 1 << 22
"""Elements of per-example gradients that are held at a time: 16 MiB."""


class PrivateLinearApp:
    """A client app around one linear layer.

    Parameters
    ----------
    data : (x, y)
        This worker's records, x is [n, features]; n may be 0 where it is shaped all the same.
    kind : {"linear", "logistic", "softmax"}
        The loss.
    privacy : LocalPrivacy or GradientSum
        What is promised.
    classes : int
        How many, for "softmax"; at least 2.
    test : (x, y), optional
        What evaluation is on.
    lr : float
        The rate of a local step; ``task.config["lr"]`` overrides it.

    Raises
    ------
    ClientAppError
        When data and kind do not fit each other.
    PrivacyError
        When the promise cannot be kept.

    Examples
    --------
    >>> x, y = [[0.0, 1.0], [1.0, 0.0]], [0, 1]
    >>> app = PrivateLinearApp((x, y), kind="logistic", privacy=GradientSum(max_grad_norm=1.0, sampling_rate=0.5))
    >>> {name: array.shape for name, array in app.initial().items()}
    {'weight': (1, 2), 'bias': (1,)}
    """

    def __init__(
        self,
        data: tuple[ArrayLike, ArrayLike],
        *,
        kind: Kind,
        privacy: LocalPrivacy | GradientSum,
        classes: int = 0,
        test: tuple[ArrayLike, ArrayLike] | None = None,
        lr: float = 0.1,
    ) -> None:
        self._model = LinearGradients(data, kind=kind, classes=classes)
        self._test = None if test is None else LinearGradients(test, kind=kind, classes=classes)
        if self._test is not None and self._test.trained.shapes != self._model.trained.shapes:
            raise ClientAppError("test has other features or outputs than data")
        self.kinds: tuple[str, ...] = ("fit",) if self._test is None else ("fit", "evaluate")
        self._training = PrivateTraining(privacy, lr=lr)

    def initial(self) -> Weights:
        """Zeros."""
        return {name: np.zeros(shape, np.float32) for name, shape in self._model.trained.shapes.items()}

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        """Train under the promise; see `PrivateTraining.fit`."""
        return self._training.fit(self._model, weights, task)

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        """Mean loss on `test`, and accuracy where there are classes."""
        if self._test is None or not self._test.records:
            raise ClientAppError("this app has no test data to evaluate on")
        return Evaluation(self._test.records, self._test.measure(weights))


class LinearGradients:
    """One linear layer with its records; a `fedmq.worker.privacy.gradients.Gradients`."""

    def __init__(self, data: tuple[ArrayLike, ArrayLike], *, kind: Kind, classes: int = 0) -> None:
        if kind not in get_args(Kind):
            raise ClientAppError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        if (classes < 2) if kind == "softmax" else classes:
            raise ClientAppError(f"{kind} with classes={classes}: softmax needs 2 or more, the others none")
        self._kind = kind
        self._x = np.asarray(data[0], np.float32)
        self._y: NDArray[Any] = _targets(np.asarray(data[1]), kind, classes)
        if self._x.ndim != 2 or len(self._x) != len(self._y):
            raise ClientAppError(
                f"data must be x[n, features] and y[n], got {self._x.shape} and {np.shape(data[1])}"
            )
        outputs = classes if kind == "softmax" else self._y.shape[1]
        self.trained = Trained({"weight": (outputs, self._x.shape[1]), "bias": (outputs,)})

    @property
    def records(self) -> int:
        """n."""
        return len(self._x)

    def rows(self, flat: Flat, indices: Indices) -> Iterator[Rows]:
        """Each record's gradient at `flat`: float32[b, n] a time."""
        weights = self.trained.unflatten(flat, {})
        at_once = max(1, _AT_ONCE // self.trained.n)
        for start in range(0, len(indices), at_once):
            chosen = indices[start : start + at_once]
            x = self._x[chosen]
            with np.errstate(all="ignore"):  # what is not finite is dealt with by whoever sums
                delta = self._delta(_outputs(weights, x), self._y[chosen]).astype(np.float32)
                outer = (delta[:, :, None] * x[:, None, :]).reshape(len(chosen), -1)
                yield np.concatenate([outer, delta], axis=1)

    def measure(self, weights: Weights) -> dict[str, float]:
        """The mean loss, and the accuracy where there are classes."""
        outputs, y = _outputs(weights, self._x), self._y
        if self._kind == "linear":
            return {"loss": float(0.5 * np.square(outputs - y).sum(axis=1).mean())}
        if self._kind == "logistic":
            loss = np.logaddexp(0.0, outputs) - y * outputs
            return {"loss": float(loss.mean()), "accuracy": float(((outputs > 0) == (y > 0.5)).mean())}
        right = outputs[np.arange(len(y)), y]
        loss = np.logaddexp.reduce(outputs, axis=1) - right
        return {"loss": float(loss.mean()), "accuracy": float((outputs.argmax(axis=1) == y).mean())}

    def _delta(self, outputs: Floats, y: NDArray[Any]) -> Floats:
        if self._kind == "linear":
            error: Floats = outputs - y
            return error
        if self._kind == "logistic":
            surplus: Floats = 1 / (1 + np.exp(-outputs)) - y
            return surplus
        delta: Floats = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        delta /= delta.sum(axis=1, keepdims=True)
        delta[np.arange(len(y)), y] -= 1
        return delta


def _outputs(weights: Weights, x: Rows) -> Floats:
    outputs: Floats = x.astype(np.float64) @ weights["weight"].T.astype(np.float64) + weights["bias"]
    return outputs


def _targets(y: NDArray[Any], kind: Kind, classes: int) -> NDArray[Any]:
    """What the loss is computed with: indices for "softmax", else float64[n, outputs]."""
    if kind == "softmax":
        if y.ndim != 1 or y.dtype.kind not in "iub" or (y.size and not 0 <= y.min() <= y.max() < classes):
            raise ClientAppError(f"y must hold whole numbers 0 … {classes - 1}, one a record")
        return y.astype(np.intp)
    if y.ndim not in (1, 2) or y.dtype.kind not in "biuf":
        raise ClientAppError(f"y must be numbers [n] or [n, outputs], got {y.dtype}{list(y.shape)}")
    if kind == "logistic" and (y.ndim != 1 or not np.isin(y, (0, 1)).all()):
        raise ClientAppError("y must hold 0 or 1, one a record")
    return y.astype(np.float64).reshape(len(y), -1) if y.size else np.empty((0, 1))
