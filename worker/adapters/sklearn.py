"""scikit-learn's linear models as client apps.

    app = SklearnApp(SGDClassifier(loss="log_loss"), (x, y), classes=range(10))

What runs: estimators that have ``partial_fit``, ``coef_`` and ``intercept_`` (SGDClassifier, SGDRegressor,
Perceptron, PassiveAggressiveClassifier …), and LogisticRegression with ``warm_start=True``.

Rules that hold here:

* The model is ``coef_`` and ``intercept_``; its shape follows from the classes, which is why these are given up
  front: a worker may never have seen some of them.
* Every task starts from a fresh clone: a result depends on the weights and the task alone. The count of steps
  behind a decaying learning rate goes on from version to version, as if one estimator had seen them all.
"""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone, is_classifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import hinge_loss, log_loss, mean_squared_error

from fedmq.fedcore.errors import ClientAppError

from ..client import Evaluation, Fit, TaskContext, Weights

__all__ = ["SklearnApp"]

_SEEDS: Final = 1 << 32  # scikit-learn's random_state is a uint32


class SklearnApp:
    """A client app around a linear model of scikit-learn.

    Parameters
    ----------
    estimator : sklearn.base.BaseEstimator
        Configured, not fitted; it is cloned.
    data : (X, y)
        This worker's training data: X is [n, features], y is [n].
    classes : iterable, optional
        Every class that the federation knows; needed for classifiers.
    test : (X, y), optional
        What to evaluate on; the training data when left out.
    epochs : int
        Passes of ``partial_fit`` over the data in one task; ``task.config["epochs"]`` overrides it.

    Raises
    ------
    ClientAppError
        When the estimator is of another kind, or the classes are missing or do not cover the labels.

    Examples
    --------
    >>> from sklearn.linear_model import SGDClassifier
    >>> app = SklearnApp(SGDClassifier(), ([[0.0], [1.0]], [0, 1]), classes=[0, 1])
    >>> {name: array.shape for name, array in app.initial().items()}
    {'coef_': (1, 1), 'intercept_': (1,)}
    """

    def __init__(
        self,
        estimator: Any,
        data: tuple[ArrayLike, ArrayLike],
        *,
        classes: Iterable[Any] | None = None,
        test: tuple[ArrayLike, ArrayLike] | None = None,
        epochs: int = 1,
    ) -> None:
        self._estimator = estimator
        self._name = type(estimator).__name__
        self._data = _arrays(data)
        self._test = _arrays(test) if test is not None else self._data
        self._epochs = epochs
        self._classes = np.unique(list(classes)) if classes is not None else None
        self._check()
        self._check_is_linear()

    def initial(self) -> Weights:
        """Zeros: where all of these linear models start."""
        features = self._data[0].shape[1]
        if self._classes is None:
            return {"coef_": np.zeros(features), "intercept_": np.zeros(1)}
        rows = 1 if len(self._classes) == 2 else len(self._classes)
        return {"coef_": np.zeros((rows, features)), "intercept_": np.zeros(rows)}

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        """Train a clone from `weights`, one pass over the data an epoch."""
        x, y = self._data
        epochs = int(task.config.get("epochs", self._epochs))
        estimator = self._loaded(weights, task, steps=task.version * epochs * len(y))
        if isinstance(estimator, LogisticRegression):
            estimator.fit(x, y)
        else:
            order = np.random.default_rng(task.seed)
            for _ in range(epochs):
                task.check_cancelled()
                indices = order.permutation(len(y))
                estimator.partial_fit(x[indices], y[indices])
        return Fit({"coef_": estimator.coef_, "intercept_": estimator.intercept_}, len(y))

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        """Log loss (hinge loss where there are no probabilities) and accuracy, or mean squared error and R²."""
        x, y = self._test
        estimator = self._loaded(weights, task)
        if self._classes is None:
            predicted = estimator.predict(x)
            return Evaluation(len(y), {"loss": mean_squared_error(y, predicted), "r2": estimator.score(x, y)})
        if hasattr(estimator, "predict_proba"):
            loss = log_loss(y, estimator.predict_proba(x), labels=self._classes)
        else:
            loss = hinge_loss(y, estimator.decision_function(x), labels=self._classes)
        return Evaluation(len(y), {"loss": loss, "accuracy": estimator.score(x, y)})

    def _loaded(self, weights: Weights, task: TaskContext, steps: int = 0) -> Any:
        """A clone that holds `weights`, as if it had been fitted to them."""
        x, y = self._data
        estimator = clone(self._estimator)
        if "random_state" in estimator.get_params():
            estimator.set_params(random_state=task.seed % _SEEDS)
        if isinstance(estimator, LogisticRegression):
            estimator.classes_ = self._classes
            estimator.n_features_in_ = x.shape[1]
        elif self._classes is not None:
            estimator.partial_fit(x[:1], y[:1], classes=self._classes)
        else:
            estimator.partial_fit(x[:1], y[:1])
        if hasattr(estimator, "t_"):
            estimator.t_ = 1.0 + steps
        dtype = getattr(estimator, "coef_", weights["coef_"]).dtype
        estimator.coef_ = np.array(weights["coef_"], dtype, order="C")
        estimator.intercept_ = np.array(weights["intercept_"], dtype)
        return estimator

    def _check(self) -> None:
        estimator, y = self._estimator, self._data[1]
        logistic = isinstance(estimator, LogisticRegression)
        if logistic and not estimator.warm_start:
            raise ClientAppError(
                "LogisticRegression must have warm_start=True, or every task would start from zero"
            )
        if not logistic and not hasattr(estimator, "partial_fit"):
            raise ClientAppError(
                f"{self._name} has no partial_fit; SGDClassifier, SGDRegressor and Perceptron have"
            )
        if estimator.get_params().get("average"):
            raise ClientAppError(f"{self._name} must have average=False: the federation averages")
        if not is_classifier(estimator):
            if self._classes is not None:
                raise ClientAppError(f"{self._name} is no classifier, so that classes must be left out")
            return
        if self._classes is None or len(self._classes) < 2:
            raise ClientAppError(
                f"{self._name} needs classes=: all labels that the federation knows, two at least"
            )
        if (unknown := np.setdiff1d(y, self._classes)).size:
            raise ClientAppError(f"labels that are not among the classes: {unknown[:5].tolist()}")
        if logistic and len(np.unique(y)) < len(self._classes):
            raise ClientAppError(
                "LogisticRegression needs data of every class in each worker; SGDClassifier(loss='log_loss') does not"
            )

    def _check_is_linear(self) -> None:
        if isinstance(self._estimator, LogisticRegression):
            return
        (x, y), trial = self._data, clone(self._estimator)
        trial.partial_fit(x[:1], y[:1], **({} if self._classes is None else {"classes": self._classes}))
        if not (hasattr(trial, "coef_") and hasattr(trial, "intercept_")):
            raise ClientAppError(
                f"{self._name} has no coef_ and intercept_, which are what is averaged; SGDClassifier, SGDRegressor "
                "and Perceptron have"
            )


def _arrays(data: tuple[ArrayLike, ArrayLike]) -> tuple[NDArray[Any], NDArray[Any]]:
    x, y = np.asarray(data[0]), np.asarray(data[1])
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y) or not len(y):
        raise ClientAppError(f"data must be X[n, features] and y[n] with n ≥ 1, got {x.shape} and {y.shape}")
    return x, y
