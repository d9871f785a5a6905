"""The worker that a program embeds.

    with Worker(app, connect="tcp://broker:5560", state="worker-1"):
        …                                   # train in the background, or:
    Worker(app, connect=…).run()            # in this thread, until the federation is finished

Rules that hold here:

- What is wrong with an argument, the app or the state folder is said at once, by an exception. A broker
  that cannot be reached is no error: it may come, and the worker tries for as long as it takes.
- A worker can be started again after it was stopped; it goes on with what its state folder holds.
- Any method may be called from any thread.
"""

import logging
import os
import random
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from fedmq.fedcore import codecs, wire
from fedmq.fedcore.errors import ConfigError, ConnectError

from .body import Body
from .client import ClientApp, load_app, resolve_app
from .events import Event, Pause, Resume, Stop
from .feedback import Feedback
from .hooks import Hooks, MayTrainFunction, OnEvent
from .models import ModelCache
from .outbox import Outbox
from .runner import Runner
from .session import Identity, Session
from .state import StateFolder
from .transport import CurveKeys, Transport, check_address

if TYPE_CHECKING:
    from fedmq.fedcore.keys import Token

    from .enrolment import Enrolment
    from .keys import Credentials

log = logging.getLogger("fedmq.worker")

KINDS: Final = ("fit", "evaluate")
"""What an app is taken to do, unless it says `kinds` itself."""


