"""`fedmq worker`: one worker as a process, until its federation is finished or a signal comes.

Rules that hold here:

- SIGTERM and SIGINT: BYE, the app is told that its task is no longer wanted, and what was not acknowledged
  stays in the outbox. An app that does not listen is left behind after a grace of a few seconds.
- A second signal leaves at once.
- Exit codes: 0 for a finished federation and for a signal; 7 when the broker refuses this worker for good.
  Errors in what the user gave are raised, for the command line to print.
"""

import logging
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Final

from fedmq.fedcore import codecs
from fedmq.fedcore.errors import ConnectError

from .transport import CurveKeys
from .worker import Worker

log = logging.getLogger("fedmq.worker")

GRACE_S: Final = 5.0


def run(
    connect: str | None,
    app: object,
    state: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    node: Mapping[str, str] | None = None,
    tags: Sequence[str] = (),
    encodings: Sequence[str] = codecs.ENCODINGS,
    slots: int = 2,
    server_key: str | os.PathLike[str] | None = None,
    invite: str | os.PathLike[str] | None = None,
    keys: CurveKeys | None = None,
    fsync: bool = False,
    grace_s: float = GRACE_S,
) -> int:
    """Work until the end, and say the exit code. Call it in the main thread: it handles signals.

    Parameters
    ----------
    connect, app, state, name, node, tags, encodings, slots, server_key, invite, keys, fsync
        As `fedmq.worker.Worker` has them.
    grace_s : float
        Seconds between a signal and leaving an app behind that does not end.

    Raises
    ------
    ConfigError, ClientAppError, StateError
        When an argument, the app or the state folder cannot be used.
    """
    worker = Worker(
        app,
        connect,
        state,
        name=name,
        node=node,
        tags=tags,
        encodings=encodings,
        slots=slots,
        server_key=server_key,
        invite=invite,
        keys=keys,
        fsync=fsync,
    )
    signals = _Signals(worker, grace_s)
    before = {number: signal.signal(number, signals.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        worker.run()
    except ConnectError as error:
        log.error("%s", error)
        return error.exit_code
    finally:
        signals.done()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


class _Signals:
    """What SIGTERM and SIGINT do to a worker."""

    def __init__(self, worker: Worker, grace_s: float) -> None:
        self._worker = worker
        self._grace_s = grace_s
        self._timer: threading.Timer | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Leave in order at the first signal, at once at the second."""
        if self._timer is not None:
            self._leave()
        # The timer is a thread: it runs even when the app holds the main thread in one long call.
        self._timer = threading.Timer(self._grace_s, self._leave)
        self._timer.daemon = True
        self._timer.start()
        self._worker.request_stop()

    def done(self) -> None:
        """The worker has ended."""
        if self._timer is not None:
            self._timer.cancel()

    @staticmethod
    def _leave() -> None:
        logging.shutdown()
        os._exit(0)
