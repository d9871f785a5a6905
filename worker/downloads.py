"""The mind's model cache: which models are here, how much of each, and what to FETCH next.

Rules that hold here:

- Models are known by the digest that their TASK names; two tasks on one version share one file.
- Blocks are taken strictly in order: the file's length is how much of it is here, also after a
  restart. What arrives at any other place changes nothing.
- At most three FETCHes are outstanding, for all models together. Four are allowed, but a broker may count a
  block that is here already as unsent for as long as its own socket holds the bytes, and say `busy`.
- A file is not trusted because it is complete: it is read and compared with its digest before an app sees it.
- A small model comes with its task. It stays in memory: the next process gets it again sooner than from a disk.
- The last few models stay, so that a second task on one of them fetches nothing.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from fedmq.fedcore import wire

from .events import Action, DeleteModel, KeepModel, Send, StoreBlock
from .pace import Pace

STALL_S: Final = 60.0
WINDOW: Final = wire.FETCHES_MAX - 1
BUSY_S: Final = 0.2
"""How long to wait after `busy`."""


class Model:
    """A model that is here, wholly or in part."""

    __slots__ = ("asked", "broken", "encoding", "have", "outstanding", "size", "version")

    def __init__(self, have: int) -> None:
        self.version = -1
        self.encoding: str | None = None
        self.size = -1
        self.have = have
        self.asked = have
        self.outstanding: deque[tuple[int, int]] = deque()
        self.broken = 0

    def void(self) -> None:
        """Nothing that was asked for will come."""
        self.outstanding.clear()
        self.asked = self.have


class Downloads:
    """The model cache as the mind sees it.

    Parameters
    ----------
    lengths
        Digest and length of each file in the cache when the worker started, the least recently used first.
    keep
        How many models to keep that no task needs.
    pace
        Shared with the uploads.
    emit
        Takes the actions.
    """

    def __init__(
        self, lengths: Mapping[bytes, int], keep: int, pace: Pace, emit: Callable[[Action], None]
    ) -> None:
        self._models = OrderedDict((digest, Model(length)) for digest, length in lengths.items())
        self._keep = keep
        self._pace = pace
        self._emit = emit
        self._moved_at = 0.0
        self._retry_at = 0.0

    def want(self, task: wire.Task) -> None:
        """A task is on this model; have it, or a place for it."""
        if task.digest is None:
            return
        model = self._models.get(task.digest)
        if model is not None and (model.have > task.size or model.size not in (-1, task.size)):
            self._emit(DeleteModel(task.digest))
            model = None
        if model is None:
            model = self._models[task.digest] = Model(0)
        self._models.move_to_end(task.digest)
        model.size = task.size
        if (model.version, model.encoding) != (task.version, task.model):
            model.version, model.encoding = task.version, task.model
            model.void()

    def give(self, task: wire.Task, data: memoryview) -> None:
        """A task that is wanted here came with its whole model."""
        if task.digest is None or data.nbytes != task.size or self.is_ready(task):
            return
        model = self._models[task.digest]
        if model.have:
            self._emit(DeleteModel(task.digest))
        model.have = task.size
        model.void()
        self._emit(KeepModel(task.digest, data))

    def is_ready(self, task: wire.Task) -> bool:
        """Whether every byte of a task's model is here."""
        return task.digest is None or self._models[task.digest].have == task.size

    def trim(self, needed: Callable[[], set[bytes]]) -> None:
        """Delete the least recently used models beyond `keep` that no task needs."""
        if len(self._models) <= self._keep:
            return
        those = needed()
        spare = [digest for digest in self._models if digest not in those]
        for digest in spare[: max(0, len(spare) - self._keep)]:
            del self._models[digest]
            self._emit(DeleteModel(digest))

    def broken(self, digest: bytes) -> bool:
        """A complete file was not what its digest says: fetch it again. False when that was done before."""
        model = self._models.get(digest)
        if model is None:
            return False
        self._emit(DeleteModel(digest))
        model.broken += 1
        model.have = 0
        model.void()
        if model.broken > 1:
            del self._models[digest]
            return False
        return True

    def forget(self, digest: bytes) -> None:
        """A file cannot be written; what there is of it goes."""
        if self._models.pop(digest, None) is not None:
            self._emit(DeleteModel(digest))

    def void(self) -> None:
        """Nothing that was asked for will come: a new session."""
        for model in self._models.values():
            model.void()
        self._retry_at = 0.0

    def gone(self, version: int) -> None:
        """The broker does not serve this version: what was asked for of it will not come."""
        for model in self._models.values():
            if model.version == version:
                model.void()

    def busy(self, version: int | None, offset: int | None, now: float) -> None:
        """The broker refused a FETCH: ask again from there, a little later. What was asked before it will come."""
        for model in self._models.values():
            while model.outstanding and (
                offset is None or (model.version == version and model.outstanding[-1][0] >= offset)
            ):
                model.asked, _ = model.outstanding.pop()
        self._retry_at = now + BUSY_S

    def block(self, message: wire.Block, data: memoryview, now: float) -> bool:
        """Bytes of a version; False when they were not asked for, or not in order."""
        of = message.version, message.model
        asked = [(d, m) for d, m in self._models.items() if (m.version, m.encoding) == of and m.outstanding]
        if not asked or asked[0][1].outstanding[0] != (message.offset, data.nbytes):
            return False
        digest, model = asked[0]
        model.outstanding.popleft()
        model.have += data.nbytes
        self._moved_at = now
        self._pace.moved()
        self._emit(StoreBlock(digest, message.offset, data))
        return True

    def pump(self, tasks: Iterable[wire.Task], now: float) -> None:
        """FETCH what these tasks lack, the first task's model first."""
        if now < self._retry_at:
            return
        lacking = [m for t in tasks if t.digest is not None and (m := self._models[t.digest]).asked < m.size]
        if not lacking:
            return
        free = WINDOW - sum(len(m.outstanding) for m in self._models.values())
        for model in lacking:
            while free > 0 and model.asked < model.size:
                if free == WINDOW:
                    self._moved_at = now
                length = min(self._pace.piece, model.size - model.asked)
                fetch = wire.Fetch(
                    version=model.version, offset=model.asked, length=length, model=model.encoding
                )
                self._emit(Send(fetch))
                model.outstanding.append((model.asked, length))
                model.asked += length
                free -= 1

    def is_moving(self) -> bool:
        """Whether FETCHes are outstanding."""
        return any(model.outstanding for model in self._models.values())

    def is_stalled(self, now: float) -> bool:
        """Whether FETCHes are outstanding and no block came for too long."""
        return self.is_moving() and now >= self._moved_at + STALL_S

    def next_due(self, now: float) -> float:
        """When `pump` or `is_stalled` has something to say, if nothing arrives before."""
        due = self._moved_at + STALL_S if self.is_moving() else float("inf")
        return min(due, self._retry_at) if self._retry_at > now else due
