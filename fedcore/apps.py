"""A user's app, as both sides know it: what it gets, what it returns, and how that is checked.

A worker trains with an app (`fedmq.worker.client` is what its author reads), a broker may measure versions
with one in a child process. Rules that hold here:

* What an app returns is checked before anything is done with it; nothing is broadcast, padded or left out
  silently.
* What an app raises is its author's to read, and passes.
* This module imports numpy and msgspec, no framework.
"""

import inspect
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias, cast, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from . import wire
from .errors import ClientAppError, TaskCancelled

__all__ = [
    "MAX_EXAMPLES",
    "MAX_METRICS",
    "ClientApp",
    "Evaluation",
    "Fit",
    "TaskContext",
    "Weights",
    "check_evaluation",
    "check_fit",
    "check_initial",
    "kind_of",
    "make_initial",
    "some_of",
]

Weights: TypeAlias = dict[str, NDArray[Any]]

MAX_METRICS: Final = wire.LIST_MAX
MAX_NAME_BYTES: Final = wire.TEXT_MAX
MAX_EXAMPLES: Final = 1_000_000_000
# Elements looked at in one go, so that a check needs no second copy of a tensor.
_FINITE_BLOCK: Final = 1 << 16


class Fit(msgspec.Struct, frozen=True):
    """What a `fit` task returns.

    Parameters
    ----------
    weights : dict[str, ndarray]
        The trained weights: the same names and shapes as the app was given.
    examples : int
        How many examples they were trained on, 1 … 1e9. Weights the update.
    metrics : dict[str, float]
        At most 64 finite numbers, e.g. ``{"loss": 0.31}``.
    """

    weights: Weights
    examples: int
    metrics: dict[str, float] = {}


class Evaluation(msgspec.Struct, frozen=True):
    """What an `evaluate` task returns.

    Parameters
    ----------
    examples : int
        How many examples the metrics were averaged over, 1 … 1e9.
    metrics : dict[str, float]
        At most 64 finite numbers; ``"loss"`` must be among them.
    """

    examples: int
    metrics: dict[str, float]


def _never() -> bool:
    return False


class TaskContext(msgspec.Struct, frozen=True):
    """What an app may know about the task that it works on.

    Parameters
    ----------
    kind : {"fit", "evaluate", "init"}
        What is asked for.
    version : int
        The model version that `weights` are.
    seed : int
        An unsigned 64-bit integer that depends on the federation's seed, the worker's name and the version
        alone. Seed generators with it.
    config : dict
        The federation's ``[task]`` table (learning rate, epochs …), as it stands in the broker's TOML file.
    deadline_s : float
        Seconds, counted from the start, in which a result is still wanted; 0 for no deadline.
    node : dict[str, str]
        This worker's own ``--node key=value`` settings.
    state : Path or None
        A folder of the app's own inside the worker's state folder: what lies there outlives the process, and no other
        process has it meanwhile. None where nothing would outlive it: in a worker without a state folder, and
        beside the broker.

    Examples
    --------
    >>> task = TaskContext(kind="fit", config={"lr": 0.1})
    >>> task.config["lr"], task.cancelled
    (0.1, False)
    """

    kind: Literal["fit", "evaluate", "init"]
    version: int = 0
    seed: int = 0
    config: dict[str, Any] = {}
    deadline_s: float = 0.0
    node: dict[str, str] = {}
    state: Path | None = None
    is_cancelled: Callable[[], bool] = _never

    @property
    def cancelled(self) -> bool:
        """Whether the result is no longer wanted. May be asked from any thread, at any time."""
        return self.is_cancelled()

    def check_cancelled(self) -> None:
        """Leave the app if the result is no longer wanted; call it between batches.

        Raises
        ------
        TaskCancelled
            When the broker cancelled the task, or the worker is stopping. Let it pass.
        """
        if self.is_cancelled():
            raise TaskCancelled(f"the {self.kind} task on version {self.version} is no longer wanted")


@runtime_checkable
class ClientApp(Protocol):
    """The user's code in a worker.

    Two things are optional and not listed here: `initial`, which makes version 0, and an attribute `kinds`, such as
    ``("fit",)``, where it does not take both kinds of task.
    """

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        """Train from `weights` on this worker's data."""
        ...

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        """Measure `weights` on this worker's data."""
        ...


# What an app returned, checked


def check_fit(result: object, base: Mapping[str, NDArray[Any]]) -> Fit:
    """Return `result` in its normal form, or say what is wrong with it.

    Parameters
    ----------
    result : object
        What the app's `fit` returned.
    base : mapping of str to ndarray
        The weights that it was given, or an untouched copy: only names and shapes are read.

    Returns
    -------
    Fit
        With arrays in the order of `base`, a Python int and Python floats. Floats keep the width that the app
        gave them: float64 results lose nothing before the base is subtracted.

    Raises
    ------
    ClientAppError
        When `result` is not a `Fit`; when a tensor is missing, new, of another shape, or holds NaN or Inf;
        when `examples` or a metric is out of range.
    """
    if not isinstance(result, Fit):
        raise ClientAppError(
            f"fit must return fedmq.worker.client.Fit(weights, examples), got {kind_of(result)}"
        )
    if not isinstance(result.weights, Mapping):
        raise ClientAppError(f"Fit.weights must be a dict of name to array, got {kind_of(result.weights)}")
    missing = [name for name in base if name not in result.weights]
    surplus = [str(name) for name in result.weights if name not in base]
    if missing or surplus:
        raise ClientAppError(
            "Fit.weights must hold the very tensors that fit was given"
            + (f"; missing: {some_of(missing)}" if missing else "")
            + (f"; not in the model: {some_of(surplus)}" if surplus else "")
        )
    weights = {name: _check_array(name, result.weights[name], like.shape) for name, like in base.items()}
    return Fit(weights, _check_examples("Fit", result.examples), _check_metrics("Fit", result.metrics))


