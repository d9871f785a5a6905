"""The broker as a whole: what is opened in which order, the threads, the signals, start and stop.

    with Broker("federation.toml") as broker:      # in a notebook or a test
        print(broker.endpoint, broker.status()["version"])
        broker.wait()

`run` is the daemon: the same, with signals. SIGTERM or Ctrl-C drains (commit what has arrived, finish the
version that is being made, say goodbye); a second one ends at once.
"""

import contextlib
import logging
import os
import resource
import secrets
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import fedmq
from fedmq.fedcore import config as configs
from fedmq.fedcore import kernels
from fedmq.fedcore.errors import ConfigError, StateError
from fedmq.fedcore.inbox import Inbox
from fedmq.fedcore.keys import Pair

from . import secrecy, vitals
from .admission import Admission
from .auth import load_pair
from .body import Body
from .books import UPLOAD_BLOCKS
from .control import ControlServer
from .coordinator import Coordinator
from .enrolment import Registrar
from .evaluator import AppProcess, Judge
from .events import Drain, Exit
from .keyring import KeyRing
from .mechanism import coin
from .notes import NoteLog
from .opening import Storage, open_storage
from .snapshot import snapshot
from .store import backup
from .store.state import StateFolder
from .tasks import TaskIds
from .threads import Commits, Folder, Folding, Halt, Job, Notice, Service, Spooler, Work
from .transport import Transport, Wires
from .watchdog import Watchdog

if TYPE_CHECKING:
    from .http import HttpServer

log = logging.getLogger("fedmq.broker")

GIVE_UP_S = 10.0
"""How long an end without draining waits for a fold that is under way."""
SWITCH_S = 0.0005
LINGER_S = 1.0
"""How long the last messages have to leave."""


