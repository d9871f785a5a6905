"""Flower clients, unchanged: with the real flwr, and by their shape alone."""

import importlib.util
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedmq.fedcore.errors import ClientAppError
from fedmq.worker.adapters import flower
from fedmq.worker.client import TaskContext, check_evaluation, check_fit, make_initial, resolve_app

FIT = TaskContext(kind="fit", version=4, config={"lr": 0.5, "train": {"epochs": 2}})
INIT = TaskContext(kind="init")


class Client:
    """A NumPyClient by its shape: what it returns can be set."""

    def __init__(self, parameters: Any = None, examples: Any = 10, metrics: Any = None) -> None:
        self.parameters = [np.zeros((2, 2)), np.zeros(3, np.float32)] if parameters is None else parameters
        self.examples, self.metrics = examples, {} if metrics is None else metrics
        self.seen: list[Any] = []

    def get_properties(self, config: Any) -> Any:
        return {"battery": 0.5}

    def get_parameters(self, config: Any) -> Any:
        return self.parameters

    def fit(self, parameters: Any, config: Any) -> Any:
        self.seen.append((parameters, config))
        return self.parameters, self.examples, self.metrics

    def evaluate(self, parameters: Any, config: Any) -> Any:
        self.seen.append((parameters, config))
        return np.float32(0.25), self.examples, self.metrics


def run(client: Any, task: TaskContext = FIT) -> Any:
    """The client's fit on its own first weights, checked as a worker checks it."""
    app: Any = resolve_app(client)
    weights = make_initial(app, INIT)
    return check_fit(app.fit(weights, task), weights)


def test_arrays_are_named_by_their_place() -> None:
    """And come back in the same order; the config is the task's, flattened, with Flower's round."""
    client = Client()
    fit = run(client)
    assert list(fit.weights) == ["0000", "0001"]
    assert fit.weights["0000"].shape == (2, 2)
    parameters, config = client.seen[0]
    assert [array.shape for array in parameters] == [(2, 2), (3,)]
    assert config == {"server_round": 5, "lr": 0.5, "train.epochs": 2}


def test_a_list_longer_than_ten_keeps_its_order() -> None:
    """Names sort as numbers do."""
    fit = run(Client([np.full(1, i) for i in range(120)]))
    assert [int(array[0]) for array in fit.weights.values()] == list(range(120))


def test_order_survives_a_model_whose_names_are_not() -> None:
    """A layout may store tensors in another order than Flower's list; names from a file keep their order."""
    client = Client()
    app = flower.wrap(client)
    app.fit({"0001": np.zeros(3), "0000": np.zeros((2, 2))}, FIT)
    assert [array.shape for array in client.seen[-1][0]] == [(2, 2), (3,)]
    app.fit({"z.weight": np.zeros((2, 2)), "a.bias": np.zeros(3)}, FIT)
    assert [array.shape for array in client.seen[-1][0]] == [(2, 2), (3,)]


@pytest.mark.parametrize(
    "parameters",
    [
        np.zeros(4),  # one bare array
        np.float32(2),  # a numpy scalar
        (np.zeros(4), np.zeros(2)),  # a tuple
        [np.float64(1.0), np.array(3.0)],  # scalars and 0-d arrays
        [1.0, [2.0, 3.0]],  # plain numbers and lists
        [np.zeros(2), np.array(7)],  # an integer buffer
    ],
)
def test_what_flower_takes_for_parameters_is_taken(parameters: Any) -> None:
    """Numpy scalars, 0-d arrays, float64, tuples, a bare array instead of a list."""
    fit = run(Client(parameters))
    assert all(isinstance(array, np.ndarray) for array in fit.weights.values())


def test_a_bare_array_of_a_larger_model_is_its_list() -> None:
    """`np.array` over equal shapes made one array of what was a list."""
    app = flower.wrap(Client())
    app.fit({"0000": np.zeros((2, 2)), "0001": np.zeros(3)}, FIT)
    stacked = flower.wrap(Client(np.arange(6.0).reshape(3, 2)))
    fit = stacked.fit({f"{i:04d}": np.zeros(2) for i in range(3)}, FIT)
    assert [array.tolist() for array in fit.weights.values()] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("examples", [np.int64(10), 10.0, np.float32(10), np.array([10])])
