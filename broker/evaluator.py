"""The user's app beside the broker: it measures versions, and may make the first one, in a child process.

Rules that hold here:

- The app never runs in the broker's process. Whatever it does there, crash, hang, eat memory or print, costs
  the broker one evaluation and nothing else.
- The child is kept, so that an app's imports are paid once. An app that does not import is found out before
  the broker serves. After a failure the child is killed, and the next evaluation starts another.
- The child finds the modules that the broker's process would find.
"""

import collections
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedmq.fedcore.config import Config
from fedmq.fedcore.errors import ClientAppError

from .events import Evaluate, Evaluated
from .store.versions import VersionStore
from .tasks import task_seed
from .threads import Notice

INITIAL_DEADLINE_S = 600.0
"""How long an app may take to import, or to make a first model."""
REPLY_MAX = 1 << 20
"""Bytes of a reply; metrics are at most 64 numbers."""
_NAME = "broker"
"""Stands for a worker's name where seeds derive from one."""


class AppProcess:
    """A child process that holds one app; used by one thread at a time.

    Parameters
    ----------
    spec : str
        ``module:attribute``.
    """

    def __init__(self, spec: str) -> None:
        self._spec = spec
        self._child: subprocess.Popen[bytes] | None = None
        self._ended = False

    def load(self) -> None:
        """Have the app imported and made, which it is only once.

        Raises
        ------
        ClientAppError
            When it cannot be.
        """
        self.ask({"do": "load"}, INITIAL_DEADLINE_S)

    def ask(self, request: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        """Have the app do something, and wait for what came of it.

        Raises
        ------
        ClientAppError
            When it does not import, raises, breaks its contract, dies, or takes too long.
        """
        if self._ended:
            raise ClientAppError("the broker is stopping")
        child = self._child if self._child is not None and self._child.poll() is None else self._start()
        try:
            reply = self._exchange(child, json.dumps(request).encode() + b"\n", deadline_s)
        except BaseException:
            self.close()
            raise
        if "error" in reply:
            raise ClientAppError(str(reply["error"]))
        return reply

    def kill(self) -> None:
        """End the child and start no other, from any thread: whoever waits for it is told."""
        self._ended = True
        child = self._child
        if child is not None:
            child.kill()

    def close(self) -> None:
        """End the child, whatever it is doing."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        self.close()
        path = os.pathsep.join([str(Path.cwd()), *(entry for entry in sys.path if entry)])
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "fedmq.broker.app_child", self._spec],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": path},
                # Ctrl-C at a terminal is for the broker, which ends the child when it is done.
                start_new_session=True,
            )
        except OSError as error:
            raise ClientAppError(f"no process for app {self._spec!r} can be started: {error}") from error
        return self._child

    def _exchange(
        self, child: "subprocess.Popen[bytes]", request: bytes, deadline_s: float
    ) -> dict[str, Any]:
        assert child.stdin is not None
        assert child.stdout is not None
        ends = time.monotonic() + deadline_s
        line = bytearray()
        try:
            child.stdin.write(request)
            while not line.endswith(b"\n"):
                ready, _, _ = select.select([child.stdout], [], [], max(ends - time.monotonic(), 0.0))
                if not ready:
                    raise ClientAppError(f"app {self._spec!r} did not finish within {deadline_s:g} s")
                piece = os.read(child.stdout.fileno(), 1 << 16)
                if not piece:
                    raise ClientAppError(f"app {self._spec!r} ended its process ({_ending(child)})")
                line += piece
                if len(line) > REPLY_MAX:
                    raise ClientAppError(f"app {self._spec!r} gave more than {REPLY_MAX} bytes as its result")
        except BrokenPipeError:
            raise ClientAppError(f"app {self._spec!r} ended its process ({_ending(child)})") from None
        reply = json.loads(line)
        assert isinstance(reply, dict)
        return reply


class Judge:
    """What the evaluation thread does: versions to metrics.

    Parameters
    ----------
    config : Config
    versions : VersionStore
        Where the versions' files are.
    app : AppProcess
        Of `evaluate.app`; closed by whoever made it.
    """

    def __init__(self, config: Config, versions: VersionStore, app: AppProcess) -> None:
        self._config = config
        self._versions = versions
        self._app = app

    def __call__(self, jobs: collections.deque[Evaluate]) -> Iterable[Notice]:
        """Evaluate each."""
        while jobs:
            version = jobs.popleft().version
            deadline_s = self._config.evaluate.deadline_s
            request = {
                "do": "evaluate",
                "file": str(self._versions.path(version)),
                "version": version,
                "seed": task_seed(self._config.federation.seed, _NAME, version),
                "config": self._config.task,
                "deadline_s": deadline_s,
            }
            try:
                reply = self._app.ask(request, deadline_s)
            except ClientAppError as error:
                yield Evaluated(version, None, reason=str(error))
            else:
                yield Evaluated(version, reply["metrics"], reply["examples"])


def make_initial(config: Config, target: Path) -> None:
    """Have the app that `model.initial` names write version 0's weights as a safetensors file.

    Raises
    ------
    ClientAppError
        When it does not import, raises, breaks its contract, dies, or takes longer than ten minutes.
    """
    app = AppProcess(config.model.initial)
    request = {
        "do": "initial",
        "file": str(target),
        "version": 0,
        "seed": task_seed(config.federation.seed, _NAME, 0),
        "config": config.task,
        "deadline_s": INITIAL_DEADLINE_S,
    }
    try:
        app.ask(request, INITIAL_DEADLINE_S)
    finally:
        app.close()


def _ending(child: "subprocess.Popen[bytes]") -> str:
    """How a process ended, in words."""
    try:
        code = child.wait(1.0)
    except subprocess.TimeoutExpired:
        return "it closed its output"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
