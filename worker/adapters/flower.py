"""Runs an unchanged Flower client as a client app.

What is known as Flower's, by its shape and never by its class, so that flwr need not be installed:

* a ``NumPyClient``: ``get_parameters(config)``, ``fit(parameters, config)``, ``evaluate(parameters, config)``;
* what its ``to_client()`` returns (it holds the original as ``numpy_client``);
* a ``client_fn(context)`` that makes either. As in Flower it is called anew for every task.

How Flower's words map to ours:

* Its list of arrays gets the names "0000", "0001", … A model that came from a file keeps its own names; the
  list then follows their order.
* ``context.node_config`` holds the worker's ``--node key=value`` settings, read as TOML as Flower's own command
  line does: ``partition-id=3`` is an int. ``context.run_config`` is the federation's ``[task]`` table, nested
  tables flattened with dots, and so is the ``config`` of `fit` and `evaluate`, with ``server_round`` besides.
* Flower tolerates much in what a client returns, and so do we: numpy scalars, tuples, one bare array, float64.
  A metric that is no finite number is left out, and the log says so once.
"""

import inspect
import logging
import math
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedmq.fedcore.errors import ClientAppError

from ..client import MAX_METRICS, Evaluation, Fit, TaskContext, Weights

__all__ = ["Context", "FlowerApp", "is_client", "is_client_app", "is_client_fn", "wrap"]

log = logging.getLogger(__name__)


class Context(msgspec.Struct):
    """What a ``client_fn`` reads: the fields of Flower's own ``Context``.

    `state` lives as long as the worker's process does.
    """

    run_id: int
    node_id: int
    node_config: dict[str, Any]
    state: Any
    run_config: dict[str, Any]


def is_client(target: object) -> bool:
    """Whether `target` is a Flower client object: a ``NumPyClient`` or what its ``to_client()`` made."""
    if inspect.isclass(target):
        return False
    target = getattr(target, "numpy_client", target)
    fit, evaluate = getattr(target, "fit", None), getattr(target, "evaluate", None)
    if not (callable(fit) and callable(evaluate)):
        return False
    return callable(getattr(target, "get_parameters", None)) or _parameter_names(fit)[1:2] == ["config"]


def is_client_fn(target: object) -> bool:
    """Whether `target` is a function of Flower's ``context`` (or of the ``cid`` that came before it)."""
    if not inspect.isroutine(target):
        return False
    parameters = list(inspect.signature(target).parameters.values())
    if len(parameters) != 1:
        return False
    annotation = parameters[0].annotation
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return parameters[0].name in ("context", "cid") or name.rpartition(".")[2] == "Context"


def is_client_app(target: object) -> bool:
    """Whether `target` is a ``flwr.clientapp.ClientApp``, which answers messages and cannot be called as ours."""
    return type(target).__module__.partition(".")[0] == "flwr" and type(target).__name__ == "ClientApp"


def wrap(target: object, *, node: Mapping[str, str] | None = None) -> "FlowerApp":
    """Make a client app of a Flower client or ``client_fn``.

    Raises
    ------
    ClientAppError
        When `target` is neither; of a ``ClientApp`` it says to name the ``client_fn`` instead.
    """
    if is_client_app(target):
        raise ClientAppError(
            "this is Flower's ClientApp; name the client_fn that it was made of: module:client_fn"
        )
    if is_client_fn(target):
        return FlowerApp(cast(Callable[[Any], object], target), node=node)
    if is_client(target):
        client = target
        app = FlowerApp(lambda context: client, node=node)
        if _is_flowers_own(getattr(client, "numpy_client", client), "evaluate"):
            app.kinds = ("fit",)  # it would measure nothing, on no examples
        return app
    raise ClientAppError(
        f"{type(target).__qualname__} is neither a Flower NumPyClient nor a client_fn(context)"
    )


