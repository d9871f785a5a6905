"""A worker of a simulation: the real mind, around it a body on virtual time and an app that trains nothing."""

import itertools
import random
from typing import Any

import msgspec
import numpy as np
import xxhash

from fedmq.fedcore import wire
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
from fedmq.worker.session import Identity, Session

from .audit import Audit
from .disks import WorkerDisk
from .network import Network, Parcel, Socket
from .process import Process
from .schedule import Line, Schedule


class Worker(Process):
    """A worker process and its state folder.

    Parameters
    ----------
    name : str
    schedule, rng, network, audit
    elements : int
        Of an update.
    kinds : tuple of str
        What its app can do.
    failing : float
        How often its app raises.
    """

    def __init__(
        self,
        name: str,
        *,
        schedule: Schedule,
        rng: random.Random,
        network: Network,
        audit: Audit,
        elements: int,
        kinds: tuple[str, ...],
        failing: float,
    ) -> None:
        super().__init__(name)
        self.disk = WorkerDisk(rng.randbytes(8))
        self.mind: Session
        self.exit: Exit | None = None
        self.socket: Socket | None = None
        self._event: Event = Start()
        self.failing = failing
        self._schedule = schedule
        self._rng = rng
        self._network = network
        self._audit = audit
        self._elements = elements
        self._kinds = kinds
        self._slots = rng.choice((1, 2, 2, 3))
        self._speed_s = rng.choice((0.2, 1.0, 8.0))
        self._attempts = itertools.count()
        self._running = b""

    def start(self) -> None:
        """Begin a life with what is in the state folder."""
        self.begin()
        self.exit = None
        self._running = b""
        self._small: dict[bytes, bytes] = {}
        me = Identity(
            name=self.name,
            instance=self.disk.instance,
            boot=self._rng.randbytes(8),
            kinds=self._kinds,
            slots=self._slots,
        )
        self.mind = Session(
            me,
            rng=random.Random(self._rng.random()),
            outbox=[entry for entry, _ in self.disk.outbox.values()],
            models={digest: len(data) for digest, data in self.disk.models.items()},
        )
        self._inbox: Line[Event] = Line(
            self._schedule, lambda: self._rng.uniform(0.0, 0.003), self.of_this_life(self._tell)
        )
        self.run(self._tell, Start())

    def tell(self, event: Event) -> None:
        """Hand an event to the mind."""
        if self.is_alive:
            self.run(self._tell, event)

    def killed(self, *, power_cut: bool) -> None:
        """What goes with the process: its connection, and in a power cut some of its files."""
        if self.socket is not None:
            connection = self.socket.connection
            self.socket.close()
            if connection is not None and connection.is_up:
                connection.break_(told_worker=False, told_broker=not power_cut)
            self.socket = None
        if power_cut:
            self.disk.power_cut(self._rng)

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
            held: Any = self.mind._tasks
            self._audit.worker_holds(self.name, len(held), self._slots)

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
                file = self.disk.models.setdefault(digest, bytearray())
                assert offset == len(file), f"a block at {offset} of a file of {len(file)}"
                file += data
            case KeepModel(digest, data):
                self._small[digest] = bytes(data)
            case DeleteModel(digest):
                self._small.pop(digest, None)
                self.disk.models.pop(digest, None)
            case StartApp():
                self._start_app(action)
            case CancelApp(task):
                failed = AppFailed(task, "cancelled")
                self._schedule.after(
                    self._rng.uniform(0.0, 1.0), self.of_this_life(lambda: self._end(failed))
                )
            case DeleteOutbox(task):
                self._audit.worker_forgets(task, self._event)
                self.disk.outbox.pop(task, None)
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
                self.exit = action
                self.die()
            case Note() | Notify():
                pass
            case _:
                raise TypeError(f"not an action of the worker's: {type(action).__name__}")

    def _tell(self, event: Event) -> None:
        self._event = event
        self.carry_out(self.mind.handle(event, self._schedule.now))

    def _post(self, message: wire.Message, payload: bytes | None) -> None:
        wire.encode(message, payload)  # which refuses what a broker would
        if self.socket is not None:
            self.socket.send(message, payload)

    def _send_stored(self, message: wire.Offer | wire.Part, offset: int, length: int) -> None:
        stored = self.disk.outbox.get(message.task)
        if stored is None:
            self._inbox.put(OutboxFailed(message.task, "gone"))
        else:
            self._post(message, stored[1][offset : offset + length])

    def _start_app(self, start: StartApp) -> None:
        task = start.task
        self._running = task.task
        small = self._small.get(task.digest or b"")
        if not (self.disk.is_whole(task) if small is None else xxhash.xxh3_128_digest(small) == task.digest):
            assert task.digest is not None
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
        entry, payload = self._result(start)
        self.disk.outbox[entry.task] = (entry, payload)
        self._end(Stored(entry))

    def _end(self, event: Stored | AppFailed) -> None:
        """Exactly one answer to each `StartApp`."""
        task = event.entry.task if isinstance(event, Stored) else event.task
        if self._running == task:
            self._running = b""
            self._inbox.put(event)

    def _result(self, start: StartApp) -> tuple[Entry, bytes]:
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
        if task.kind == "evaluate":
            return entry, b""
        if task.kind == "init":
            payload, encoding = self._rng.randbytes(self._rng.choice((900, 5000))), "safetensors"
        else:
            # Trained again after a crash it is often another update, as on a GPU.
            nth = self._rng.choice((0, next(self._attempts)))
            values = np.random.default_rng((task.seed, nth)).standard_normal(self._elements)
            payload, encoding = values.astype("<f4").tobytes(), "f32"
        digest = xxhash.xxh3_128_digest(payload)
        return msgspec.structs.replace(entry, encoding=encoding, size=len(payload), digest=digest), payload
