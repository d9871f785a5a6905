"""Logs: one line per event, its fields beside it, and nothing from the network that can forge a line."""

import json
import logging
import sys

import pytest

from fedmq.cli.logs import HumanFormatter, JsonFormatter, configure


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError


def event(message: str = "update accepted", **extra: object) -> logging.LogRecord:
    return logging.getLogger("fedmq.broker.coordinator").makeRecord(
        "fedmq.broker.coordinator", logging.INFO, __file__, 1, message, (), None, extra=extra
    )


def test_a_person_reads_fields_behind_the_event() -> None:
    """Logger without the package's name; text with blanks is quoted."""
    line = HumanFormatter().format(event(worker="ward 3", version=17))
    assert line[8:] == ' INFO  broker.coordinator: update accepted  worker="ward 3" version=17'


def test_a_machine_reads_one_object() -> None:
    """Numbers stay numbers, bytes are hexadecimal, time is UTC."""
    found = json.loads(JsonFormatter().format(event(worker="ä", version=17, task=b"\x01\xff", norm=None)))
    assert found["time"].endswith("Z")
    del found["time"]
    assert found == {
        "level": "info",
        "logger": "fedmq.broker.coordinator",
        "event": "update accepted",
        "worker": "ä",
        "version": 17,
        "task": "01ff",
        "norm": None,
    }


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "a\u2028b", "a\rb"])
def test_a_name_forges_no_line(name: str) -> None:
    """Control characters are shown as escapes."""
    line = HumanFormatter().format(event(name, worker=name))
    assert line.isprintable()
    assert "\n" not in JsonFormatter().format(event(name, worker=name))


def test_long_and_strange_values_are_cut() -> None:
    """A log line is bounded, and formatting never fails."""
    line = HumanFormatter().format(event(blob="x" * 5000, odd=Unspeakable()))
    assert len(line) < 400
    assert "odd=" in line
    assert "Unspeakable" in line


def test_fields_do_not_replace_our_own() -> None:
    """An event's `level` or `time` cannot be overwritten from `extra`."""
    assert json.loads(JsonFormatter().format(event(level="forged")))["level"] == "info"


@pytest.mark.parametrize("formatter", [HumanFormatter(), JsonFormatter()])
def test_tracebacks_are_kept(formatter: logging.Formatter) -> None:
    """Whoever runs a daemon for months needs them."""
    record = event("failed")
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        record.exc_info = sys.exc_info()
    assert "ZeroDivisionError: why" in formatter.format(record)


@pytest.mark.usefixtures("fedmq")
def test_configuring_again_replaces(capsys: pytest.CaptureFixture[str]) -> None:
    """One line per event, however often it was called."""
    configure(style="text", level="info")
    configure(style="json", level="debug")
    logging.getLogger("fedmq.worker").debug("hello", extra={"n": 1})
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["hello"]


def test_options_work_on_both_sides(fedmq, state) -> None:
    """``fedmq --log-format json status`` and ``fedmq status --log-format json``."""
    for args in (["--log-format", "json", "status", state], ["status", state, "--log-format", "json"]):
        assert fedmq(*args, "--json")[0] == 0
        ours = [h for h in logging.getLogger().handlers if getattr(h, "of_fedmq", False)]
        assert [type(handler.formatter) for handler in ours] == [JsonFormatter]
