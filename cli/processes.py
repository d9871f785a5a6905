"""A whole federation on this machine: one broker process and its worker processes.

    with LocalFederation(folder, tables) as federation:
        federation.start_broker()
        federation.start_workers("module:app", [{"shard": "1"}, {"shard": "2"}])
        federation.wait(show)

Rules that hold here:

- What runs are the commands that anybody types, `fedmq broker …` and `fedmq worker …`, on this Python. Their
  logs lie in the folder, beside the state folders.
- No child outlives its federation: leaving the `with` block ends them all, in order where they let us, and a
  child whose starter was killed ends by itself (`attended`).
- A child is ended through the handle that started it, so never a stranger that got its pid later.
- A child that ends before its time is one clear error, with the end of its log.
- A broker may be killed and started again on the same folder: it listens where its workers look for it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

import click

from fedmq.fedcore import config
from fedmq.fedcore.errors import ConnectError, ProcessError, StateError

__all__ = ["ONE_THREAD", "Child", "LocalFederation", "leave_on_signals"]

Status = dict[str, Any]

START_S: Final = 120.0
"""How long a broker may take to listen: with privacy it calibrates its noise first."""
FAREWELL_S: Final = 15.0
"""How long one side may outlive the other when a federation ends."""
GRACE_S: Final = 8.0
"""How long a child may take to end after a SIGTERM; a worker leaves its app behind after five seconds."""
TAIL: Final = 12
"""Lines of a log that are shown when its process died."""
LIVES: Final = 10
"""How often a broker is started where it is started again."""
WATCH_S: Final = 0.02
ANSWER_S: Final = 0.5
"""How long a broker may take to say how it is. One that is ending never does, and nobody should wait for it."""

ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""Variables that give a process one thread for its linear algebra, whatever the machine. The workers share it, and
with more threads than cores they fight; matrices as small as the demo's are slower with two threads than with one.
"""


