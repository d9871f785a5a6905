"""What the thread beside the I/O thread does about enrolment: a worker's key onto the allowlist, durably.

It waits for the disk, and for the command line where that holds the lists. A list that cannot be read or written
refuses the worker, which will come again, and does not end the broker: those who are enrolled go on.
"""

import collections
import logging
import time
from collections.abc import Callable, Iterable

from fedmq.fedcore import wire
from fedmq.fedcore.errors import FedmqError
from fedmq.fedcore.keys import to_text

from .events import Register, Registered
from .keyring import KeyRing
from .threads import Notice

log = logging.getLogger("fedmq.broker")


class Registrar:
    """Registers keys in one key ring.

    Parameters
    ----------
    ring : KeyRing
    wall : callable
        Seconds since 1970.
    """

    def __init__(self, ring: KeyRing, wall: Callable[[], float] = time.time) -> None:
        self._ring = ring
        self._wall = wall

    def __call__(self, jobs: collections.deque[Register]) -> Iterable[Notice]:
        """Register each, in order."""
        while jobs:
            job = jobs.popleft()
            try:
                refusal = self._ring.register(job.invite, to_text(job.key), self._wall())
            except FedmqError as error:
                log.error("a key cannot be registered", extra={"reason": str(error)})
                refusal = "the broker cannot write its allowlist now; its log says why"
            yield Registered(job.peer, job.key, wire.clip(refusal))
