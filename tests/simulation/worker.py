"""A worker of a simulation: the real mind, outbox and model cache, around them a body on virtual time.

Its app trains nothing: what it returns follows from the task's seed, or from that and how often it tried.
"""

import itertools
import os
import random

import msgspec
import numpy as np

from fedmq.cli.simulate.schedule import Line, Schedule
from fedmq.fedcore import kernels, wire
from fedmq.fedcore.errors import ModelError, StateError
from fedmq.worker.entry import Entry
from fedmq.worker.events import (
    Action,
    AppFailed,
    CancelApp,
    CloseSocket,
    DeleteModel,
    DeleteOutbox,
    Event,
    Exit,
    KeepModel,
    Lost,
    ModelBroken,
    Note,
    Notify,
    Opened,
    OpenSocket,
    OutboxFailed,
    Received,
    Send,
    SendStored,
    Start,
    StartApp,
    StoreBlock,
    Stored,
    Tick,
    Wake,
)
from fedmq.worker.models import ModelCache
from fedmq.worker.outbox import Outbox
from fedmq.worker.session import Identity, Session

from .audit import Audit
from .broker import initial_model
from .disks import Disks, Folder
from .network import Network, Parcel, Socket
from .process import Process
from .scenario import Scenario

LATEST_NS = 10**15
"""Virtual time never comes so far; real time is long past it."""