class Child:
    """One `fedmq` command in a process of its own.

    Parameters
    ----------
    name : str
        What errors call it.
    arguments : sequence of str
        Of the command.
    log : Path
        Where its output goes; appended to.
    environment : mapping of str to str
        Its whole environment.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = log
        self._arguments = arguments
        self._environment = environment
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fedmq.cli.attended", *arguments],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                cwd=log.parent,
                env=dict(environment),
                # Ctrl-C at a terminal is for us, who then end our children in order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, below zero for a signal; None while it runs."""
        return self._process.poll()

    def send(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        self._process.send_signal(number)

    def join(self, timeout_s: float) -> bool:
        """Wait until it has ended; whether it did in time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        if self._process.stdin is not None:
            self._process.stdin.close()
        return True

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self.join(GRACE_S)

    def again(self) -> "Child":
        """The same command once more, after this one has ended."""
        return Child(self.name, self._arguments, self.log, self._environment)

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        code = self.code
        return (
            f"ended with exit code {code}" if code is None or code >= 0 else f"was killed by {_named(code)}"
        )

    def failure(self) -> ProcessError:
        """Why it is bad that it ended; shows the end of its log where that says more than one line."""
        ending = self.ending
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
        # A command says what is wrong in its last line; anything else has to be seen as a whole.
        if lines and lines[-1].startswith("fedmq: "):
            return ProcessError(f"{self.name} {ending}: {lines[-1].removeprefix('fedmq: ')}")
        for line in lines:
            click.echo(f"  {self.name} | {line}", err=True)
        return ProcessError(f"{self.name} {ending}{'; the end of its log is above' if lines else ''}")


class LocalFederation:
    """A broker and its workers, each a process.

    Parameters
    ----------
    folder : Path
        Made here; holds federation.toml, every state folder and every log.
    tables : mapping
        What stands in federation.toml; the state folder and, unless given, the address are filled in.
    environment : mapping of str to str, optional
        Variables on top of this process's own.
    """

    def __init__(
        self,
        folder: Path,
        tables: Mapping[str, Mapping[str, Any]],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.state = self.folder / "state"
        self.endpoint = ""
        self.broker: Child | None = None
        self.workers: list[Child] = []
        self._tables = {name: dict(table) for name, table in tables.items()}
        self._environment = {**os.environ, **ONE_THREAD, **(environment or {})}
        self._uneven_since: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_broker(self) -> None:
        """Start the broker, or start it again where it was killed; returns when workers can connect.

        Raises
        ------
        ProcessError
            When it ends instead.
        """
        path = self._write_config()
        announced = self.state / "endpoint"
        announced.unlink(missing_ok=True)  # a killed broker leaves it behind
        self.broker = self._spawn("broker", ["broker", str(path)])
        ends = time.monotonic() + START_S
        while not (endpoint := _first_line(announced)):
            if self.broker.code is not None:
                raise self.broker.failure()
            if time.monotonic() > ends:
                raise ProcessError(
                    f"the broker does not listen after {START_S:g} s; its log: {self.broker.log}"
                )
            time.sleep(WATCH_S)
        self.endpoint = endpoint

    def start_workers(
        self, app: str, nodes: Sequence[Mapping[str, str]], *, slots: int = 2, log_level: str = "info"
    ) -> None:
        """Start one worker for each of `nodes`, its ``--node`` settings: worker-1, worker-2, …

        Nobody gets a task before all are connected. Else the first could finish a short federation alone, and
        the others would look for a broker that has ended.

        Raises
        ------
        ProcessError
            When a child ends instead, or the workers do not all connect.
        """
        from fedmq.broker import control

        control.request(self.state, "pause")
        for node in nodes:
            name = f"worker-{len(self.workers) + 1}"
            settings = [part for key, value in node.items() for part in ("--node", f"{key}={value}")]
            arguments = ["worker", "--connect", self.endpoint, "--app", app, "--name", name, "--state", name]
            arguments += ["--slots", str(slots), "--log-level", log_level]
            self.workers.append(self._spawn(name, [*arguments, *settings]))
        ends = time.monotonic() + START_S
        while not self._all_connected():
            self.check()
            if time.monotonic() > ends:
                raise ProcessError(
                    f"not every worker has connected after {START_S:g} s; their logs: {self.folder}"
                )
            time.sleep(WATCH_S)
        control.request(self.state, "resume")

    def _all_connected(self) -> bool:
        status = self.status()
        if status is None:
            return False
        here = {worker["name"] for worker in status["workers"] if worker["state"] not in ("gone", "evicted")}
        return all(worker.name in here for worker in self.workers)

    def status(self) -> Status | None:
        """What the broker says of itself; None while it starts or ends."""
        from fedmq.broker import control

        try:
            return control.request(self.state, "status", ANSWER_S)
        except (ConnectError, StateError):
            return None

    def wait(
        self,
        look: Callable[[Status], None],
        interval_s: float = 0.2,
        *,
        revived: Callable[[str], None] | None = None,
    ) -> None:
        """Wait until the federation is finished and every child has ended.

        Parameters
        ----------
        look : callable
            Called with a status every `interval_s` seconds.
        revived : callable, optional
            Where it is given, a broker that somebody kills or stops is started again on its state folder, a few
            times, and this is told why.

        Raises
        ------
        ProcessError
            When a child ended before its time.
        """
        lives = LIVES if revived is not None else 1
        while True:
            if (
                revived is not None
                and lives > 1
                and self.broker is not None
                and self._was_cut_short(self.broker)
            ):
                lives -= 1
                revived(f"the broker {self.broker.ending}, and is started again")
                self.start_broker()
                self._uneven_since = None
            if not self.check():
                return
            status = self.status()
            if status is not None:
                look(status)
            ends = time.monotonic() + interval_s
            while time.monotonic() < ends:
                time.sleep(WATCH_S)
                if not self._all_run():
                    break

    def _all_run(self) -> bool:
        return self.broker is not None and all(child.code is None for child in (self.broker, *self.workers))

    def _was_cut_short(self, broker: Child) -> bool:
        """Whether a broker was killed, or stopped before its federation had finished."""
        from fedmq.broker.store.history import History

        if broker.code is None or broker.code > 0:
            return False
        with History.open(self.state / "journal.db") as journal:
            return broker.code < 0 or journal.summary()["finished"] is None

    def check(self) -> bool:
        """Whether the federation still runs.

        Raises
        ------
        ProcessError
            When a child ended with an error, or long before the others.
        """
        children = [*([self.broker] if self.broker is not None else []), *self.workers]
        ended = [child for child in children if child.code is not None]
        for child in ended:
            if child.code:
                raise child.failure()
        if len(ended) == len(children):
            return False
        if ended:
            # Goodbyes take a moment. One that ended in order but alone was stopped by somebody.
            self._uneven_since = self._uneven_since or time.monotonic()
            if time.monotonic() > self._uneven_since + FAREWELL_S:
                raise ended[0].failure()
        return True

    def close(self) -> None:
        """End every child: first politely, all at once, then for good."""
        children = [*self.workers, *([self.broker] if self.broker is not None else [])]
        for child in children:
            child.send(signal.SIGTERM)
        ends = time.monotonic() + GRACE_S
        for child in children:
            if not child.join(max(ends - time.monotonic(), 0.0)):
                child.kill()

    def _write_config(self) -> Path:
        federation = {"bind": self.endpoint or "tcp://127.0.0.1:*", "state": str(self.state)}
        given = self._tables.get("federation", {})
        tables = {**self._tables, "federation": {**federation, **given}}
        if self.endpoint:  # started again: the workers look for it here
            tables["federation"]["bind"] = self.endpoint
        text = config.to_toml(config.parse(tables, base_dir=self.folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "federation.toml"
        path.write_text(text, encoding="utf-8")
        return path

    def _spawn(self, name: str, arguments: Sequence[str]) -> Child:
        return Child(name, arguments, self.folder / f"{name}.log", self._environment)


@contextlib.contextmanager
def leave_on_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end this process by an exception, so that what must be tidied up is."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def _named(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"
