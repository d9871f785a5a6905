"""What a user implements so that a worker can train: a client app.

A client app is any object with two methods, over plain numpy arrays:

    class App:
        def fit(self, weights, task):       # -> Fit(trained weights, examples, metrics)
        def evaluate(self, weights, task):  # -> Evaluation(examples, {"loss": …})
        def initial(self):                  # optional -> the weights of version 0; may take the task

Rules that hold here:

* `weights` is the app's own writable copy. Training in place is allowed.
* Every tensor that came in goes out again, under its name and in its shape. Nothing is broadcast, padded
  or left out silently.
* What an app returns is checked here, in the worker, so that its author reads the mistake in his own log.
* All that is random in an app should come from `task.seed`; then a run can be repeated.
* No framework is imported. Adapters are loaded when they are needed.
"""

from collections.abc import Mapping

from fedmq.fedcore import app_loading
from fedmq.fedcore.apps import (
    MAX_EXAMPLES,
    MAX_METRICS,
    ClientApp,
    Evaluation,
    Fit,
    TaskContext,
    Weights,
    check_evaluation,
    check_fit,
    check_initial,
    make_initial,
)

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
    "load_app",
    "make_initial",
    "resolve_app",
]


def load_app(spec: str, *, node: Mapping[str, str] | None = None) -> ClientApp:
    """Import the client app that ``--app module:attribute`` names.

    Parameters
    ----------
    spec : str
        ``module:attribute``. The current folder is searched as well, as ``python`` itself does.
    node : mapping of str to str, optional
        The worker's ``--node`` settings, for factories and for Flower's ``context.node_config``.

    Raises
    ------
    ClientAppError
        When the module does not import, has no such attribute, or that is no client app; see `resolve_app`.

    Examples
    --------
    >>> load_app("nowhere:app")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fedmq.fedcore.errors.ClientAppError: cannot load the client app 'nowhere:app': no module named ...
    """
    return app_loading.load_app(spec, node=node, adapters=(_flower,))


def resolve_app(target: object, *, node: Mapping[str, str] | None = None) -> ClientApp:
    """Turn what a user hands over into a client app.

    Parameters
    ----------
    target : object
        One of: an object with `fit` and `evaluate`; a class or a function that makes one, taking nothing or
        `node`, the worker's settings; Flower's ``NumPyClient`` or ``client_fn(context)``, which run as they
        are.
    node : mapping of str to str, optional
        The worker's ``--node`` settings.

    Raises
    ------
    ClientAppError
        When it is none of these, or making it raised.
    """
    return app_loading.resolve_app(target, node=node, adapters=(_flower,))


def _flower(target: object, node: dict[str, str]) -> ClientApp | None:
    from .adapters import flower

    if flower.is_client_fn(target) or flower.is_client_app(target) or flower.is_client(target):
        return flower.wrap(target, node=node)
    return None
