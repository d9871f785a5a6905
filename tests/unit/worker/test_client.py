"""Client apps: how they are found, and what they may return."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.fedcore.errors import ClientAppError, TaskCancelled
from fedmq.worker.client import (
    MAX_METRICS,
    ClientApp,
    Evaluation,
    Fit,
    TaskContext,
    Weights,
    check_evaluation,
    check_fit,
    check_initial,
    load_app,
    make_initial,
    resolve_app,
)

BASE: Weights = {
    "w": np.zeros((2, 3), np.float32),
    "scalar": np.zeros((), np.float32),
    "steps": np.array(7),
}


class App:
    """The least that is a client app."""

    def __init__(self, node: dict[str, str] | None = None) -> None:
        self.node = node

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        return Fit(weights, 1)

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        return Evaluation(1, {"loss": 0.0})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


# What a fit returns


def test_a_right_fit_passes_in_the_models_order() -> None:
    """Names take the base's order, counts and metrics become plain Python numbers."""
    trained = {"steps": 7, "scalar": np.float64(2), "w": np.ones((2, 3))}
    metrics = {"loss": np.float32(0.5), "n": 3, "flag": True}
    fit = check_fit(Fit(trained, np.int64(5), metrics), BASE)  # type: ignore[arg-type]
    assert list(fit.weights) == list(BASE)
    assert type(fit.examples) is int
    assert fit.metrics == {"loss": 0.5, "n": 3.0, "flag": 1.0}
    assert all(type(value) is float for value in fit.metrics.values())


def test_a_fits_float64_keeps_its_width() -> None:
    """The base is subtracted before anything is rounded to float32."""
    fine = np.full((2, 3), 1 + 1e-12)
    fit = check_fit(Fit({**BASE, "w": fine}, 1), BASE)
    assert fit.weights["w"].dtype == np.float64
    np.testing.assert_array_equal(fit.weights["w"], fine)


@pytest.mark.parametrize(
    ("trained", "says"),
    [
        ({"w": BASE["w"], "steps": BASE["steps"]}, "missing: 'scalar'"),
        ({**BASE, "extra": np.zeros(1)}, "not in the model: 'extra'"),
        ({**BASE, "w": np.zeros(6)}, r"'w' must have the shape \(2, 3\), got \(6,\)"),
        ({**BASE, "scalar": np.zeros(1)}, r"'scalar' must have the shape \(\), got \(1,\)"),
        ({**BASE, "w": np.full((2, 3), np.nan)}, "'w' holds NaN or Inf"),
        ({**BASE, "scalar": np.inf}, "'scalar' holds NaN or Inf"),
        ({**BASE, "w": np.array([["a"] * 3] * 2)}, "'w' must be of numbers"),
        ({**BASE, "w": [[1, 2], [3]]}, "'w'.*is not an array"),
        ([1, 2], "must be a dict of name to array"),
    ],
)
def test_wrong_weights_are_refused_by_name(trained: Any, says: str) -> None:
    """Nothing is broadcast, padded or left out: the tensor that does not fit is named."""
    with pytest.raises(ClientAppError, match=says):
        check_fit(Fit(trained, 1), BASE)


def test_a_nan_is_found_wherever_it_is() -> None:
    """Also beyond the first block that is looked at, and in an array that is not contiguous."""
    base = {"w": np.zeros((400, 400), np.float32)}
    trained = np.zeros((400, 400), np.float32)
    trained[399, 398] = np.nan
    for array in (trained, np.asfortranarray(trained)):
        with pytest.raises(ClientAppError, match="NaN"):
            check_fit(Fit({"w": array}, 1), base)


@pytest.mark.parametrize("examples", [0, -1, 1.5, 10**9 + 1, True, "7", None, float("nan")])
def test_a_count_of_examples_is_a_whole_number_in_range(examples: Any) -> None:
    """Counts weight updates: zero, negative and absurd ones are refused."""
    with pytest.raises(ClientAppError, match="examples"):
        check_fit(Fit(BASE, examples), BASE)
    with pytest.raises(ClientAppError, match="examples"):
        check_evaluation(Evaluation(examples, {"loss": 0.1}))


@pytest.mark.parametrize(
    "metrics",
    [
        {"loss": float("nan")},
        {"loss": "0.5"},
        {"loss": None},
        {"loss": np.zeros(2)},
        {3: 0.5},
        {"": 0.5},
        {"x" * 200: 0.5},
        {f"m{i}": 0.0 for i in range(MAX_METRICS + 1)},
        [("loss", 0.5)],
    ],
)
def test_metrics_are_few_finite_numbers_with_short_names(metrics: Any) -> None:
    """What the wire would refuse is refused here, where its author sees it."""
    with pytest.raises(ClientAppError, match="metrics"):
        check_fit(Fit(BASE, 1, metrics), BASE)


@pytest.mark.parametrize("result", [None, {}, (BASE, 1), Evaluation(1, {"loss": 0.0})])
def test_a_fit_returns_a_fit(result: object) -> None:
    """Anything else is refused, and the message says what to return."""
    with pytest.raises(ClientAppError, match=r"fit must return .*Fit\(weights, examples\)"):
        check_fit(result, BASE)


