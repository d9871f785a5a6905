"""The arithmetic of fedmq on flat vectors: sums, norms, noise, encodings, optimizers.

Two backends give the same bits: `_native`, compiled from ``csrc/``, and the numpy modules `reference`, which
define them and take over where nothing was compiled.

Rules
-----
- Call through the module, ``kernels.sum_squares(…)``: then there is nothing between you and the backend's own
  function, and `use` reaches you.
- A function that the native backend lacks comes from the reference; ``info()["python_functions"]`` names
  those. The reference is imported when the first of its functions is asked for: an edge box with compiled kernels
  does not pay for it.
- Payloads are any contiguous buffer, at any alignment. Arguments that are wrong raise `TypeError` or
  `ValueError`, say which one, what it was and what it may be, and nothing has been written.
- The environment variable ``FEDMQ_KERNELS`` is ``python`` to use numpy, ``native`` to refuse to run without
  the compiled backend; otherwise the best there is.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import ConfigError

if TYPE_CHECKING:
    from .reference import (
        Accumulator,
        Norm,
        adagrad_,
        adam_,
        add_gaussian_,
        clip_,
        decode,
        encode,
        fadas_,
        median,
        momentum_,
        pairwise_sq_distances,
        sgd_,
        sum_squares,
        trimmed_mean,
        weighted_mean,
        yogi_,
    )
    from .reference_sums import dyadic, frac_bits_for

__all__ = [
    "Accumulator",
    "Norm",
    "adagrad_",
    "adam_",
    "add_gaussian_",
    "backend",
    "clip_",
    "decode",
    "dyadic",
    "encode",
    "fadas_",
    "frac_bits_for",
    "info",
    "median",
    "momentum_",
    "pairwise_sq_distances",
    "sgd_",
    "sum_squares",
    "trimmed_mean",
    "use",
    "weighted_mean",
    "yogi_",
]

backend: str = "python"
"""Which backend is in use: "native" or "python"."""

_VARIABLE: Final = "FEDMQ_KERNELS"


def _load() -> tuple[ModuleType | None, str]:
    """The compiled module, or why there is none."""
    try:
        return importlib.import_module("._native", __name__), ""
    except ModuleNotFoundError:
        return None, "not compiled: this is a pure Python install"
    except ImportError as error:  # built, but does not load here: another Python, a missing symbol
        return None, f"does not load: {error}"


_native, _reason = _load()


_FUNCTIONS: Final = frozenset(__all__) - {"backend", "info", "use"}


def _bind(name: str) -> None:
    """Make this module's functions those of a backend; what it lacks, `__getattr__` takes from the reference."""
    source = _native if name == "native" else None
    here = globals()
    for function in _FUNCTIONS:
        found = getattr(source, function, None)
        if found is None:
            here.pop(function, None)
        else:
            here[function] = found
    here["backend"] = name


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = _of_reference(name)
    return found


def _of_reference(name: str) -> Any:
    from . import reference, reference_sums

    return getattr(reference, name, None) or getattr(reference_sums, name)


def _choose() -> str:
    wanted = os.environ.get(_VARIABLE, "")
    if wanted not in ("", "native", "python"):
        raise ConfigError(f"{_VARIABLE} must be native or python, or not be set; it is {wanted!r}")
    if wanted == "native" and _native is None:
        raise ConfigError(f"{_VARIABLE} is native, but the native kernels cannot be used: {_reason}")
    if _native is None or wanted == "python":
        return "python"
    try:
        _native.info()  # reads FEDMQ_ISA and FEDMQ_NUM_THREADS: what is wrong with them is said now, not in a fold
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return "native"


_bind(_choose())


def info() -> dict[str, Any]:
    """Return what computes: for logs, reports and ``fedmq info``.

    Returns
    -------
    dict
        ``backend`` ("native" or "python"), ``isa`` (the instruction set in use), ``threads`` (how many a
        kernel uses at most), ``version`` (of the backend's library), ``compiler``, ``python_functions``
        (names that come from the reference), ``reason`` (why the native backend is not there; empty when it
        is).
    """
    if _native is not None and backend == "native":
        details: dict[str, Any] = dict(_native.info())
    else:
        details = {
            "isa": "numpy",
            "threads": 1,
            "version": np.__version__,
            "compiler": sys.implementation.name + " " + sys.version.split()[0],
        }
    from . import reference

    borrowed = [name for name in reference.__all__ if backend == "python" or not hasattr(_native, name)]
    return details | {"backend": backend, "python_functions": borrowed, "reason": _reason}


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Compute with one backend inside a ``with`` block, in the whole process: for tests and benchmarks.

    Parameters
    ----------
    name : {"native", "python"}
        The backend.

    Raises
    ------
    ValueError
        If there is no such backend here.

    Examples
    --------
    >>> from fedmq.fedcore import kernels
    >>> with kernels.use("python"):
    ...     kernels.backend
    'python'
    """
    if name not in ("native", "python"):
        raise ValueError(f"backend must be native or python, not {name!r}")
    if name == "native" and _native is None:
        raise ValueError(f"the native kernels cannot be used: {_reason}")
    before = backend
    _bind(name)
    try:
        yield
    finally:
        _bind(before)
