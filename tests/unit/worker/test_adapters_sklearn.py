"""scikit-learn's linear models as client apps."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Perceptron, Ridge, SGDClassifier, SGDRegressor
from sklearn.naive_bayes import GaussianNB

from fedmq.fedcore.errors import ClientAppError
from fedmq.worker.adapters.sklearn import SklearnApp
from fedmq.worker.client import TaskContext, Weights, check_evaluation, check_fit, make_initial

FIT = TaskContext(kind="fit", seed=3)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 4))
TWO = (X[:, 0] > 0).astype(int)
THREE = np.digitize(X[:, 0], [-0.5, 0.5])
LINE = X @ np.array([1.0, -2.0, 0.0, 0.5]) + 3


def train(app: SklearnApp, versions: int = 5) -> Weights:
    """A federation of one worker."""
    weights = make_initial(app, TaskContext(kind="init"))
    for version in range(versions):
        task = TaskContext(kind="fit", version=version, seed=version)
        weights = {
            name: array.astype(np.float32)
            for name, array in check_fit(app.fit(weights, task), weights).weights.items()
        }
    return weights


@pytest.mark.parametrize(
    ("estimator", "y"),
    [
        (SGDClassifier(loss="log_loss"), TWO),
        (SGDClassifier(loss="log_loss"), THREE),
        (SGDClassifier(loss="hinge"), TWO),
        (Perceptron(), THREE),
        (LogisticRegression(warm_start=True, max_iter=100), TWO),
        (LogisticRegression(warm_start=True, max_iter=100), THREE),
    ],
)
def test_classifiers_learn_over_versions(estimator: Any, y: Any) -> None:
    """From zeros, through float32 as the wire has it, to better than chance by far."""
    app = SklearnApp(estimator, (X, y), classes=np.unique(y))
    weights = train(app)
    measured = check_evaluation(app.evaluate(weights, FIT))
    assert measured.metrics["accuracy"] > 0.8
    assert measured.examples == len(y)


def test_a_regressor_learns_over_versions() -> None:
    """Mean squared error and R² are what it reports."""
    app = SklearnApp(SGDRegressor(), (X, LINE), epochs=3)
    measured = check_evaluation(app.evaluate(train(app), FIT))
    assert measured.metrics["r2"] > 0.95
    assert measured.metrics["loss"] < 0.5


def test_the_shape_follows_from_the_classes_not_from_the_data() -> None:
    """A worker that has never seen the third class has the same model as all others."""
    some = THREE < 2
    app = SklearnApp(SGDClassifier(loss="log_loss"), (X[some], THREE[some]), classes=range(3))
    weights = app.initial()
    assert weights["coef_"].shape == (3, 4)
    fit = check_fit(app.fit(weights, FIT), weights)
    assert fit.examples == some.sum()
    assert check_evaluation(app.evaluate(fit.weights, FIT)).metrics["loss"] > 0


def test_a_result_depends_on_weights_and_task_alone() -> None:
    """Nothing is left over from an earlier task, and the seed decides the order of examples."""
    app = SklearnApp(SGDClassifier(loss="log_loss"), (X, THREE), classes=range(3))
    weights = app.initial()
    first = app.fit(weights, FIT).weights["coef_"]
    app.fit({name: array + 1 for name, array in weights.items()}, TaskContext(kind="fit", seed=4, version=9))
    np.testing.assert_array_equal(app.fit(weights, FIT).weights["coef_"], first)
    other = app.fit(weights, TaskContext(kind="fit", seed=5)).weights["coef_"]
    assert not np.array_equal(other, first)
    assert not weights["coef_"].any()


def test_a_decaying_rate_goes_on_from_version_to_version() -> None:
    """A late version takes smaller steps than the first."""
    app = SklearnApp(SGDRegressor(), (X, LINE))
    weights = app.initial()
    steps = [
        np.abs(app.fit(weights, TaskContext(kind="fit", version=version)).weights["coef_"]).sum()
        for version in (0, 1000)
    ]
    assert steps[1] < 0.5 * steps[0]


def test_epochs_come_from_the_task() -> None:
    """The federation's `[task] epochs` overrides the worker's own."""
    app = SklearnApp(SGDRegressor(), (X, LINE))
    weights = app.initial()
    once = app.fit(weights, FIT).weights["coef_"]
    often = app.fit(weights, TaskContext(kind="fit", seed=3, config={"epochs": 5})).weights["coef_"]
    assert np.abs(often - [1, -2, 0, 0.5]).sum() < np.abs(once - [1, -2, 0, 0.5]).sum()


@pytest.mark.parametrize(
    ("estimator", "y", "classes", "says"),
    [
        (Ridge(), LINE, None, "has no partial_fit"),
        (GaussianNB(), TWO, [0, 1], "has no coef_"),
        (LogisticRegression(), TWO, [0, 1], "warm_start=True"),
        (SGDClassifier(), TWO, None, "needs classes="),
        (SGDClassifier(), TWO, [1], "needs classes="),
        (SGDClassifier(), THREE, [0, 1], "not among the classes"),
        (SGDClassifier(average=True), TWO, [0, 1], "average=False"),
        (SGDRegressor(), LINE, [0, 1], "no classifier"),
        (LogisticRegression(warm_start=True), TWO, [0, 1, 2], "every class in each worker"),
    ],
)
def test_what_cannot_run_is_refused_at_once(estimator: Any, y: Any, classes: Any, says: str) -> None:
    """When the app is made, not in the third round."""
    with pytest.raises(ClientAppError, match=says):
        SklearnApp(estimator, (X, y), classes=classes)


@pytest.mark.parametrize("data", [(X[:0], TWO[:0]), (X, TWO[:5]), (X[:, 0], TWO)])
def test_data_must_be_a_table_and_its_labels(data: Any) -> None:
    """Empty, uneven or flat data is refused."""
    with pytest.raises(ClientAppError, match=r"X\[n, features\] and y\[n\]"):
        SklearnApp(SGDClassifier(), data, classes=[0, 1])
