"""The thin body around the mind: the I/O loop, which tells it events and carries out its actions.

Rules that hold here:

- One thread runs the loop, owns the sockets and calls the mind. It never waits for a disk or a kernel.
- A commit's `then` is carried out when its rows, and those of every commit before it, are durable. The
  commits of one turn are handed over together, so that one fsync serves them.
- `Exit` waits for what was promised (commits) and for what is on its way out, for a moment.
- When a thread fails the loop ends with its error: a daemon that cannot keep its word stops.
"""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol, assert_never

from fedmq.fedcore import wire
from fedmq.fedcore.errors import StateError
from fedmq.fedcore.inbox import Inbox

from .admission import Admission
from .control import ControlServer
from .events import (
    Action,
    Adopt,
    Collect,
    Commit,
    Control,
    Discard,
    Drop,
    EncodeModel,
    Enrolled,
    Evaluate,
    Event,
    Exit,
    Fold,
    Note,
    OpenUpload,
    Peer,
    Register,
    Reply,
    Revoked,
    Seal,
    Send,
    SendBlock,
    SendTask,
    Severed,
    Tell,
    Tick,
    Unreachable,
    Wake,
    WritePart,
)
from .notes import NoteLog
from .rows import CounterRow, Row, VersionRow
from .store.refusals import is_exhausted
from .store.versions import VersionStore
from .threads import Ask, Durable, Failed, Folding, Halt, Notice, Service, Spooling
from .transport import Transport
from .watchdog import Step, Watchdog

FLUSH_S = 2.0
"""How long an exit waits for peers that do not take what was sent."""
FAREWELL_S = 1.0
"""How long an exit then waits for peers to hang up first. A socket that is closed on unread messages makes the
kernel reset the connection, and a reset discards the BYE that the peer has not read yet."""