def check_evaluation(result: object) -> Evaluation:
    """Return what an app's `evaluate` returned in its normal form, or say what is wrong with it.

    Raises
    ------
    ClientAppError
        When `result` is not an `Evaluation`, has no ``loss``, or `examples` or a metric is out of range.
    """
    if not isinstance(result, Evaluation):
        raise ClientAppError(
            "evaluate must return fedmq.worker.client.Evaluation(examples, metrics), got " + kind_of(result)
        )
    metrics = _check_metrics("Evaluation", result.metrics)
    if "loss" not in metrics:
        raise ClientAppError(f'Evaluation.metrics must hold "loss"; it holds {some_of(sorted(metrics))}')
    return Evaluation(_check_examples("Evaluation", result.examples), metrics)


def make_initial(app: object, task: TaskContext) -> Weights:
    """Ask an app for the weights of version 0.

    Parameters
    ----------
    app : object
        A client app with a method ``initial()`` or ``initial(task)``.
    task : TaskContext
        Of kind ``"init"``; its seed and config are what an app may depend on.

    Raises
    ------
    ClientAppError
        When the app has no such method, or returns something else than weights. What it raises passes.
    """
    initial = getattr(app, "initial", None)
    if not callable(initial):
        raise ClientAppError(
            f"{kind_of(app)} has no method initial(), so it cannot make the first model; "
            "add one, or let [model] initial name a safetensors file"
        )
    return check_initial(initial(task) if inspect.signature(initial).parameters else initial())


def check_initial(result: object) -> Weights:
    """Return the weights that an app's `initial` made, as arrays, or say what is wrong with them.

    Raises
    ------
    ClientAppError
        When `result` is not a non-empty dict of names to finite numeric arrays.
    """
    if not isinstance(result, Mapping) or not result:
        raise ClientAppError(f"initial must return a dict of name to array, got {kind_of(result)}")
    weights: Weights = {}
    for name, value in result.items():
        if not isinstance(name, str) or not name:
            raise ClientAppError(f"initial: names of tensors must be non-empty str, got {name!r}")
        weights[name] = _check_array(name, value, None)
    return weights


def _check_array(name: str, value: object, shape: tuple[int, ...] | None) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # RuntimeError: a torch tensor that wants gradients
        raise ClientAppError(f"tensor {name!r}: {kind_of(value)} is not an array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise ClientAppError(f"tensor {name!r} must be of numbers, got dtype {array.dtype}")
    if shape is not None and array.shape != shape:
        raise ClientAppError(f"tensor {name!r} must have the shape {shape}, got {array.shape}")
    if not _all_finite(array):
        raise ClientAppError(
            f"tensor {name!r} holds NaN or Inf: the training diverged (a lower rate may help)"
        )
    return array


def _all_finite(array: NDArray[Any]) -> bool:
    if array.dtype.kind != "f":
        return True
    if not array.flags.c_contiguous:
        return bool(np.isfinite(array).all())
    flat = array.reshape(-1)
    return all(np.isfinite(flat[i : i + _FINITE_BLOCK]).all() for i in range(0, flat.size, _FINITE_BLOCK))


def _check_examples(where: str, value: object) -> int:
    try:
        examples = operator.index(cast(Any, value))
    except TypeError:
        raise ClientAppError(f"{where}.examples must be an int, got {value!r}") from None
    if isinstance(value, bool) or not 1 <= examples <= MAX_EXAMPLES:
        raise ClientAppError(f"{where}.examples must be in 1 … {MAX_EXAMPLES:.0e}, got {value!r}")
    return examples


def _check_metrics(where: str, metrics: object) -> dict[str, float]:
    if not isinstance(metrics, Mapping):
        raise ClientAppError(f"{where}.metrics must be a dict of name to number, got {kind_of(metrics)}")
    if len(metrics) > MAX_METRICS:
        raise ClientAppError(f"{where}.metrics may hold {MAX_METRICS} entries, got {len(metrics)}")
    checked: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
            raise ClientAppError(
                f"{where}.metrics: names must be str of 1 … {MAX_NAME_BYTES} bytes, got {name!r}"
            )
        if isinstance(value, str | bytes | complex):  # float("1") would pass
            raise ClientAppError(f"{where}.metrics[{name!r}] must be a number, got {kind_of(value)}")
        try:
            number = float(cast(Any, value))
        except (TypeError, ValueError, OverflowError):
            raise ClientAppError(
                f"{where}.metrics[{name!r}] must be a number, got {kind_of(value)}"
            ) from None
        if not np.isfinite(number):
            raise ClientAppError(f"{where}.metrics[{name!r}] must be finite, got {number}")
        checked[name] = number
    return checked


def kind_of(value: object) -> str:
    """The type of a value, for an error message."""
    return "None" if value is None else f"{type(value).__module__}.{type(value).__qualname__}"


def some_of(names: list[str], limit: int = 5) -> str:
    """The first of some names, for an error message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(repr(name) for name in names[:limit]) or "nothing") + more
