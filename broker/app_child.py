"""The child process that runs a user's app beside the broker: ``python -m fedmq.broker.app_child APP``.

It reads one request a line from stdin and writes one reply a line to what was its stdout; whatever the app
prints goes to stderr. When stdin ends, because the broker did, it ends.
"""

import json
import mmap
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedmq.fedcore import model_file
from fedmq.fedcore.app_loading import load_app
from fedmq.fedcore.apps import ClientApp, TaskContext, check_evaluation, kind_of, make_initial
from fedmq.fedcore.errors import ClientAppError, FedmqError
from fedmq.fedcore.layout import Layout
from fedmq.fedcore.state_dict import unpack


def main(spec: str) -> None:
    """Serve requests until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the app's prints must not mix with the replies
    app: ClientApp | None = None
    for line in sys.stdin:
        try:
            if app is None:
                app = load_app(spec)
            reply = answer(app, json.loads(line))
        except FedmqError as error:
            reply = {"error": str(error)}
        except Exception as error:  # the user's code: whatever it raises is his to read
            traceback.print_exc()
            reply = {"error": f"app {spec!r} raised {type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


def answer(app: ClientApp, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request.

    Parameters
    ----------
    app : ClientApp
    request : dict
        ``do`` (``"load"``, which is done by now, to evaluate later; ``"evaluate"`` the version in `file`, or write an
        ``"initial"`` one there), and what a `TaskContext` holds.
    """
    if request["do"] == "load":
        if not callable(getattr(app, "evaluate", None)):
            raise ClientAppError(f"{kind_of(app)} has no method evaluate(weights, task)")
        return {}
    kind, do = _KINDS[request["do"]]
    task = TaskContext(
        kind=kind,
        version=request["version"],
        seed=request["seed"],
        config=request["config"],
        deadline_s=request["deadline_s"],
    )
    return do(app, task, Path(request["file"]))


def _evaluate(app: ClientApp, task: TaskContext, path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    weights = unpack(Layout.from_file_prefix(whole, len(whole)), whole)
    result = check_evaluation(app.evaluate(weights, task))
    return {"metrics": result.metrics, "examples": result.examples}


def _initial(app: ClientApp, task: TaskContext, path: Path) -> dict[str, Any]:
    model = model_file.from_arrays(make_initial(app, task))
    model_file.write_chunks(path, model.chunks, fsync=False)
    return {}


_Do = Callable[[ClientApp, TaskContext, Path], dict[str, Any]]
_KINDS: dict[str, tuple[Any, _Do]] = {"evaluate": ("evaluate", _evaluate), "initial": ("init", _initial)}

if __name__ == "__main__":
    main(sys.argv[1])