class FlowerApp:
    """A client app around Flower's ``client_fn``.

    Parameters
    ----------
    client_fn : callable
        Takes a `Context` (or, when its parameter is called ``cid``, the partition as a str) and returns a
        ``NumPyClient`` or what its ``to_client()`` made.
    node : mapping of str to str, optional
        The worker's ``--node`` settings.
    """

    kinds: tuple[str, ...] = ("fit", "evaluate")

    def __init__(self, client_fn: Callable[[Any], object], *, node: Mapping[str, str] | None = None) -> None:
        self._client_fn = client_fn
        self._by_cid = _parameter_names(client_fn) == ["cid"]
        self._node = {key: _toml_value(value) for key, value in (node or {}).items()}
        self._state = _empty_state()
        self._left_out: set[str] = set()

    def initial(self, task: TaskContext) -> Weights:
        """Name the arrays of ``get_parameters`` "0000", "0001", … for version 0."""
        client = self._client(task)
        get_parameters = getattr(client, "get_parameters", None)
        arrays = _as_list(get_parameters(_config(task))) if callable(get_parameters) else []
        if not arrays:
            raise ClientAppError(
                "this Flower client's get_parameters(config) returns no arrays, so it cannot make the first "
                "model; implement it, or let [model] initial name a safetensors file"
            )
        return {f"{i:04d}": np.asarray(array) for i, array in enumerate(arrays)}

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        """Call the client's ``fit(parameters, config)``."""
        names = _order(weights)
        client = self._client(task)
        result = client.fit([weights[name] for name in names], _config(task))
        if not isinstance(result, Sequence) or len(result) != 3:
            raise ClientAppError(
                f"a Flower fit returns (parameters, num_examples, metrics), got {_summary(result)}"
            )
        arrays = _as_list(result[0], expected=len(names))
        if len(arrays) != len(names):
            raise ClientAppError(f"Flower's fit returned {len(arrays)} arrays for a model of {len(names)}")
        trained = {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}
        # The dict's own order is kept: it is the model's.
        return Fit({name: trained[name] for name in weights}, _count(result[1]), self._metrics(result[2]))

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        """Call the client's ``evaluate(parameters, config)``; its loss becomes the metric ``loss``."""
        client = self._client(task)
        result = client.evaluate([weights[name] for name in _order(weights)], _config(task))
        if not isinstance(result, Sequence) or len(result) != 3:
            raise ClientAppError(
                f"a Flower evaluate returns (loss, num_examples, metrics), got {_summary(result)}"
            )
        metrics = self._metrics(result[2], reserved=1)
        metrics["loss"] = _number(result[0])
        return Evaluation(_count(result[1]), metrics)

    def _client(self, task: TaskContext) -> Any:
        if self._by_cid:
            made = self._client_fn(str(self._node.get("partition-id", 0)))
        else:
            made = self._client_fn(Context(0, 0, dict(self._node), self._state, _flatten(task.config)))
        client: Any = getattr(made, "numpy_client", made)
        if not is_client(client):
            raise ClientAppError(
                f"client_fn returned {type(client).__qualname__}; expected a NumPyClient or its to_client()"
            )
        if _parameter_names(client.fit) == ["ins"]:
            raise ClientAppError(
                f"{type(client).__qualname__} is a Flower Client over FitIns; only NumPyClients run here"
            )
        return client

    def _metrics(self, metrics: object, reserved: int = 0) -> dict[str, float]:
        kept: dict[str, float] = {}
        for name, value in metrics.items() if isinstance(metrics, Mapping) else ():
            number = math.nan if isinstance(value, str | bytes) else _number(value)
            if math.isfinite(number) and len(kept) < MAX_METRICS - reserved:
                kept[str(name)] = number
            elif str(name) not in self._left_out:
                self._left_out.add(str(name))
                log.info("left out the Flower metric %r: not a finite number, or too many", str(name))
        return kept


def _is_flowers_own(client: object, name: str) -> bool:
    """Whether a method is not the user's but the one of Flower's base class."""
    method = getattr(type(client), name, None)
    return str(getattr(method, "__module__", "")).partition(".")[0] == "flwr"


def _parameter_names(function: Callable[..., object]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # builtins without a signature
        return []


def _order(weights: Weights) -> list[str]:
    return sorted(weights) if all(name.isdigit() for name in weights) else list(weights)


def _config(task: TaskContext) -> dict[str, Any]:
    return {"server_round": task.version + 1, **_flatten(task.config)}


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat.update(
            _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        )
    return flat


def _as_list(parameters: object, expected: int = 1) -> list[Any]:
    """Flower wants a list; a client with one tensor may have returned just that."""
    if isinstance(parameters, np.ndarray | np.generic | int | float):
        stacked = expected > 1 and isinstance(parameters, np.ndarray) and parameters.ndim > 0
        return list(cast(NDArray[Any], parameters)) if stacked else [parameters]
    if isinstance(parameters, Sequence) and not isinstance(parameters, str | bytes):
        return list(parameters)
    raise ClientAppError(f"Flower parameters must be a list of arrays, got {type(parameters).__qualname__}")


def _count(value: object) -> int:
    number = _number(value)
    if not number.is_integer():
        raise ClientAppError(f"num_examples must be a whole number, got {value!r}")
    return int(number)


def _number(value: object) -> float:
    """A float from whatever a framework calls a number (numpy or torch scalars, 1-element arrays), else NaN."""
    try:
        return float(np.asarray(value, dtype=np.float64).reshape(()))
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _toml_value(text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text
    return value if isinstance(value, bool | int | float | str) else text


def _summary(value: object) -> str:
    return f"a {type(value).__qualname__}" + (f" of {len(value)}" if isinstance(value, Sequence) else "")


def _empty_state() -> Any:
    """Flower's own RecordDict where the user's code has loaded flwr, else a dict."""
    record_dict = getattr(sys.modules.get("flwr.app"), "RecordDict", None)
    return record_dict() if record_dict is not None else {}
