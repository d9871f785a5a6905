"""A device of a simulation: the real mind of a worker, and a body that costs little.

It is on or off, connected or not, and busy or idle. Off, it stands still, as a phone that sleeps: nothing reaches
it, and a fit goes on when it is on again. A device that dies starts again some minutes later with what its outbox
held. Nothing here decides what a worker does; that is `fedmq.worker.session`.
"""

from functools import partial
from typing import TYPE_CHECKING, Final

from fedmq.fedcore import wire
from fedmq.worker.entry import Entry
from fedmq.worker.events import (
    Action,
    AppFailed,
    CancelApp,
    CloseSocket,
    DeleteOutbox,
    Event,
    Exit,
    Lost,
    Opened,
    OpenSocket,
    Received,
    Send,
    SendStored,
    Start,
    StartApp,
    Stored,
    Tick,
    Wake,
)
from fedmq.worker.session import Identity, Session

from .training import Update

if TYPE_CHECKING:
    from .engine import Simulation

RESTART_S: Final = 300.0
"""The mean time until a device that died is back."""
NEVER: Final = float("inf")

_TICK: Final = Tick()


class Device:
    """One device and the worker on it.

    Parameters
    ----------
    simulation : Simulation
    index : int
    """

    __slots__ = (
        "_bytes_per_s", "_down_at", "_finishes_at", "_index", "_life", "_mind", "_outbox", "_running", "_simulation",
        "_speed_s", "_up_at", "_version", "is_on", "peer",
    )  # fmt: skip

    def __init__(self, simulation: "Simulation", index: int) -> None:
        self.is_on = True
        self.peer: bytes | None = None
        """Its address at the broker, while it has a connection."""
        self._simulation = simulation
        self._index = index
        self._life = 0
        self._outbox: dict[bytes, tuple[Entry, Update]] = {}
        self._running: StartApp | None = None
        self._finishes_at = NEVER
        self._speed_s = simulation.draws.speed(index)
        draw = simulation.draws.bandwidth
        self._bytes_per_s = NEVER if draw is None else max(draw(), 1.0)
        self._version = -1
        self._up_at = 0.0
        self._down_at = 0.0
        self._mind: Session

    def start(self) -> None:
        """Begin a life with what is in the outbox."""
        self._life += 1
        self._running = None
        me = Identity(
            name=f"d{self._index}",
            instance=self._index.to_bytes(8, "big"),
            boot=self._life.to_bytes(8, "big"),
            kinds=("fit",),
            encodings=self._simulation.encodings,
            slots=self._simulation.crowd.slots,
        )
        entries = [entry for entry, _ in self._outbox.values()]
        self._mind = Session(me, rng=self._simulation.draws.rng, outbox=entries)
        self._tell(Start())

    def receive(self, peer: bytes, message: wire.Message, payload: memoryview | None) -> None:
        """A message arrives over a connection, if that is still there."""
        if self.is_on and self.peer == peer:
            self._tell(Received(message, payload))

    def arrives_at(self, delay_s: float) -> float:
        """When a message that is sent to it now will be there: after those before."""
        self._down_at = max(self._down_at, self._simulation.schedule.now + delay_s)
        return self._down_at

    def switch_off(self) -> None:
        """Stand still."""
        self.is_on = False
        self._simulation.disconnect(self)
        if self._running is not None:
            self._finishes_at -= self._simulation.schedule.now  # what is left of the fit

    def switch_on(self) -> None:
        """Go on."""
        self.is_on = True
        if self._running is not None:
            self._finish_at(self._simulation.schedule.now + self._finishes_at)
        self._tell(Lost())
        self._connect_soon()

    def _tell(self, event: Event) -> None:
        for action in self._mind.handle(event, now=self._simulation.schedule.now):
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Send(message):
                self._send(message, None)
            case SendStored(message, offset, length):
                stored = self._outbox[message.task][1].payload
                self._send(message, memoryview(stored)[offset : offset + length])
            case Wake(at):
                if at != NEVER:
                    self._simulation.schedule.at(at, partial(self._tick, self._life))
            case StartApp():
                self._begin(action)
            case CancelApp(task):
                self._simulation.schedule.after(0.0, partial(self._cancelled, self._life, task))
            case DeleteOutbox(task):
                self._outbox.pop(task, None)
            case OpenSocket():
                self._connect_soon()
            case CloseSocket() | Exit():
                self._simulation.disconnect(self)
            case _:
                pass  # notes, and files of models: a version's bytes are the same everywhere

    def _tick(self, life: int) -> None:
        if self.is_on and life == self._life:
            self._tell(_TICK)

    def _send(self, message: wire.Message, payload: memoryview | None) -> None:
        if self.peer is not None:
            self._up_at = max(self._up_at, self._simulation.schedule.now + self._simulation.draws.latency())
            self._simulation.to_broker(self._up_at, self.peer, message, payload)

    def _connect_soon(self) -> None:
        delay_s = 2 * self._simulation.draws.latency()
        self._simulation.schedule.after(delay_s, partial(self._connected, self._life))

    def _connected(self, life: int) -> None:
        if self.is_on and life == self._life and self.peer is None and not self._mind.has_ended:
            self._simulation.connect(self)
            self._tell(Opened())

    def _begin(self, start: StartApp) -> None:
        """The app works for as long as this device takes; transfers belong to it."""
        simulation = self._simulation
        self._running = start
        fetched = simulation.crowd.model_bytes if start.task.version != self._version else 0.0
        self._version = start.task.version
        sent = simulation.crowd.update_bytes
        sent = simulation.crowd.model_bytes if sent is None else sent
        moved_s = (fetched + sent) / self._bytes_per_s
        takes_s = self._speed_s * simulation.draws.rng.uniform(0.8, 1.25) + moved_s
        if simulation.crowd.dropout and simulation.draws.rng.random() < simulation.crowd.dropout:
            dies_s = takes_s * simulation.draws.rng.random()
            simulation.schedule.after(dies_s, partial(self._die, self._life))
        self._finish_at(simulation.schedule.now + takes_s)

    def _finish_at(self, at: float) -> None:
        self._finishes_at = at
        self._simulation.schedule.at(at, partial(self._finished, self._life, at))

    def _finished(self, life: int, at: float) -> None:
        start = self._running
        if not self.is_on or life != self._life or start is None or at != self._finishes_at:
            return  # it slept or died meanwhile, or was cancelled
        task = start.task
        self._running = None
        update = self._simulation.training.update(self._index, task)
        entry = Entry(
            task=task.task,
            kind="fit",
            federation=start.federation,
            base=task.version,
            examples=update.examples,
            layout=task.layout,
            encoding=task.encoding,
            size=len(update.payload),
            digest=update.digest,
        )
        self._outbox[task.task] = entry, update
        self._tell(Stored(entry))

    def _cancelled(self, life: int, task: bytes) -> None:
        if life == self._life and self._running is not None and self._running.task.task == task:
            self._running = None
            self._tell(AppFailed(task, "cancelled"))

    def _die(self, life: int) -> None:
        if life == self._life and self._running is not None:
            self._life += 1
            self._running = None
            self._simulation.died += 1
            self._simulation.disconnect(self)
            delay_s = self._simulation.draws.rng.expovariate(1.0 / RESTART_S)
            self._simulation.schedule.after(delay_s, partial(self._restart, self._life))

    def _restart(self, life: int) -> None:
        if life == self._life and not self._simulation.is_over:
            self.start()