class Broker:
    """A broker in this process.

    Parameters
    ----------
    config : Config, mapping or path
        A federation.toml, or what stands in one.

    Examples
    --------
    >>> broker = Broker({"federation": {"bind": "tcp://127.0.0.1:*"}, "mode": {"kind": "sync"}})
    >>> broker.config.mode.min_available
    2
    """

    def __init__(self, config: configs.Config | Mapping[str, Any] | str | Path) -> None:
        if isinstance(config, str | Path):
            config = configs.load(config)
        elif isinstance(config, Mapping):
            config = configs.parse(config)
        self.config: configs.Config = config
        self._inbox: Inbox[Notice] | None = None
        self._thread: threading.Thread | None = None
        self._resources = contextlib.ExitStack()
        self._exit: Exit | None = None
        self._failure: BaseException | None = None
        self._endpoint = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """Where workers connect: with the port that the system chose, where it was asked to."""
        if not self._endpoint:
            raise StateError("the broker has not been started")
        return self._endpoint

    def start(self) -> Self:
        """Open everything and begin to serve; returns when workers can connect.

        Raises
        ------
        FedmqError
            When the address or the state folder is in use, the config does not fit the state folder, the
            initial model cannot be made …: what is wrong, and what to do. Nothing was changed then.
        """
        if self._thread is not None:
            raise StateError("the broker has been started already; make another one to start again")
        with contextlib.ExitStack() as stack:
            body = self._open(stack)
            self._resources = stack.pop_all()
        self._thread = threading.Thread(target=self._serve, args=(body,), name="fedmq-io", daemon=True)
        self._thread.start()
        return self

    def drain(self) -> None:
        """Begin to stop; returns at once. May be called from a signal handler."""
        if self._inbox is not None:
            self._inbox.put(Drain())

    def halt(self, reason: str = "stopped at once") -> None:
        """End without draining; returns at once. Costs time at the next start, and no accepted update."""
        if self._inbox is not None:
            self._inbox.put(Halt(reason))

    def stop(self, timeout_s: float = 60.0) -> int:
        """Drain and stop; end at once when that takes longer than `timeout_s`.

        Returns
        -------
        int
            The exit code; see `wait`.
        """
        if self._thread is None:
            return 0
        self.drain()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.halt(f"did not drain within {timeout_s:g} s")
        code = self.wait()
        assert code is not None
        return code

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the broker has stopped.

        Returns
        -------
        int or None
            0 when the federation finished or was stopped; 1 when it ended at once; None when `timeout_s`
            passed before.

        Raises
        ------
        StateError
            When the broker could not go on: a full disk, a damaged file.
        """
        if self._thread is None:
            raise StateError("the broker has not been started")
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return None
        if self._failure is not None:
            raise self._failure
        assert self._exit is not None
        return self._exit.code

    def status(self) -> dict[str, Any]:
        """What `fedmq status` shows, as a dict; after the end what the journal says.

        Raises
        ------
        StateError
            When the broker was never started.
        """
        return snapshot(Path(self.config.federation.state))

    def _open(self, stack: contextlib.ExitStack) -> Body:
        """Open everything, in an order in which what fails first has changed nothing."""
        config, started = self.config, time.monotonic()
        inbox = self._inbox = Inbox()
        stack.callback(inbox.close)
        state = stack.enter_context(StateFolder.open(config.federation.state))
        ring, curve = _curve(config)
        transport = Transport(_wires(config), curve)
        stack.callback(self._close_transport, transport)
        http = _http(config, stack)
        app = AppProcess(config.evaluate.app)
        stack.callback(app.close)
        if config.evaluate.app:
            app.load()
        storage = open_storage(config, state, stack)
        commits = Commits(storage.journal)
        store = _service(stack, inbox, "store", commits)
        spooling = Spooler(storage.spool, storage.versions, config.model.max_bytes)
        spooler = _service(stack, inbox, "spool", spooling)
        folder = self._folder(stack, inbox, storage, state)
        judge = _service(stack, inbox, "evaluation", Judge(config, storage.versions, app))
        stack.callback(app.kill)
        registrar = None if ring is None else _service(stack, inbox, "keys", Registrar(ring))
        server = ControlServer(state.control, inbox)
        stack.callback(server.close)
        mind = Coordinator(
            config,
            TaskIds(bytes.fromhex(state.id), state.mac_key, secrets.token_bytes(8)),
            state.id,
            storage.recovered,
            time.monotonic(),
            coin(config, state.noise_key),
        )
        state.announce(transport.endpoint)
        self._endpoint = transport.endpoint
        _log_start(config, state, storage, transport.endpoint)
        body = Body(
            mind,
            transport=transport,
            control=server,
            inbox=inbox,
            store=store,
            spooler=spooler,
            folder=folder,
            judge=judge,
            versions=storage.versions,
            notes=NoteLog(log),
            watchdog=Watchdog(config.network.memory_limit),
            figures=lambda: {
                **_figures(config, storage, transport, commits, started),
                "http": "" if http is None else http.url,
                "broker_key": "" if curve is None else curve[0].public,
                "keys_refused": transport.refused,
            },
            registrar=registrar,
            admission=None if curve is None else curve[1],
        )
        if http is not None:
            from .observation import pages

            threads = {"store": store, "spool": spooler, "aggregation": folder, "evaluation": judge}
            http.start(pages(mind, body, config, state.path, inbox, transport, commits, threads))
            # Again, now as the first of all to be closed.
            stack.callback(http.close)
            log.info("http served", extra={"url": http.url})
        state.keep()
        return body

    def _folder(
        self, stack: contextlib.ExitStack, inbox: Inbox[Notice], storage: Storage, state: StateFolder
    ) -> Service[Folding]:
        work = Folder(
            self.config, storage.journal, storage.versions, storage.spool, storage.mechanism, state.noise_key
        )
        service = Service("aggregation", inbox, work)

        def close() -> None:
            # Only after a halt or a failure is a fold still under way; nobody else may have the folder then.
            if not service.close(GIVE_UP_S):
                state.abandon()

        stack.callback(close)
        return service

    def _close_transport(self, transport: Transport) -> None:
        orderly = self._exit is not None and self._exit.code == 0
        transport.close(LINGER_S if orderly else 0.0)

    def _serve(self, body: Body) -> None:
        """The I/O thread, from the first action to the last file closed."""
        try:
            self._exit = body.run()
        except BaseException as error:  # handed to whoever waits
            self._failure = error
        try:
            self._resources.close()
        except Exception as error:  # of several errors the first one says most
            self._failure = self._failure or error
        if self._failure is not None:
            log.error("broker failed", extra={"reason": str(self._failure)})
        elif self._exit is not None:
            log.info("broker stopped", extra={"reason": self._exit.reason})


def run(config_path: str | Path, *, insecure: bool = False) -> int:
    """Run a broker until it has finished or a signal stops it.

    Parameters
    ----------
    config_path : path
        The federation.toml.
    insecure : bool
        As `security.insecure`, which need not stand in the file then.

    Returns
    -------
    int
        The process's exit code: 0 when the federation finished or was stopped, 1 when a second signal
        ended it at once.

    Raises
    ------
    FedmqError
        When it cannot start or cannot go on.
    """
    _raise_descriptor_limit()
    # A thread that computes gives way to the I/O thread after this long; Python's default is 5 ms.
    sys.setswitchinterval(SWITCH_S)
    broker = Broker(configs.load(config_path, insecure=insecure)).start()
    signals = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            broker.drain()
        else:
            broker.halt(f"a second signal ({signal.Signals(number).name})")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = broker.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert code is not None
    return code


def _service(stack: contextlib.ExitStack, inbox: Inbox[Notice], name: str, work: Work[Job]) -> Service[Job]:
    service = Service(name, inbox, work)
    stack.callback(service.close)
    return service


def _http(config: configs.Config, stack: contextlib.ExitStack) -> "HttpServer | None":
    """Take the HTTP port, where one is configured; nobody is answered yet."""
    if not config.network.http:
        return None
    try:
        from .http import HttpServer
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fedmq"):
            raise
        raise ConfigError(
            f'network.http is "{config.network.http}", and needs the library {error.name}: '
            'pip install "fedmq[broker]", or leave the key empty'
        ) from error
    server = HttpServer(config.network.http)
    stack.callback(server.close)
    return server


def _curve(config: configs.Config) -> tuple[KeyRing | None, tuple[Pair, Admission] | None]:
    """The broker's keys and who may connect, where there are keys."""
    if not config.security.keys:
        if not config.federation.loopback:
            bind = {"bind": config.federation.bind}
            log.warning("no keys: whoever reaches this address can join, and read", extra=bind)
        return None, None
    ring = KeyRing.of(config.security)
    try:
        pair, admission = load_pair(ring), Admission(ring)
    except ConfigError as error:
        raise ConfigError(f"security.keys: {error}") from None
    log.info("keys loaded", extra={"key": pair.public, "allowed": admission.count})
    if not admission.count:
        log.warning("nobody is on the allowlist yet", extra={"allowlist": str(ring.allowlist)})
    return ring, (pair, admission)


