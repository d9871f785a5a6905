"""The embedding program's own functions: told what happens, and asked whether this is a time to train.

Rules that hold here:

- They run in a thread of their own, one at a time and in order, so that a slow one delays neither the
  broker's messages nor the training.
- What they raise is logged and changes nothing; a `may_train` that raises means no.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from .events import Event, MayTrain, Moment

log = logging.getLogger("fedmq.worker")

OnEvent = Callable[[Moment, Mapping[str, Any]], None]
MayTrainFunction = Callable[[], bool]

POLL_S: Final = 1.0
"""How often `may_train` is asked."""


class Hooks:
    """The thread in which an embedding program's functions run.

    Parameters
    ----------
    on_event
        Called with a `Moment` and its fields.
    may_train
        Asked before the first connection, then every second.
    post
        Takes a `MayTrain` when the answer changes.
    """

    def __init__(
        self, on_event: OnEvent | None, may_train: MayTrainFunction | None, post: Callable[[Event], None]
    ) -> None:
        self._on_event = on_event
        self._may_train = may_train
        self._post = post
        self._moments: queue.SimpleQueue[tuple[Moment, Mapping[str, Any]] | None] = queue.SimpleQueue()
        self._allowed = True
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Ask `may_train` once, and begin; without functions there is no thread."""
        if self._may_train is not None:
            self._ask(self._may_train)
        if self._on_event is not None or self._may_train is not None:
            self._thread = threading.Thread(target=self._run, name="fedmq-hooks", daemon=True)
            self._thread.start()

    def tell(self, moment: Moment, fields: Mapping[str, Any]) -> None:
        """Something happened."""
        if self._on_event is not None:
            self._moments.put((moment, fields))

    def close(self, timeout_s: float) -> None:
        """End after what was told so far."""
        self._moments.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        ask_at = time.monotonic() + POLL_S
        while True:
            if self._may_train is not None and time.monotonic() >= ask_at:
                self._ask(self._may_train)  # however much there is to be told
                ask_at = time.monotonic() + POLL_S
            try:
                told = self._moments.get(
                    timeout=None if self._may_train is None else max(ask_at - time.monotonic(), 0.0)
                )
            except queue.Empty:
                continue
            if told is None:
                return
            if self._on_event is not None:
                try:
                    self._on_event(*told)
                except Exception:  # the user's code; his log says so
                    log.exception("on_event raised", extra={"moment": told[0].value})

    def _ask(self, may_train: MayTrainFunction) -> None:
        try:
            allowed = bool(may_train())
        except Exception:  # the user's code; his log says so
            log.exception("may_train raised; taken for no")
            allowed = False
        if allowed != self._allowed:
            self._allowed = allowed
            self._post(MayTrain(allowed))