def test_counts_may_be_any_number(examples: Any) -> None:
    """As long as it is whole."""
    assert run(Client(examples=examples)).examples == 10


@pytest.mark.parametrize("examples", [0, -1, 2.5, "many", None])
def test_counts_that_are_none_are_refused(examples: Any) -> None:
    """Flower's ClientApp would send them; they would weight an update by nonsense."""
    with pytest.raises(ClientAppError, match="examples"):
        run(Client(examples=examples))


def test_metrics_that_are_no_numbers_are_left_out_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Numbers of all kinds stay; the rest costs one line in the log, not the update."""
    caplog.set_level(logging.INFO)
    metrics = {"acc": np.float32(0.5), "n": 3, "ok": True, "note": "fine", "raw": b"1", "bad": float("nan")}
    app = flower.wrap(Client(metrics=metrics))
    weights = make_initial(app, INIT)
    for _ in range(2):
        assert app.fit(weights, FIT).metrics == {"acc": 0.5, "n": 3.0, "ok": 1.0}
    assert [record.getMessage().split("'")[1] for record in caplog.records] == ["note", "raw", "bad"]


def test_too_many_metrics_leave_room_for_the_loss() -> None:
    """An evaluation with a hundred metrics is cut, and still has its loss."""
    app = flower.wrap(Client(metrics={f"m{i}": i for i in range(100)}))
    measured = check_evaluation(app.evaluate(make_initial(app, INIT), FIT))
    assert measured.metrics["loss"] == 0.25
    assert len(measured.metrics) == 64


@pytest.mark.parametrize(
    ("client", "says"),
    [
        (
            SimpleNamespace(
                fit=lambda p, config: (p, 1), evaluate=len, get_parameters=lambda c: [np.zeros(1)]
            ),
            "returns",
        ),
        (
            SimpleNamespace(fit=lambda p, config: None, evaluate=len, get_parameters=lambda c: [np.zeros(1)]),
            "returns",
        ),
        (
            SimpleNamespace(
                fit=lambda p, config: ([], 1, {}), evaluate=len, get_parameters=lambda c: [np.zeros(1)]
            ),
            "0 arrays for a model of 1",
        ),
        (Client([]), "returns no arrays"),
        (Client("abc"), "must be a list of arrays, got str"),
    ],
)
def test_what_even_flower_would_refuse_is_refused(client: Any, says: str) -> None:
    """The message says what Flower expects and what came."""
    with pytest.raises(ClientAppError, match=says):
        run(client)


# client_fn


def test_a_client_fn_gets_flowers_context() -> None:
    """node_config is read as TOML, run_config is the task's table, and it is called for every task."""
    contexts: list[Any] = []

    def client_fn(context):  # type: ignore[no-untyped-def]  # as users write it
        contexts.append(context)
        return Client()

    node = {"partition-id": "3", "rate": "0.5", "gpu": "true", "name": "ward 3", "date": "2024-01-01"}
    app: Any = resolve_app(client_fn, node=node)
    weights = make_initial(app, INIT)
    app.fit(weights, FIT)
    app.evaluate(weights, FIT)
    assert len(contexts) == 3
    read = {"partition-id": 3, "rate": 0.5, "gpu": True, "name": "ward 3", "date": "2024-01-01"}
    assert contexts[0].node_config == read
    assert contexts[1].run_config == {"lr": 0.5, "train.epochs": 2}
    assert contexts[1].state is contexts[2].state


def test_a_client_fn_may_change_what_it_is_given() -> None:
    """Its changes do not reach the next task, but for those to `state`."""

    def client_fn(context):  # type: ignore[no-untyped-def]
        context.node_config["partition-id"] += 1
        context.run_config["lr"] = 0
        return Client(examples=context.node_config["partition-id"])

    app: Any = resolve_app(client_fn, node={"partition-id": "3"})
    weights = make_initial(app, INIT)
    assert [app.fit(weights, FIT).examples for _ in range(2)] == [4, 4]
    assert FIT.config["lr"] == 0.5


