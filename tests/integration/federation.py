"""A federation of real processes for tests: the commands that anybody types, in a folder of their own.

    with Federation(tmp_path, tables) as federation:
        federation.start_broker()
        federation.start_workers(3, "tiny:App")
        federation.finish()

Rules that hold here:

- Nothing outlives its test: leaving the `with` block kills every child through its own handle, and a child
  whose test process was killed ends by itself (`fedmq.cli.attended`).
- Nothing waits for ever: every wait has a deadline, and what it waited for stands in the failure.
- A broker may be killed and started again: it listens where its workers look for it.
- The apps lie in `apps/`, which is on the children's path.
"""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedmq.broker import control
from fedmq.broker.store.history import History
from fedmq.broker.store.versions import VersionStore
from fedmq.cli.processes import Child
from fedmq.fedcore import config, model_file
from fedmq.fedcore.errors import ConnectError, StateError
from fedmq.fedcore.layout import Layout

APPS = Path(__file__).with_name("apps")
WAIT_S = 60.0

Tables = dict[str, dict[str, Any]]

QUICK: Tables = {
    "federation": {"bind": "tcp://127.0.0.1:*", "state": "state"},
    "network": {"beat_s": 0.5, "lease_s": 3.0},
    "storage": {"durability": "os", "keep": 100_000},
    "evaluate": {"every": 0},
}
"""Small times, so that a test that needs them does not wait; every version stays to be looked at."""


def merged(*layers: Mapping[str, Mapping[str, Any]]) -> Tables:
    """Tables over tables: a later layer's keys win, but a table that names its kind is taken whole."""
    tables: Tables = {}
    for layer in layers:
        for name, table in layer.items():
            before = {} if "kind" in table else tables.get(name, {})
            tables[name] = {**before, **table}
    return tables