def test_an_evaluation_needs_a_loss() -> None:
    """Other metrics are free."""
    assert check_evaluation(Evaluation(3, {"loss": 1})).metrics == {"loss": 1.0}
    with pytest.raises(ClientAppError, match="must hold \"loss\"; it holds 'accuracy'"):
        check_evaluation(Evaluation(3, {"accuracy": 0.5}))
    with pytest.raises(ClientAppError, match="evaluate must return"):
        check_evaluation(0.5)


# The first weights


def test_initial_may_take_the_task_or_nothing() -> None:
    """Both forms are called as they are written."""

    class Plain(App):
        def initial(self) -> Weights:
            return {"w": np.zeros(2)}

    class Seeded(App):
        def initial(self, task: TaskContext) -> Weights:
            return {"w": np.full(2, float(task.seed))}

    task = TaskContext(kind="init", seed=3)
    assert make_initial(Plain(), task)["w"].tolist() == [0, 0]
    assert make_initial(Seeded(), task)["w"].tolist() == [3, 3]


def test_an_app_without_initial_cannot_make_the_first_model() -> None:
    """The message says what else to do."""
    with pytest.raises(ClientAppError, match="safetensors file"):
        make_initial(App(), TaskContext(kind="init"))


@pytest.mark.parametrize("result", [None, {}, {"": np.zeros(1)}, {1: np.zeros(1)}, {"w": np.array([np.nan])}])
def test_initial_weights_are_named_and_finite(result: object) -> None:
    """A first version with NaN in it would be in every delta."""
    with pytest.raises(ClientAppError):
        check_initial(result)


# Tasks


def test_a_cancelled_task_is_visible_and_can_be_left() -> None:
    """`cancelled` may be asked at any time; `check_cancelled` raises once it is true."""
    event = threading.Event()
    task = TaskContext(kind="fit", version=4, is_cancelled=event.is_set)
    assert not task.cancelled
    task.check_cancelled()
    event.set()
    assert task.cancelled
    with pytest.raises(TaskCancelled, match="fit task on version 4"):
        task.check_cancelled()


# From a name to an app


def test_an_instance_a_class_and_factories_make_an_app() -> None:
    """A factory may take nothing, or the worker's settings under any name or as `node`."""
    node = {"shard": "3/5"}
    instance = App()
    assert resolve_app(instance) is instance

    def keyword(*, node: dict[str, str]) -> ClientApp:
        return App(node)

    def positional(settings: dict[str, str]) -> ClientApp:
        return App(settings)

    for factory in (App, keyword, positional):
        app = resolve_app(factory, node=node)
        assert isinstance(app, App)
        assert app.node == node
    assert isinstance(resolve_app(lambda: App()), App)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (object(), "has no methods fit"),
        (lambda: 3, "has no methods fit"),
        (lambda a, b: App(), "must take no argument or node"),
        (lambda: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_what_is_no_app_is_refused_with_the_reason(target: object, says: str) -> None:
    """A factory that raises is quoted."""
    with pytest.raises(ClientAppError, match=says):
        resolve_app(target)


def test_the_current_folder_is_searched(folder: Path) -> None:
    """As `python` does, so that nobody sets PYTHONPATH for a first try."""
    (folder / "mine_here.py").write_text(
        "class Inner:\n"
        "    @staticmethod\n"
        "    def make(node):\n"
        "        import types\n"
        "        return types.SimpleNamespace(fit=len, evaluate=len, node=node)\n"
    )
    app: Any = load_app("mine_here:Inner.make", node={"a": "1"})
    assert app.node == {"a": "1"}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nothing", "expected module:attribute"),
        (":app", "expected module:attribute"),
        ("module:", "expected module:attribute"),
        ("nowhere_at_all:app", "no module named 'nowhere_at_all'; look at the current folder and PYTHONPATH"),
        ("folder/train.py:app", "give the module's name, not its path: folder.train:app"),
        ("broken_import:app", "no module named 'not_installed_here', which broken_import imports"),
        ("broken_raise:app", "importing broken_raise raised ValueError: no data on this machine"),
        ("broken_exit:app", "importing broken_exit raised SystemExit"),
        ("no_attribute:app", "has no attribute 'app'; it has 'apps'"),
        ("no_attribute:apps", "has no methods fit"),
    ],
)
def test_an_app_that_does_not_load_says_what_to_look_at(folder: Path, spec: str, says: str) -> None:
    """One clear line that names the app, whatever the user's module does."""
    (folder / "broken_import.py").write_text("import not_installed_here\n")
    (folder / "broken_raise.py").write_text("raise ValueError('no data on this machine')\n")
    (folder / "broken_exit.py").write_text("raise SystemExit(3)\n")
    (folder / "no_attribute.py").write_text("apps = 3\n")
    with pytest.raises(ClientAppError, match=says) as raised:
        load_app(spec)
    assert repr(spec) in str(raised.value)
