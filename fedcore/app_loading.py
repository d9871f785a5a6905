"""From ``module:attribute`` to an app.

Rules that hold here:

* An app is named by whoever starts the process, never by a peer.
* Other shapes of apps than our own come in through adapters, which the caller brings.
* Whatever goes wrong is a `ClientAppError` that names the app, and says what to look at.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, cast

from .apps import ClientApp, kind_of, some_of
from .errors import ClientAppError

__all__ = ["Adapter", "import_attribute", "load_app", "resolve_app"]

_KINDS = ("fit", "evaluate")

Adapter: TypeAlias = Callable[[object, dict[str, str]], ClientApp | None]
"""Turns a target that it knows, with the settings of a node, into a client app; others give None."""


def load_app(
    spec: str, *, node: Mapping[str, str] | None = None, adapters: Sequence[Adapter] = ()
) -> ClientApp:
    """Import the client app that ``--app module:attribute`` names.

    Parameters
    ----------
    spec : str
        ``module:attribute``. The current folder is searched as well, as ``python`` itself does.
    node : mapping of str to str, optional
        The worker's ``--node`` settings, for factories and for adapters.
    adapters : sequence of Adapter
        What else than a client app may be named.

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
    target = import_attribute(spec, "client app")
    try:
        return resolve_app(target, node=node, adapters=adapters)
    except ClientAppError as error:
        raise ClientAppError(f"cannot load the client app {spec!r}: {error}") from error


def import_attribute(spec: str, what: str) -> object:
    """Import what ``module:attribute`` names; the current folder is searched as well.

    Parameters
    ----------
    spec : str
    what : str
        What it should be, for error messages.

    Raises
    ------
    ClientAppError
        When the module does not import, or has no such attribute.
    """
    module_name, colon, attribute = spec.partition(":")
    cannot = f"cannot load the {what} {spec!r}: "
    if not (module_name and colon and attribute):
        raise ClientAppError(cannot + "expected module:attribute, for example my_project.training:app")
    if module_name.endswith(".py") or "/" in module_name or os.sep in module_name:
        dotted = module_name.removesuffix(".py").replace(os.sep, ".").replace("/", ".").strip(".")
        raise ClientAppError(cannot + f"give the module's name, not its path: {dotted}:{attribute}")
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    try:
        target: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        ours = error.name is not None and (
            module_name == error.name or module_name.startswith(error.name + ".")
        )
        hint = "; look at the current folder and PYTHONPATH" if ours else f", which {module_name} imports"
        raise ClientAppError(cannot + f"no module named {error.name!r}{hint}") from error
    except (
        Exception,
        SystemExit,
    ) as error:  # whatever the user's module does when imported is an import that fails
        raise ClientAppError(
            cannot + f"importing {module_name} raised {type(error).__name__}: {error}"
        ) from error
    for part in attribute.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            public = (
                [name for name in vars(target) if not name.startswith("_")]
                if hasattr(target, "__dict__")
                else []
            )
            raise ClientAppError(
                cannot + f"{module_name} has no attribute {part!r}; it has {some_of(sorted(public), 12)}"
            ) from None
    return target


def resolve_app(
    target: object, *, node: Mapping[str, str] | None = None, adapters: Sequence[Adapter] = ()
) -> ClientApp:
    """Turn what a user hands over into a client app.

    Parameters
    ----------
    target : object
        One of: an object with `fit` and `evaluate`, or those of the two that its `kinds` names; a class or a
        function that makes one, taking nothing or `node`, the worker's settings; what an adapter knows, or what
        makes such a thing.
    node : mapping of str to str, optional
        The worker's ``--node`` settings.
    adapters : sequence of Adapter
        Asked in order, before and after a class or function has made its object.

    Raises
    ------
    ClientAppError
        When it is none of these, or making it raised.
    """
    settings = dict(node or {})
    if (app := _adapted(target, settings, adapters)) is not None:
        return app
    if inspect.isclass(target) or (callable(target) and not _has_methods(target)):
        target = _make(cast(Callable[..., object], target), settings)
        if (app := _adapted(target, settings, adapters)) is not None:
            return app
    if _has_methods(target):
        return cast(ClientApp, target)
    raise ClientAppError(
        f"{kind_of(target)} has no methods fit(weights, task) and evaluate(weights, task); one that only fits says so: "
        'kinds = ("fit",)'
    )


def _adapted(target: object, node: dict[str, str], adapters: Sequence[Adapter]) -> ClientApp | None:
    return next((app for adapt in adapters if (app := adapt(target, node)) is not None), None)


def _has_methods(target: object) -> bool:
    """Whether it does what it says that it does (`kinds`): both, where it says nothing that makes sense."""
    said = getattr(target, "kinds", ())
    named = [kind for kind in _KINDS if isinstance(said, tuple | list) and kind in said]
    return all(callable(getattr(target, kind, None)) for kind in named or _KINDS)


def _make(factory: Callable[..., object], node: dict[str, str]) -> object:
    """Call a class or factory with what it asks for: nothing, or the worker's settings."""
    name = getattr(factory, "__qualname__", kind_of(factory))
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        parameters = []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p for p in parameters if p.default is p.empty and p.kind not in variadic]
    wants_node = [p for p in parameters if p.name == "node"]
    if len(required) > 1 or (wants_node and required and required[0].name != "node"):
        asked = ", ".join(p.name for p in required)
        raise ClientAppError(
            f"{name} must take no argument or node, a dict of this worker's settings; it takes {asked}"
        )
    try:
        if wants_node and wants_node[0].kind is not inspect.Parameter.POSITIONAL_ONLY:
            return factory(node=node)
        return factory(node) if required else factory()
    except ClientAppError:
        raise
    except Exception as error:  # the user's code: whatever it raises is his to read
        raise ClientAppError(
            f"{name}({'node' if required else ''}) raised {type(error).__name__}: {error}"
        ) from error