def test_the_old_client_fn_gets_its_partition() -> None:
    """`client_fn(cid)`, from before Flower had contexts."""

    def client_fn(cid: str) -> Any:
        assert isinstance(cid, str)
        return Client(examples=int(cid))

    app: Any = resolve_app(client_fn, node={"partition-id": "7"})
    assert app.fit(make_initial(app, INIT), FIT).examples == 7


def test_what_to_client_made_is_unwrapped() -> None:
    """Flower's wrapper holds the original as `numpy_client`."""

    def client_fn(context: Any) -> Any:
        return SimpleNamespace(numpy_client=Client(examples=9), fit=len, evaluate=len)

    app: Any = resolve_app(client_fn)
    assert app.fit(make_initial(app, INIT), FIT).examples == 9


@pytest.mark.parametrize(
    "made", [None, 3, SimpleNamespace(fit=lambda ins: ins, evaluate=len, get_parameters=len)]
)
def test_a_client_fn_that_makes_something_else_is_told(made: Any) -> None:
    """Also where it makes a Client over FitIns, which needs Flower itself."""
    app: Any = resolve_app(lambda context: made)
    with pytest.raises(ClientAppError, match="NumPyClient"):
        app.fit({"0000": np.zeros(1)}, FIT)


def test_our_own_apps_are_not_taken_for_flowers() -> None:
    """`fit(weights, task)` is ours; a function of one argument with another name is a factory."""
    ours = SimpleNamespace(fit=lambda weights, task: None, evaluate=lambda weights, task: None)
    assert resolve_app(ours) is ours
    assert resolve_app(lambda node: ours) is ours
    assert not flower.is_client(ours)
    assert not flower.is_client_fn(lambda node: ours)


def test_a_class_of_a_client_is_made_first() -> None:
    """`--app module:FlowerClient` may name the class."""
    app: Any = resolve_app(Client)
    assert app.fit(make_initial(app, INIT), FIT).examples == 10


# The real library, where it is installed: the dev extra brings it.


@pytest.fixture
def fl() -> Any:
    """flwr itself."""
    assert importlib.util.find_spec("flwr") is not None, "pip install fedmq[dev]"
    import flwr

    return flwr


@pytest.mark.filterwarnings("default")
def test_a_real_numpy_client_runs_in_every_form(fl: Any) -> None:
    """The object, its class, its to_client(), and a client_fn with Flower's own annotation."""

    class Real(fl.client.NumPyClient):  # type: ignore[misc]
        def get_parameters(self, config: Any) -> Any:
            return [np.ones((2, 2)), np.zeros(1)]

        def fit(self, parameters: Any, config: Any) -> Any:
            return [array + 1 for array in parameters], 5, {"accuracy": np.float64(0.5)}

        def evaluate(self, parameters: Any, config: Any) -> Any:
            return 0.5, 5, {}

    def client_fn(ctx: fl.common.Context) -> Any:
        ctx.state["seen"] = fl.common.MetricRecord({"n": 1})
        return Real().to_client()

    for target in (Real(), Real, Real().to_client(), client_fn):
        fit = run(target)
        assert fit.weights["0000"].tolist() == [[2, 2], [2, 2]]
        assert (fit.examples, fit.metrics) == (5, {"accuracy": 0.5})


@pytest.mark.filterwarnings("default")
def test_a_real_client_app_says_to_name_its_client_fn(fl: Any) -> None:
    """It answers Flower's messages, and there are none here."""
    from flwr.clientapp import ClientApp

    with pytest.raises(ClientAppError, match="module:client_fn"):
        resolve_app(ClientApp(client_fn=lambda context: Client()))


def test_a_client_that_measures_nothing_is_not_asked_to() -> None:
    """Flower's own `evaluate` answers with no examples: asked, such a client would fail at every version."""
    import flwr.client

    class OnlyFits(flwr.client.NumPyClient):
        def fit(self, parameters: Any, config: Any) -> Any:
            return parameters, 1, {}

    class Both(OnlyFits):
        def evaluate(self, parameters: Any, config: Any) -> Any:
            return 0.5, 1, {}

    assert flower.wrap(OnlyFits()).kinds == ("fit",)
    assert flower.wrap(OnlyFits().to_client()).kinds == ("fit",)
    assert flower.wrap(Both()).kinds == ("fit", "evaluate")