def run(
    *arguments: object, cwd: Path, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """One `fedmq` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "fedmq.cli.main", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **path_with_apps(), **(env or {})},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )


def path_with_apps() -> dict[str, str]:
    """The variable that lets children import the apps of these tests."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(APPS), os.environ.get("PYTHONPATH")]))}


def wait_for(what: str, condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Wait until a condition is true, and give what it gave."""
    ends = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < ends, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return found


def write_model(path: Path, weights: Mapping[str, NDArray[Any]]) -> Path:
    """A safetensors file to start from."""
    model_file.write_chunks(path, model_file.from_arrays(dict(weights)).chunks)
    return path


class Program:
    """A Python program with what a test needs of a `Child`. It is to end when its stdin does: then its test is gone."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                cwd=log.parent,
                env=env,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def join(self, timeout_s: float) -> bool:
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        if self._process.stdin is not None:
            self._process.stdin.close()
        return True

    def kill(self) -> None:
        self._process.kill()
        self.join(WAIT_S)


class Federation:
    """A broker and its workers.

    Parameters
    ----------
    folder
        Of everything: federation.toml, state folders, logs.
    tables
        What stands in federation.toml, over `QUICK`.
    env
        Variables for every child.
    """

    def __init__(
        self, folder: Path, tables: Mapping[str, Mapping[str, Any]], env: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.tables = merged(QUICK, tables)
        self.state = folder / "state"
        self.toml = folder / "federation.toml"
        self.endpoint = ""
        self.through = ""
        """A proxy's address, where workers are to reach their broker through one."""
        self.broker: Child | None = None
        self.workers: dict[str, Child | Program] = {}
        self._env = {**os.environ, **path_with_apps(), "OPENBLAS_NUM_THREADS": "1", **(env or {})}
        self._children: list[Child | Program] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.kill()
        if error is not None:
            for log in sorted(self.folder.glob("*.log")):
                tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
                print(f"--- {log.name}", *tail, sep="\n")

    def start_broker(self, env: Mapping[str, str] | None = None) -> Child:
        """Start the broker, or start it again; returns when workers can connect."""
        if self.endpoint:
            self.tables["federation"]["bind"] = self.endpoint
        made = config.parse(self.tables, base_dir=self.folder)
        self.toml.write_text(config.to_toml(made), encoding="utf-8")
        announced = self.state / "endpoint"
        announced.unlink(missing_ok=True)  # a killed broker leaves it behind
        child = self.broker = self.spawn("broker", "broker", self.toml, env=env)

        def listens() -> bool:
            assert child.code is None, log_of(child)
            return announced.exists() and announced.read_text(encoding="utf-8").endswith("\n")

        wait_for("the broker listens", listens)
        self.endpoint = announced.read_text(encoding="utf-8").strip()
        return child

    def start_worker(self, name: str, app: str = "tiny:App", *options: str, **node: object) -> Child:
        """Start one worker, or start it again on its state folder."""
        settings = [part for key, value in node.items() for part in ("--node", f"{key}={value}")]
        arguments = (
            "--connect",
            self.through or self.endpoint,
            "--app",
            app,
            "--name",
            name,
            "--state",
            name,
        )
        child = self.workers[name] = self.spawn(name, "worker", *arguments, *settings, *options)
        return child

    def start_workers(self, count: int, app: str = "tiny:App", **node: object) -> None:
        """Start w1, w2, … of one app; each is told its number as ``node["number"]``."""
        for number in range(1, count + 1):
            self.start_worker(f"w{number}", app, number=number, **node)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Nobody gets a task before all workers that are started inside are there.

        On a busy machine one of them may need seconds to start; a short federation would be over by then.
        """
        control.request(self.state, "pause")
        yield
        wait_for("all workers", lambda: {w["name"] for w in self.status()["workers"]} >= self.workers.keys())
        control.request(self.state, "resume")

    def spawn(self, name: str, *arguments: object, env: Mapping[str, str] | None = None) -> Child:
        """Start one command; its output goes to NAME.log."""
        child = Child(name, [*map(str, arguments)], self.folder / f"{name}.log", {**self._env, **(env or {})})
        self._children.append(child)
        return child

    def program(self, name: str, *arguments: object) -> "Program":
        """Start a Python program that is no `fedmq` command; its output goes to NAME.log."""
        program = Program(name, [*map(str, arguments)], self.folder / f"{name}.log", self._env)
        self._children.append(program)
        return program

    def stop_broker(self, number: signal.Signals) -> None:
        """End the broker by a signal."""
        assert self.broker is not None
        self.broker.send(number)
        assert self.broker.join(WAIT_S)
        self.broker = None

    def finish(self, timeout_s: float = WAIT_S) -> None:
        """Wait until broker and workers have ended, each with exit code 0."""
        ends = time.monotonic() + timeout_s
        children = [child for child in (self.broker, *self.workers.values()) if child is not None]
        for child in children:
            assert child.join(max(ends - time.monotonic(), 0.1)), (
                f"{child.name} does not end\n{log_of(child)}"
            )
            assert child.code == 0, f"{child.name} ended with {child.code}\n{log_of(child)}"

    def cli(self, command: str, *arguments: object, code: int = 0) -> str:
        """Run a command on the state folder and give its stdout; `code` is what it must exit with."""
        ended = run(command, self.state, *arguments, cwd=self.folder)
        assert ended.returncode == code, ended.stderr
        return ended.stdout

    def status(self) -> dict[str, Any]:
        """What the running broker says, or {} when there is none; one that is there may be slow to answer."""
        ends = time.monotonic() + WAIT_S
        while True:
            try:
                found: dict[str, Any] = control.request(self.state, "status")
                return found
            except (ConnectError, StateError):
                if self.broker is None or self.broker.code is not None or time.monotonic() > ends:
                    return {}
                time.sleep(0.02)

    def wait_for_version(self, version: int, timeout_s: float = WAIT_S) -> None:
        """Wait until the running broker has made a version."""
        wait_for(
            f"version {version}",
            lambda: (found := self.status().get("version")) is not None and found >= version,
            timeout_s,
        )

    def wait_for_more(self, versions: int) -> None:
        """Wait until the running broker, whatever it has made, has made so many versions more."""
        wait_for("a version", lambda: self.status().get("version") is not None)
        self.wait_for_version(self.status()["version"] + versions)

    def history(self) -> list[dict[str, Any]]:
        """The versions that were made, from the journal."""
        with History.open(self.state / "journal.db") as journal:
            return journal.history()

    def digest(self, version: int | None = None) -> str:
        """The digest of a version, the last by default, as the journal has it."""
        digest = self.history()[-1 if version is None else version]["digest"]
        assert isinstance(digest, str)
        return digest

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows straight from the journal's database."""
        db = sqlite3.connect(f"{(self.state / 'journal.db').absolute().as_uri()}?mode=ro", uri=True)
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()

    def updates(self, version: int) -> list[dict[str, Any]]:
        """The accept rows of a version, with their kept payloads."""
        with History.open(self.state / "journal.db") as journal:
            rows = journal.updates(version)
        for row in rows:
            if row["place"] == "spool":
                row["payload"] = (self.state / "spool" / row["task"].hex()).read_bytes()
        return rows

    def weights(self, version: int) -> NDArray[np.float32]:
        """The flat float32 vector of a kept version, as a copy."""
        store = VersionStore(self.state / "versions", fsync=False)
        file = store.file(version)
        return Layout.from_file_prefix(file, len(file)).flat(file).copy()


def log_of(child: Child | Program) -> str:
    """Everything that a child has said."""
    return child.log.read_text(encoding="utf-8", errors="replace")


def events(child: Child | Program) -> list[dict[str, Any]]:
    """What a child logged with ``--log-format json``; a line that a kill cut short is left out."""
    found = []
    for line in log_of(child).splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            assert line.startswith("{"), line
    return found