class Worker:
    """A federation's worker.

    Parameters
    ----------
    app : object or str
        The client app: an object with ``fit`` and ``evaluate`` (see `fedmq.worker.ClientApp`), whatever else
        `fedmq.worker.client.resolve_app` takes, or ``"module:attribute"``.
    connect : str, optional
        The broker, ``tcp://host:port`` or ``ipc://path``. May be left out where the invite says it.
    state : path-like, optional
        The state folder. With it, unsent updates and fetched models outlive the process, without it not.
    name : str, optional
        What the broker and its operator call this worker, at most 128 bytes. Default: the host's name and a
        piece of the state folder's identity.
    node : mapping of str to str
        Settings of this worker, for the app: ``task.node``.
    tags : sequence of str
        What the broker may select workers by.
    encodings : sequence of str
        The update encodings that this worker offers; default: all.
    slots : int
        Tasks in hand at a time, at least 1. With 2 the next task's model is fetched while one trains.
    on_event : callable, optional
        Called as ``on_event(moment, fields)`` with a `Moment`, in a thread of its own.
    may_train : callable, optional
        Asked every second. While it answers False no task is taken and none is begun; one that runs goes on.
    server_key : str or path-like, optional
        The public key of a broker with keys, or a file that holds it. This worker's own key is made in the state
        folder at first use; its public half is logged, and in ``worker.key`` there.
    invite : str or path-like, optional
        An invite's token, or a file that holds it, with which this worker registers its key by itself. It says
        the broker's key, and perhaps where the broker is.
    keys : CurveKeys, optional
        All keys, from a program that keeps them itself.
    fsync : bool
        Make updates durable against power loss before they are offered. Without it they survive the process.

    Raises
    ------
    ConfigError, ClientAppError
        When an argument or the app is wrong.
    """

    def __init__(
        self,
        app: object,
        connect: str | None = None,
        state: str | os.PathLike[str] | None = None,
        *,
        name: str | None = None,
        node: Mapping[str, str] | None = None,
        tags: Sequence[str] = (),
        encodings: Sequence[str] = codecs.ENCODINGS,
        slots: int = 2,
        on_event: OnEvent | None = None,
        may_train: MayTrainFunction | None = None,
        server_key: str | os.PathLike[str] | None = None,
        invite: str | os.PathLike[str] | None = None,
        keys: CurveKeys | None = None,
        fsync: bool = False,
    ) -> None:
        unknown = [encoding for encoding in encodings if not codecs.is_encoding(encoding)]
        if unknown or not encodings:
            raise ConfigError(
                f"encodings must be some of {', '.join(codecs.ENCODINGS)}, got {list(encodings)}"
            )
        if slots < 1:
            raise ConfigError(f"slots must be 1 or more, got {slots}")
        for text in (*tags, *([] if name is None else [name])):
            if not 1 <= len(text.encode()) <= wire.TEXT_MAX:
                raise ConfigError(f"a name or tag must have 1 … {wire.TEXT_MAX} bytes, got {text!r}")
        if len(tags) > wire.LIST_MAX:
            raise ConfigError(f"at most {wire.LIST_MAX} tags, got {len(tags)}")
        self._node = dict(node or {})
        self._app: ClientApp = (
            load_app(app, node=self._node) if isinstance(app, str) else resolve_app(app, node=self._node)
        )
        self._kinds = tuple(getattr(self._app, "kinds", KINDS))
        if not self._kinds or not set(self._kinds) <= set(KINDS):
            raise ConfigError(f"the app's kinds must be some of {', '.join(KINDS)}, got {self._kinds}")
        self._server_key, self._token = _read_keys(server_key, invite, state, keys)
        where = connect or ("" if self._token is None else self._token.connect)
        if not where:
            raise ConfigError("connect is missing: where is the broker? Such as tcp://host:5560")
        check_address(where)
        self._connect = where
        self._state = state
        self._name = name
        self._tags = tuple(tags)
        self._encodings = tuple(encodings)
        self._slots = slots
        self._on_event = on_event
        self._may_train = may_train
        self._keys = keys
        self._fsync = fsync
        self._running: _Running | None = None
        self._paused = False

    def run(self) -> None:
        """Work in this thread until the federation is finished, or `stop` is called.

        Raises
        ------
        StateError
            When the state folder cannot be used.
        ConnectError
            When the broker refuses this worker for good.
        """
        running = self._open()
        try:
            running.io.start()
            running.body.runner.loop()
        finally:
            running.body.post(Stop())
            running.close(None)
        running.check()

    def start(self) -> Self:
        """Work in threads of its own; returns at once.

        Raises
        ------
        StateError
            When the state folder cannot be used.
        """
        running = self._open()
        running.app = threading.Thread(target=running.body.runner.loop, name="fedmq-app", daemon=True)
        running.io.start()
        running.app.start()
        return self

    def stop(self, timeout: float = 10.0) -> bool:
        """Leave: say BYE, cancel the app, and keep what was not acknowledged.

        Returns
        -------
        bool
            Whether all has ended within `timeout` seconds. An app that does not look at ``task.cancelled``
            may go on for longer; its result is dropped.
        """
        running = self._running
        if running is None:
            return True
        running.body.post(Stop())
        ended = running.close(timeout)
        if not ended:
            log.warning("the client app does not end; it is left behind", extra={"timeout_s": timeout})
        return ended

    def request_stop(self) -> None:
        """As `stop`, without waiting; for signal handlers and callbacks."""
        if self._running is not None:
            self._running.body.post(Stop())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until a started worker has ended by itself; False when `timeout` seconds passed before.

        Raises
        ------
        ConnectError
            When it ended because the broker refuses this worker for good.
        """
        running = self._running
        if running is None:
            return True
        running.io.join(timeout)
        if running.io.is_alive():
            return False
        running.close(timeout)
        running.check()
        return True

    def pause(self) -> None:
        """Take no task until `resume`; one that runs goes on, one that does not is given back."""
        self._paused = True
        self._post(Pause())

    def resume(self) -> None:
        """Take tasks again."""
        self._paused = False
        self._post(Resume())

    def status(self) -> dict[str, Any]:
        """What it is doing, as plain values.

        Examples
        --------
        >>> class App:
        ...     def fit(self, weights, task): ...
        ...     def evaluate(self, weights, task): ...
        >>> Worker(App(), connect="tcp://127.0.0.1:5560").status()
        {'connection': 'stopped'}
        """
        running = self._running
        if running is None:
            return {"connection": "stopped"}
        status = running.body.status()
        if running.body.exit is not None:
            status["connection"] = "stopped"
            status["reason"] = running.body.exit.reason
        return status

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _post(self, event: Event) -> None:
        if self._running is not None:
            self._running.body.post(event)

    def _open(self) -> "_Running":
        if self._running is not None and not self._running.close(0.0):
            raise RuntimeError("this worker is running")
        folder = StateFolder(self._state, owner=f"worker {self._name or ''}".strip())
        transport: Transport | None = None
        body: Body | None = None
        try:
            invited = "" if self._token is None else self._token.name
            name = self._name or invited or f"{os.uname().nodename[:64]}-{folder.instance.hex()[:6]}"
            outbox = Outbox(folder.outbox, fsync=self._fsync)
            stored = outbox.load()
            feedback = Feedback(folder.feedback, fsync=self._fsync)
            feedback.recover({entry.task for entry in stored})
            models = ModelCache(folder.models)
            credentials = self._credentials(folder)
            if credentials is None:
                transport = Transport(self._connect, self._keys)
            else:
                transport = Transport(self._connect, credentials.own, credentials.invite)
            session = Session(
                self._identity(name, folder.instance),
                rng=random.Random(os.urandom(16)),
                outbox=stored,
                models=models.lengths(),
            )
            body = Body(_mind(session, credentials), transport, outbox, models, name)
            body.runner = Runner(
                self._app, self._node, models, outbox, body.post, feedback=feedback, state=folder.app
            )
            body.hooks = Hooks(self._on_event, self._may_train, body.post)
            running = _Running(body, transport, folder, outbox)
            if self._paused:
                body.post(Pause())
            body.hooks.start()
        except BaseException:
            if transport is not None:
                transport.terminate()
            if body is not None:
                body.close()
            folder.close()
            raise
        self._running = running
        log.info("connecting to %s", self._connect, extra={"worker": name, "state": str(folder.path)})
        return running

    def _credentials(self, folder: StateFolder) -> "Credentials | None":
        """This worker's keys, where it has some or needs some."""
        asked = self._server_key is not None or self._token is not None
        if not asked and (self._keys is not None or not (folder.path / "broker.key").exists()):
            return None
        from . import keys

        return keys.load(folder.path, self._server_key, self._token)

    def _identity(self, name: str, instance: bytes) -> Identity:
        kinds = self._kinds
        makes_initial = callable(getattr(self._app, "initial", None))
        return Identity(
            name=name,
            instance=instance,
            boot=os.urandom(16),
            kinds=(*kinds, "init") if makes_initial else kinds,
            encodings=self._encodings,
            tags=self._tags,
            slots=self._slots,
        )


