"""Task ids: idempotency key and capability in one.

An id is ``kind (1) | version (8) | boot (8) | counter (4) | MAC (16)``, 37 bytes. The MAC, keyed from
the state folder, covers the federation, the worker, the base version *and its model digest*, the kind
and the counter. It counts one worker's tasks, so that nobody learns from ids how many others were asked.
So a restarted broker recognises work that it handed out before it died, a worker can
answer only its own tasks, and a broker restored from a backup refuses deltas against a model that it
never had. `boot` is random per process, so that two lives of a broker never make the same id.
"""

import hashlib
import hmac
import struct
from typing import Literal, cast

import msgspec

from fedmq.fedcore.wire import TaskId, TaskKind

_HEAD = struct.Struct(">BQ8sI")
_MAC_BYTES = 16
_CODES: dict[str, int] = {"fit": 1, "evaluate": 2, "init": 3}
_KINDS: dict[int, str] = {code: kind for kind, code in _CODES.items()}


class Claim(msgspec.Struct, frozen=True):
    """What an id says of itself, before its MAC is checked."""

    kind: TaskKind
    version: int


class TaskIds:
    """Makes and checks the ids of one federation.

    Parameters
    ----------
    federation : bytes
        The federation's id.
    key : bytes
        The MAC key, from the state folder; 32 bytes.
    boot : bytes
        Eight random bytes, new for each process.
    """

    def __init__(self, federation: bytes, key: bytes, boot: bytes) -> None:
        if len(key) != 32:  # an empty one would make a MAC that anybody can compute
            raise ValueError(f"key is {len(key)} bytes, expected 32")
        if len(boot) != 8:
            raise ValueError(f"boot is {len(boot)} bytes, expected 8")
        self._federation = federation
        self._key = key
        self._boot = boot
        self._counters: dict[str, int] = {}  # of each worker

    def make(
        self, kind: Literal["fit", "evaluate", "init"], worker: str, version: int, digest: bytes
    ) -> TaskId:
        """A new id for one task of one worker against one version (`digest`: of that version's file)."""
        counter = self._counters.get(worker, 0)
        self._counters[worker] = counter + 1
        head = _HEAD.pack(_CODES[kind], version, self._boot, counter)
        return TaskId(head + self._mac(head, worker, digest))

    @staticmethod
    def read(task: bytes) -> Claim | None:
        """What an id claims, or None when it has not the form of one."""
        if len(task) != _HEAD.size + _MAC_BYTES:
            return None
        code, version, _, _ = _HEAD.unpack_from(task)
        kind = _KINDS.get(code)
        return None if kind is None else Claim(cast(TaskKind, kind), version)

    def check(self, task: bytes, worker: str, digest: bytes) -> bool:
        """Whether this federation gave `task` to `worker` against the version with `digest`."""
        if len(task) != _HEAD.size + _MAC_BYTES:
            return False
        return hmac.compare_digest(task[_HEAD.size :], self._mac(task[: _HEAD.size], worker, digest))

    def _mac(self, head: bytes, worker: str, digest: bytes) -> bytes:
        name = worker.encode()
        mac = hashlib.blake2b(key=self._key, digest_size=_MAC_BYTES, person=b"fedmq task 1")
        for part in (self._federation, head, digest, name):
            mac.update(len(part).to_bytes(4, "big"))
            mac.update(part)
        return mac.digest()


def task_seed(seed: int, worker: str, version: int, nth: int = 0) -> int:
    """The uint64 seed of a worker's `nth` task against a version: the same in every run.

    Parameters
    ----------
    seed : int
        The federation's seed.
    worker : str
        The worker's name.
    version : int
        The base version.
    nth : int
        Counts the worker's fit tasks against this version, so that an asynchronous worker which is
        faster than the buffer does not draw the same batches twice. Always 0 in a round.
    """
    text = f"{seed}/{worker}/{version}/{nth}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"fedmq seed 1").digest(), "big")