def _wires(config: configs.Config) -> Wires:
    network = config.network
    credit = min(UPLOAD_BLOCKS * network.block, network.credit_budget)
    return Wires(bind=config.federation.bind, block=network.block, high_water=credit // network.block + 8)


def _log_start(config: configs.Config, state: StateFolder, storage: Storage, endpoint: str) -> None:
    versions = storage.recovered.versions
    python = kernels.backend == "python"
    log.log(
        logging.WARNING if python else logging.INFO,
        "broker started; kernels: python, which is slow (no compiled kernels here)"
        if python
        else "broker started",
        extra={
            "fedmq": fedmq.__version__,
            "kernels": kernels.backend,
            "federation": config.federation.name,
            "endpoint": endpoint,
            "state": str(state.path),
            "version": versions[-1].version if versions else "none",
            "start": "new" if state.is_new else "resumed",
        },
    )
    if storage.changes:
        log.info("config changed", extra={"keys": "; ".join(map(str, storage.changes))})
    restored = backup.announce(state.path)
    if restored is not None:
        log.warning(
            "state folder is a backup: what was accepted and spent after it was taken is forgotten",
            extra={
                "taken_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(restored.taken_at)),
                "version": "none" if restored.version is None else restored.version,
                "privacy_steps": "none" if restored.privacy_steps is None else restored.privacy_steps,
            },
        )


def _figures(
    config: configs.Config, storage: Storage, transport: Transport, commits: Commits, started: float
) -> dict[str, Any]:
    """What the process adds to a status reply."""
    counts = storage.recovered.counts
    figures = {
        "endpoint": transport.endpoint,
        "pid": os.getpid(),
        "bytes_up": counts.get("bytes_up", 0) + transport.bytes_up,
        "bytes_down": counts.get("bytes_down", 0) + transport.bytes_down,
        "connections": len(transport.connections),
        "connections_max": transport.connections.most,
        "turned_away": transport.connections.turned_away,
        "cuts": transport.connections.cuts,
        "rebinds": transport.rebinds,
        "kernels": kernels.backend,
        "uptime_s": time.monotonic() - started,
        "durability": config.storage.durability,
        "commit_ms": commits.latency_ms(),
        **vitals.memory(),
    }
    return secrecy.status(figures) if config.samples_workers else figures


def _raise_descriptor_limit() -> None:
    """Each connection takes one descriptor, and the usual soft limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
