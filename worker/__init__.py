"""The worker: fetches a model, trains on data that never leaves it, offers updates.

    from fedmq.worker import Evaluation, Fit, Worker

What is named here is loaded when it is first used, so that importing the package costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import ClientApp, Evaluation, Fit, TaskContext
    from .events import Moment
    from .transport import CurveKeys
    from .worker import Worker

__all__ = ["ClientApp", "CurveKeys", "Evaluation", "Fit", "Moment", "TaskContext", "Worker"]

_HOMES = {
    "ClientApp": "client",
    "CurveKeys": "transport",
    "Evaluation": "client",
    "Fit": "client",
    "Moment": "events",
    "TaskContext": "client",
    "Worker": "worker",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
