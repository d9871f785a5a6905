"""Logs of the command line: events with fields, for a person or for a machine.

The code logs ``log.info("update accepted", extra={"worker": …, "version": …})``. A person reads

    14:03:21 INFO  broker.coordinator: update accepted  worker=ward-3 version=17

and ``--log-format json`` writes one object per line with the same fields, which are never nested. Logs go to
stderr. What cannot be shown is described by its type: logging must not be what fails.
"""

import datetime
import json
import logging
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import click

LEVELS = ("debug", "info", "warning", "error")
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CUT = 200  # characters of one value

P = ParamSpec("P")
T = TypeVar("T")


class HumanFormatter(logging.Formatter):
    """One line per event; tracebacks below it."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = f"{record.levelname:<5}"
        if self._colour and record.levelno >= logging.WARNING:
            level = click.style(level, fg="red" if record.levelno >= logging.ERROR else "yellow")
        name = record.name.removeprefix("fedmq.")
        fields = " ".join(f"{key}={_quoted(value)}" for key, value in _fields(record).items())
        line = f"{time} {level} {name}: {_one_line(record.getMessage())}{'  ' if fields else ''}{fields}"
        return "\n".join([line, self.formatException(record.exc_info)]) if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, event, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        event: dict[str, object] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        event.update((key, value) for key, value in _fields(record).items() if key not in event)
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


def configure(*, style: str = "text", level: str = "info") -> None:
    """Send the logs of fedmq to stderr; calling it again replaces what an earlier call did.

    Parameters
    ----------
    style : {"text", "json"}
    level : {"debug", "info", "warning", "error"}
        Of fedmq's own loggers; other libraries are heard from "warning" on.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else HumanFormatter(colour=sys.stderr.isatty()))
    root = logging.getLogger()
    for old in [old for old in root.handlers if getattr(old, "of_fedmq", False)]:
        root.removeHandler(old)
    handler.of_fedmq = True  # type: ignore[attr-defined]  # marks it for the line above
    root.addHandler(handler)
    logging.getLogger("fedmq").setLevel(level.upper())


def log_options(command: Callable[P, T]) -> Callable[P, T]:
    """Give a command ``--debug``, ``--log-level`` and ``--log-format``, before and after its name."""
    options = [
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            help="How logs are written.  [default: text]",
            expose_value=False,
            callback=_remember,
        ),
        click.option(
            "--log-level",
            type=click.Choice(LEVELS, case_sensitive=False),
            help="What is logged.  [default: info]",
            expose_value=False,
            callback=_remember,
        ),
        click.option(
            "--debug",
            is_flag=True,
            help="Log everything, and show tracebacks.",
            expose_value=False,
            callback=_remember,
        ),
    ]
    for option in options:
        command = option(command)
    return command


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep an option that was given, and set the logs up as all of them together say."""
    settings = ctx.ensure_object(dict)
    if value:
        settings[param.name] = value
    level = "debug" if settings.get("debug") else settings.get("log_level", "info")
    configure(style=settings.get("log_format", "text"), level=level)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What an event carries in `extra`, as values that JSON knows."""
    return {key: _plain(value) for key, value in vars(record).items() if key not in _OWN_FIELDS}


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        text = value[: _CUT // 2].hex()
    else:
        try:
            text = str(value)
        except Exception as error:  # a broken __str__ must not take the program down; its type is shown
            text = f"<{type(value).__name__}: {type(error).__name__}>"
    return text if len(text) <= _CUT else text[: _CUT - 1] + "…"


def _quoted(value: object) -> str:
    text = _one_line(str(value))
    return json.dumps(text, ensure_ascii=False) if " " in text or not text or '"' in text else text


def _one_line(text: str) -> str:
    """Without control characters: a name from the network must not forge a line of the log."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