class Mind(Protocol):
    """What the body knows of a coordinator."""

    def start(self, now: float) -> list[Action]:
        """The first actions."""
        ...

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event."""
        ...


class Body:
    """The I/O loop of one broker.

    Parameters
    ----------
    mind : Mind
    transport : Transport
    control : ControlServer
    inbox : Inbox
        Where the threads put what they have done.
    store, spooler, folder, judge : Service
        The threads; they end with the loop.
    versions : VersionStore
        Whose files blocks are served from.
    notes : NoteLog
    watchdog : Watchdog
        Says when memory calls for culprits, or for a rebind.
    figures : callable
        What the process adds to a status reply.
    registrar : Service, optional
        The thread that registers keys; with CURVE.
    admission : Admission, optional
        Likewise: who may connect.
    """

    def __init__(
        self,
        mind: Mind,
        *,
        transport: Transport,
        control: ControlServer,
        inbox: Inbox[Notice],
        store: Service[tuple[Row, ...]],
        spooler: Service[Spooling],
        folder: Service[Folding],
        judge: Service[Evaluate],
        versions: VersionStore,
        notes: NoteLog,
        watchdog: Watchdog,
        figures: Callable[[], dict[str, Any]],
        registrar: Service[Register] | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._mind = mind
        self._transport = transport
        self._control = control
        self._inbox = inbox
        self._store = store
        self._spooler = spooler
        self._folder = folder
        self._judge = judge
        self._versions = versions
        self._notes = notes
        self._watchdog = watchdog
        self._figures = figures
        self._registrar = registrar
        self._admission = admission
        self._promised: collections.deque[Commit] = collections.deque()
        self._rows: list[tuple[Row, ...]] = []
        self._status: set[int] = set()
        self._turned_away = 0
        self._saved_up = 0
        self._saved_down = 0
        self._wake_at: float | None = None
        self._exit: Exit | None = None
        self._halted: Exit | None = None
        transport.watch(inbox)

    def run(self) -> Exit:
        """Run until the mind says `Exit`.

        Raises
        ------
        StateError
            When a promise can no longer be kept: a disk that is full, a damaged file.
        """
        self._carry_out(self._mind.start(time.monotonic()))
        deadline = math.inf
        sent = False
        while True:
            self._hand_over()
            if self._halted is not None:
                return self._halted
            if self._exit is not None:
                now = time.monotonic()
                deadline = min(deadline, now + FLUSH_S)
                if not sent and not self._promised and (self._transport.idle or now > deadline):
                    sent, deadline = True, now + FAREWELL_S
                if sent and (now > deadline or not self._transport.connections):
                    self._store.put((self._traffic(),))
                    return self._exit
            self._transport.poll(self._timeout(deadline))
            self._turn()

    @property
    def promised(self) -> int:
        """Commits that are not durable yet."""
        return len(self._promised)

    def _turn(self) -> None:
        for notice in self._inbox.drain():
            self._take(notice)
        for key in self._transport.revoked():
            self._tell(Revoked(key))
        if self._admission is not None and (roll := self._admission.roll()) is not None:
            self._tell(Enrolled(roll.keys, roll.invites))
        for event in self._transport.receive():
            self._tell(event)
        if self._wake_at is not None and time.monotonic() >= self._wake_at:
            self._wake_at = None
            self._tell(Tick())
        self._transport.retry()
        self._guard()
        self._say_who_was_turned_away()
        while lost := self._transport.lost():
            for peer in lost:
                self._tell(Unreachable(peer))

    def _guard(self) -> None:
        """Keep the memory that peers can make libzmq take within its limit."""
        now = time.monotonic()
        step = self._watchdog.look(now, len(self._transport.connections))
        in_use = {"anonymous_mb": self._watchdog.level >> 20, "limit_mb": self._watchdog.limit >> 20}
        match step:
            case Step.NOTHING:
                return
            case Step.CALM:
                self._transport.connections.trust()
            case Step.SUSPECT:
                if cuts := self._transport.connections.cut_unfinished():
                    self._watchdog.freed(now)
                    text = "connections cut that sent and sent and finished no message"
                    self._notes.write("warning", text, {"connections": cuts, **in_use})
            case Step.REBIND:
                self._notes.write("warning", "too much memory in use: socket closed and bound again", in_use)
                self._transport.rebind()
                self._tell(Severed())
            case Step.USELESS:
                text = "memory stays high after a rebind: it is not the socket's"
                self._notes.write("error", text, in_use | {"next_try_s": self._watchdog.backoff_s})
            case _:
                assert_never(step)

    def _say_who_was_turned_away(self) -> None:
        """More connections than descriptors for them: a line a minute says so."""
        connections = self._transport.connections
        if connections.turned_away == self._turned_away:
            return
        self._turned_away = connections.turned_away
        fields = {
            "worker": None,  # with a reason, it is said once a minute
            "reason": f"{connections.most} connections are open, and no more may be",
            "advice": "raise the limit on open files (ulimit -n)",
        }
        self._notes.write("warning", "connections turned away", fields)

    def _take(self, notice: Notice) -> None:
        match notice:
            case Durable(commits):
                for _ in range(commits):
                    self._carry_out(self._promised.popleft().then)
                    self._keep_empty_promises()
            case Failed(thread, error):
                if isinstance(error, OSError):
                    raise StateError(f"the {thread} thread of the broker failed: {error}") from error
                raise error
            case Halt(reason):
                self._halted = Exit(1, reason)
            case Ask(answer):
                answer()
            case Control(token, command):
                if command == "status":
                    self._status.add(token)
                self._tell(notice)
            case _:
                self._tell(notice)

    def _tell(self, event: Event) -> None:
        self._carry_out(self._mind.handle(event, time.monotonic()))

    def _timeout(self, deadline: float) -> float | None:
        at = min(deadline, self._watchdog.due_at, math.inf if self._wake_at is None else self._wake_at)
        return None if at == math.inf else max(at - time.monotonic(), 0.0)

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            self._do(action)

    def _do(self, action: Action) -> None:
        match action:
            case Send(peer, message):
                self._transport.send(peer, message)
            case SendTask(peer, message):
                self._send_task(peer, message)
            case SendBlock():
                self._send_block(action)
            case Commit():
                self._commit(action)
            case Tell(event):
                self._tell(event)
            case OpenUpload() | WritePart() | Seal() | Discard() | Adopt() | Collect():
                self._spooler.put(action)
            case Fold() | EncodeModel():
                self._folder.put(action)
            case Evaluate():
                self._judge.put(action)
            case Register():
                assert self._registrar is not None
                self._registrar.put(action)
            case Wake(at):
                self._wake_at = at
            case Drop(peer):
                self._transport.drop(peer)
            case Reply(token, data):
                self._reply(token, data)
            case Note(level, text, fields):
                self._notes.write(level, text, fields)
            case Exit():
                self._exit = action
            case _:
                raise TypeError(f"not an action of the broker's: {type(action).__name__}")

    def _send_task(self, peer: Peer, task: wire.Task) -> None:
        # What cannot be read is asked for by FETCH, which says why there is none.
        with contextlib.suppress(StateError):
            self._transport.send(
                peer, task, self._versions.block(task.version, 0, task.size, task.model or "f32")
            )
            return
        self._transport.send(peer, task)

    def _send_block(self, action: SendBlock) -> None:
        try:
            data = self._versions.block(action.version, action.offset, action.length, action.encoding)
        except StateError as error:
            self._transport.send(
                action.peer,
                wire.Error(
                    ref=wire.Fetch.code,
                    why="busy" if is_exhausted(error) else "gone",
                    reason=wire.clip(str(error)),
                    version=action.version,
                    offset=action.offset,
                ),
            )
        else:
            self._transport.send_block(action.peer, action.version, action.offset, data, action.encoding)

    def _commit(self, commit: Commit) -> None:
        if not commit.rows and not self._promised:
            self._carry_out(commit.then)
            return
        self._promised.append(commit)
        if commit.rows:
            self._rows.append(commit.rows)

    def _keep_empty_promises(self) -> None:
        """Commits without rows were only waiting for those before them."""
        while self._promised and not self._promised[0].rows:
            self._carry_out(self._promised.popleft().then)

    def _hand_over(self) -> None:
        """Give the store thread the commits of this turn."""
        for rows in self._rows:
            if any(isinstance(row, VersionRow) for row in rows):
                rows = (*rows, self._traffic())
            self._store.put(rows)
        self._rows.clear()

    def _traffic(self) -> CounterRow:
        """Bytes moved since this was last written: totals that a restart goes on from."""
        up = self._transport.bytes_up - self._saved_up
        down = self._transport.bytes_down - self._saved_down
        self._saved_up += up
        self._saved_down += down
        return CounterRow(counts={"bytes_up": up, "bytes_down": down})

    def _reply(self, token: int, data: dict[str, Any]) -> None:
        if token in self._status:
            self._status.remove(token)
            data = data | self._figures()
        self._control.reply(token, data)