def _read_keys(
    server_key: str | os.PathLike[str] | None,
    invite: str | os.PathLike[str] | None,
    state: str | os.PathLike[str] | None,
    keys: CurveKeys | None,
) -> "tuple[str | None, Token | None]":
    """The broker's public key and the invite, as far as they were given."""
    if server_key is None and invite is None:
        return None, None
    from fedmq.fedcore.keys import read_public, read_token

    if keys is not None:
        raise ConfigError("keys holds everything; leave out server_key and invite, or keys")
    if state is None:
        raise ConfigError("server_key and invite need state: a folder in which this worker's key is kept")
    server = None if server_key is None else read_public(server_key)
    token = None if invite is None else read_token(invite)
    if token is not None and server not in (None, token.server):
        raise ConfigError("server_key is not the key of the broker that the invite is from; leave one out")
    return server, token


def _mind(session: Session, credentials: "Credentials | None") -> "Session | Enrolment":
    """The session, behind its enrolment where this worker was invited."""
    if credentials is None or credentials.invite is None:
        return session
    from .enrolment import Enrolment

    return Enrolment(session, credentials.public, is_new=credentials.is_new)


class _Running:
    """A worker between start and stop."""

    def __init__(self, body: Body, transport: Transport, folder: StateFolder, outbox: Outbox) -> None:
        self.body = body
        self.io = threading.Thread(target=body.run, name="fedmq-io", daemon=True)
        self.app: threading.Thread | None = None
        self._transport = transport
        self._folder = folder
        self._outbox = outbox
        self._closing = threading.Lock()
        self._closed = False

    def close(self, timeout: float | None) -> bool:
        """Wait for the threads, then let go of socket and folder; False when a thread is still at it."""
        for thread in (self.io, self.app):
            if thread is None or thread.ident is None:
                continue
            if thread is threading.current_thread():
                return (
                    False  # the app itself asks: it is still at work, and what it writes into is still ours
                )
            thread.join(timeout)
            if thread.is_alive():
                return False
        with self._closing:
            if not self._closed:
                self.body.hooks.close(timeout if timeout is not None else 10.0)
                self._transport.terminate()
                self.body.close()
                self._outbox.close()
                self._folder.close()
                self._closed = True
        return True

    def check(self) -> None:
        """Raise what ended it, when that was an error."""
        if self.body.failure is not None:
            raise self.body.failure
        end = self.body.exit
        if end is not None and end.code != 0:
            raise ConnectError(f"the broker refuses this worker: {end.reason}")
