"""The broker of a simulation: the real mind, and a body without sockets, disk or threads.

It keeps the promises of `fedmq.broker.events`: a commit takes the time of an fsync, and whatever queued meanwhile goes
into the next; a fold, the spool and the network take their time as well. What passes is counted on the way.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import msgspec

from fedmq.broker.coordinator import Coordinator
from fedmq.broker.events import (
    Action,
    Adopt,
    Collect,
    Commit,
    Discard,
    Event,
    Exit,
    Fold,
    OpenUpload,
    Seal,
    Send,
    SendBlock,
    SendTask,
    Tell,
    Tick,
    Wake,
    WritePart,
)
from fedmq.broker.mechanism import coin
from fedmq.broker.rows import AcceptRow, Recovered, VersionRow
from fedmq.broker.tasks import TaskIds
from fedmq.fedcore import wire

from .promises import Promises

if TYPE_CHECKING:
    from .engine import Simulation

FOLD_S: Final = 0.01
"""A fold of a small model; it delays nobody."""


class Broker:
    """The broker's mind and what it stands on.

    Parameters
    ----------
    simulation : Simulation
    """

    def __init__(self, simulation: "Simulation") -> None:
        info = simulation.training.initial()
        found = Recovered(versions=(info,), kept=frozenset({0}))
        ids = TaskIds(b"f" * 16, b"k" * 32, b"bootboot")
        # Nothing is secret here, and a seed gives the same rounds.
        flipped = coin(simulation.config, sha256(b"coin of %d" % simulation.crowd.seed).digest())
        self.mind = Coordinator(simulation.config, ids, "simulation", found, 0.0, flipped)
        self.mind_s = 0.0
        """Seconds of this computer that the mind has taken."""
        self.exit: Exit | None = None
        self._simulation = simulation
        self._schedule = simulation.schedule
        self._promises = Promises(self._carry_out)
        self._unwritten: list[Commit] = []
        self._is_writing = False
        self._wake_at = 0.0
        self._payloads: dict[bytes, bytes] = {}
        self._do: dict[type[Action], Callable[..., None]] = {
            Send: self._send,
            SendTask: self._send_task,
            SendBlock: self._send_block,
            Commit: self._commit,
            Tell: lambda action: self.tell(action.event),
            Fold: lambda action: self._schedule.after(FOLD_S, partial(self._fold, action)),
            Wake: self._wake,
            Exit: self._leave,
        }
        self._do |= dict.fromkeys((OpenUpload, WritePart, Seal, Discard, Adopt, Collect), self._spool)

    def start(self) -> None:
        """Begin."""
        self._carry_out(self.mind.start(0.0))

    def tell(self, event: Event) -> None:
        """Hand an event to the mind."""
        started = time.perf_counter()
        actions = self.mind.handle(event, self._schedule.now)
        self.mind_s += time.perf_counter() - started
        self._carry_out(actions)

    def busy(self) -> int:
        """How many fit tasks are out."""
        return self.mind._books.workers.busy

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            do = self._do.get(type(action))
            if do is not None:  # notes, and evaluations of which there are none
                do(action)

    def _send(self, action: Send) -> None:
        self._simulation.to_device(action.peer, action.message, None)

    def _send_task(self, action: SendTask) -> None:
        task = action.message
        self._simulation.to_device(
            action.peer, task, self._simulation.training.block(task.version, 0, task.size)
        )

    def _send_block(self, action: SendBlock) -> None:
        block = wire.Block(version=action.version, offset=action.offset)
        data = self._simulation.training.block(action.version, action.offset, action.length)
        self._simulation.to_device(action.peer, block, data)

    def _commit(self, commit: Commit) -> None:
        if self._promises.add(commit):
            self._unwritten.append(commit)
            if not self._is_writing:
                self._is_writing = True
                self._schedule.after(self._simulation.draws.fsync(), self._durable)

    def _durable(self) -> None:
        commits, self._unwritten = self._unwritten, []
        self._is_writing = False
        for commit in commits:
            for row in commit.rows:
                if isinstance(row, AcceptRow):
                    self._simulation.figures.accepted(row.tau)
                    if self._simulation.training.needs_payloads and row.inline is not None:
                        self._payloads[row.task] = row.inline
                elif isinstance(row, VersionRow):
                    self._simulation.figures.version(row.info.version, self._schedule.now)
        self._promises.keep(len(commits))

    def _fold(self, fold: Fold) -> None:
        rows = list(fold.rows)
        if self._payloads:
            rows = [
                msgspec.structs.replace(row, inline=self._payloads.pop(row.task))
                if row.inline is not None
                else row
                for row in rows
            ]
        self.tell(self._simulation.training.fold(fold, rows))

    def _spool(self, job: OpenUpload | WritePart | Seal | Discard | Adopt | Collect) -> None:
        event = self._simulation.training.spool(job)
        if event is not None:
            self._schedule.after(0.0, partial(self.tell, event))

    def _wake(self, action: Wake) -> None:
        self._wake_at = action.at
        self._schedule.at(action.at, partial(self._tick, action.at))

    def _tick(self, at: float) -> None:
        if at == self._wake_at:
            self._simulation.figures.busy(self.busy())
            self.tell(Tick())

    def _leave(self, action: Exit) -> None:
        self.exit = action
