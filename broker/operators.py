"""The operator's commands, as they arrive over the control socket. Pure.

=========  ==========================================================================================
command    effect
=========  ==========================================================================================
status     what `status.report` says
pause      no more tasks go out until `resume`; outlives a restart. Answered with ``already`` where it is so
resume     tasks go out again; likewise
stop       drain, as SIGTERM does; with ``finish`` the federation ends for good
evict      a worker is sent away, now and whenever it comes back; ``admit`` takes that back
=========  ==========================================================================================

A command that changes something is answered when the change is durable.
"""

from fedmq.fedcore import wire

from . import status
from .books import Books
from .events import Action, Control, Drop, Reply, Send
from .peers import Peers
from .rows import EvictRow, PauseRow


class Operators:
    """Carries out commands on the books."""

    def __init__(self, books: Books, peers: Peers) -> None:
        self._books = books
        self._peers = peers

    def command(self, event: Control, now: float) -> None:
        """A command of the operator's."""
        books = self._books
        reply = Reply(event.token, {"ok": True})
        match event.command:
            case "status":
                books.emit(Reply(event.token, status.report(books, now)))
            case "pause" | "resume":
                before, books.paused = books.paused, event.command == "pause"
                told = Reply(event.token, {"ok": True, "already": before == books.paused})
                books.commit(PauseRow(paused=books.paused), then=(told,))
                books.look_at_all()
            case "stop":
                if event.args.get("finish"):
                    books.stopping = "finished by an operator"
                else:
                    books.draining = True
                books.emit(reply)
            case "evict" | "admit":
                self._evict(event, now)
            case _:
                books.emit(Reply(event.token, {"ok": False, "error": f"unknown command {event.command!r}"}))

    def _evict(self, event: Control, now: float) -> None:
        books = self._books
        name = event.args.get("worker")
        called = [w for w in books.workers if name == w.id] or [w for w in books.workers if name == w.name]
        worker = called[0] if called else None
        if not isinstance(name, str) or not name:
            books.emit(Reply(event.token, {"ok": False, "error": "which worker? give its name"}))
            return
        if len(called) > 1:
            keys = " ".join(w.id for w in called)
            error = f"{len(called)} workers call themselves {name!r}; give the key of one: {keys}"
            books.emit(Reply(event.token, {"ok": False, "error": error}))
            return
        worker_id = name if worker is None else worker.id
        evicted = event.command == "evict"
        if evicted and worker is None and name not in books.awaited:
            known = ", ".join(sorted({*books.awaited, *(w.name for w in books.workers)})) or "none"
            books.emit(Reply(event.token, {"ok": False, "error": f"no worker {name!r}; there are: {known}"}))
            return
        (books.evicted.add if evicted else books.evicted.discard)(worker_id)
        then: list[Action] = [Reply(event.token, {"ok": True})]
        if evicted and worker is not None and worker.session is not None:
            peer = worker.session.peer
            then += [Send(peer, wire.Bye(reason="revoked")), Drop(peer)]
            self._peers.gone(worker, "evicted")
        books.commit(EvictRow(worker=worker_id, evicted=evicted), then=tuple(then))
