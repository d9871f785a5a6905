"""The mind's notes in the log, so that no peer can flood it: one line a minute for each worker and reason."""

import logging
import time
from collections.abc import Callable
from typing import Any

QUIET_S = 60.0
KEPT_MAX = 4096
"""Lines that are remembered; beyond it the oldest are forgotten, and may be written again."""

_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class NoteLog:
    """Writes events with fields to a logger.

    Parameters
    ----------
    log : Logger
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._last: dict[tuple[str, str, str], float] = {}
        self._unsaid: dict[tuple[str, str, str], int] = {}

    def write(self, level: str, text: str, fields: dict[str, Any]) -> None:
        """Log an event; what repeats of one worker for one reason within a minute is only counted.

        Parameters
        ----------
        level : {"debug", "info", "warning", "error"}
        text : str
            What happened.
        fields : dict
            What a reader may want to know. `worker` and `reason` name who and why.
        """
        number = logging.getLevelNamesMapping()[level.upper()]
        if "worker" in fields and "reason" in fields:
            key = (text, str(fields.get("worker")), str(fields["reason"]))
            now = self._clock()
            if now - self._last.get(key, -QUIET_S) < QUIET_S:
                self._unsaid[key] = self._unsaid.get(key, 0) + 1
                return
            if len(self._last) >= KEPT_MAX:
                oldest = next(iter(self._last))
                del self._last[oldest]
                self._unsaid.pop(oldest, None)
            self._last.pop(key, None)
            self._last[key] = now
            if repeated := self._unsaid.pop(key, 0):
                fields = fields | {"repeated": repeated}
        # `extra` may not hold the names that a record has itself.
        extra = {f"{name}_" if name in _RESERVED else name: value for name, value in fields.items()}
        self._log.log(number, text, extra=extra)