class Worker(Process):
    """A worker process and its state folder.

    Parameters
    ----------
    name : str
    scenario : Scenario
    schedule, rng, network, audit, disks
    kinds : tuple of str
        What its app can do.
    """

    kind = "worker"

    def __init__(
        self,
        name: str,
        scenario: Scenario,
        *,
        schedule: Schedule,
        rng: random.Random,
        network: Network,
        audit: Audit,
        disks: Disks,
        kinds: tuple[str, ...],
    ) -> None:
        super().__init__(name)
        self.mind: Session
        self.exit: Exit | None = None
        self.socket: Socket | None = None
        self.failing = scenario.failing
        self.poisoned = scenario.poisoned
        self._scenario = scenario
        self._event: Event = Start()
        self._schedule = schedule
        self._rng = rng
        self._network = network
        self._audit = audit
        self._folders = [disks.folder(name, folder, self.operates) for folder in ("outbox", "models")]
        self._instance = rng.randbytes(8)
        self._kinds = kinds
        self._slots = rng.choice((1, 2, 2, 3))
        self._speed_s = rng.choice((0.2, 1.0, 8.0))
        self._attempts = itertools.count()
        self._running = b""
        self._outbox: Outbox | None = None

    def start(self) -> None:
        """Begin a life with what is in the state folder."""
        self.begin()
        self.exit = None
        self._running = b""
        self.close()
        for folder in self._folders:
            folder.is_frozen = False
        self._inbox: Line[Event] = Line(
            self._schedule, lambda: self._rng.uniform(0.0, 0.003), self.of_this_life(self._tell)
        )
        self.run(self._open)

    def tell(self, event: Event) -> None:
        """Hand an event to the mind."""
        if self.is_alive:
            self.run(self._tell, event)

    def killed(self, *, power_cut: bool) -> None:
        """What goes with the process: its connection, and in a power cut what was not synced."""
        if self.socket is not None:
            connection = self.socket.connection
            self.socket.close()
            if connection is not None and connection.is_up:
                connection.break_(told_worker=False, told_broker=not power_cut)
            self.socket = None
        self.close()
        if power_cut:
            for folder in self._folders:
                folder.power_cut(self._rng)

    def close(self) -> None:
        """Let go of open files; nothing is tidied up, as nothing is by a kill."""
        small = self._outbox and self._outbox._small
        if small and small._fd >= 0:
            os.close(small._fd)
            small._fd = -1

    def connected(self) -> None:
        """A connection was made."""
        self.tell(Opened())

    def lost(self) -> None:
        """The connection broke."""
        self.tell(Lost())

    def received(self, parcel: Parcel) -> None:
        """A message came."""
        message, payload = parcel
        self.tell(Received(message, None if payload is None else memoryview(payload)))
        if isinstance(message, wire.Task) and self.is_alive:
            self._audit.worker_holds(self.name, self.mind._tasks.ids(), self._slots)

    def matters(self, action: Action) -> bool:
        """Notes, timers and beats leave no trace."""
        return not isinstance(action, Note | Notify | Wake) and not (
            isinstance(action, Send) and isinstance(action.message, wire.Beat)
        )

    def perform(self, action: Action) -> None:
        """Carry out one action."""
        match action:
            case Send(message):
                self._post(message, None)
            case SendStored(message, offset, length):
                self._send_stored(message, offset, length)
            case StoreBlock(digest, offset, data):
                self._models.append(digest, offset, data)
                self._date(self._folders[1])
            case KeepModel(digest, data):
                self._models.keep(digest, data)
            case DeleteModel(digest):
                self._models.delete(digest)
            case StartApp():
                self._start_app(action)
            case CancelApp(task):
                failed = AppFailed(task, "cancelled")
                self._schedule.after(
                    self._rng.uniform(0.0, 1.0), self.of_this_life(lambda: self._end(failed))
                )
            case DeleteOutbox(task):
                self._audit.worker_forgets(task, self._event)
                assert self._outbox is not None
                self._outbox.delete(task)
            case OpenSocket():
                self.socket = Socket(self._network, self)
            case CloseSocket():
                if self.socket is not None:
                    self.socket.close()
                    self.socket = None
            case Wake(at):
                if at != float("inf"):
                    self._schedule.at(at, self.of_this_life(lambda: self._tell(Tick())))
            case Exit():
                assert self._outbox is not None
                self._outbox.close()
                self.exit = action
                self.die()
            case Note() | Notify():
                pass
            case _:
                raise TypeError(f"not an action of the worker's: {type(action).__name__}")

    def _open(self) -> None:
        outbox, models = (folder.path for folder in self._folders)
        self._outbox = Outbox(outbox)
        self._models = ModelCache(models)
        me = Identity(
            name=self.name,
            instance=self._instance,
            boot=self._rng.randbytes(8),
            kinds=self._kinds,
            encodings=("f32", "f16", "bf16", "i8", "topk"),
            slots=self._slots,
        )
        self.mind = Session(
            me,
            rng=random.Random(self._rng.random()),
            outbox=self._outbox.load(),
            models=self._models.lengths(),
        )
        self._tell(Start())

    def _date(self, folder: Folder) -> None:
        """What was just written is as old as virtual time says: files are found again by their age."""
        at = int(self._schedule.now * 1e9)
        for entry in os.scandir(folder.path):
            if entry.stat().st_mtime_ns > LATEST_NS:
                os.utime(entry.path, ns=(at, at))

    def _tell(self, event: Event) -> None:
        self._event = event
        self.carry_out(self.mind.handle(event, now=self._schedule.now))

    def _post(self, message: wire.Message, payload: bytes | None) -> None:
        wire.encode(message, payload)  # which refuses what a broker would
        if self.socket is not None:
            self.socket.send(message, payload)

    def _send_stored(self, message: wire.Offer | wire.Part, offset: int, length: int) -> None:
        assert self._outbox is not None
        try:
            payload = self._outbox.read(message.task, offset, length)
        except StateError as error:
            self._inbox.put(OutboxFailed(message.task, str(error)))
        else:
            self._post(message, payload)

    def _start_app(self, start: StartApp) -> None:
        task = start.task
        self._running = task.task
        if task.digest is not None:
            try:
                model = self._models.open(task.digest, task.model or "f32")
                self._audit.trains_on(task.version, model, task.model)
            except ModelError:
                self._inbox.put(ModelBroken(task.task, task.digest))
                return
        takes_s = self._rng.expovariate(1.0) * self._speed_s
        if self._rng.random() < self.failing:
            self._schedule.after(
                takes_s, self.of_this_life(lambda: self._end(AppFailed(task.task, "ValueError")))
            )
        else:
            self._schedule.after(takes_s, self.of_this_life(lambda: self._finish(start)))

    def _finish(self, start: StartApp) -> None:
        """The app returned: its result goes into the outbox, then the mind is told."""
        if self._running != start.task.task:
            return
        assert self._outbox is not None
        entry, payload = self._result(start)
        stored = self._outbox.put(entry, (payload,) if payload is not None else ())
        self._date(self._folders[0])
        self._audit.worker_made(stored, payload)
        self._end(Stored(stored))

    def _end(self, event: Stored | AppFailed) -> None:
        """Exactly one answer to each `StartApp`."""
        task = event.entry.task if isinstance(event, Stored) else event.task
        if self._running == task:
            self._running = b""
            self._inbox.put(event)

    def _result(self, start: StartApp) -> tuple[Entry, bytes | None]:
        task = start.task
        entry = Entry(
            task=task.task,
            kind=task.kind,
            federation=start.federation,
            base=task.version,
            examples=1 + task.seed % 50,
            metrics={"loss": 1.0 / (1 + task.version)},
            layout=task.layout,
        )
        match task.kind:
            case "evaluate":
                return entry, None
            case "init":
                variant = int(self.name[1:]) + 10 * next(self._attempts)
                return msgspec.structs.replace(entry, encoding="safetensors"), initial_model(
                    self._scenario, variant
                )
        update = self._update(task)
        return msgspec.structs.replace(entry, encoding=task.encoding), update

    def _update(self, task: wire.Task) -> bytes:
        # Trained again after a crash it is often another update, as on a GPU.
        nth = 0 if self._scenario.repeatable else self._rng.choice((0, next(self._attempts)))
        values = np.random.default_rng((task.seed, nth)).standard_normal(
            self._scenario.elements, dtype=np.float32
        )
        if self._rng.random() < self.poisoned:
            values[task.seed % len(values)] = np.nan
        if task.encoding == "topk" and task.keep is not None:
            values[np.argsort(np.abs(values))[: -task.keep]] = 0
        key = task.seed.to_bytes(32, "little")
        return bytes(kernels.encode(values, task.encoding, key=key))
