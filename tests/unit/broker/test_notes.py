"""Notes in the log: a peer cannot flood it, and nothing that happens once is swallowed."""

import logging

import pytest

from fedmq.broker.notes import KEPT_MAX, NoteLog

LOG = logging.getLogger("fedmq.broker.test_notes")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def notes(clock: Clock, caplog: pytest.LogCaptureFixture) -> NoteLog:
    caplog.set_level("DEBUG", LOG.name)
    return NoteLog(LOG, clock)


def test_a_note_is_an_event_with_fields(notes: NoteLog, caplog: pytest.LogCaptureFixture) -> None:
    """Level, text and fields; a field that a log record has itself gets another name."""
    notes.write("warning", "protocol error", {"worker": "w", "reason": "NaN", "name": "x"})
    (record,) = caplog.records
    assert (record.levelname, record.getMessage(), record.name) == ("WARNING", "protocol error", LOG.name)
    assert vars(record)["worker"] == "w"
    assert vars(record)["name_"] == "x"


def test_a_worker_repeats_itself_once_a_minute(
    notes: NoteLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The next line says how many were left out."""
    for second in range(61):
        clock.now = float(second)
        notes.write("warning", "update rejected", {"worker": "w", "reason": "norm"})
    assert len(caplog.records) == 2
    assert vars(caplog.records[1])["repeated"] == 59


def test_others_are_heard_meanwhile(notes: NoteLog, caplog: pytest.LogCaptureFixture) -> None:
    """Another worker, another reason, another event; and what is no worker's, always."""
    for _ in range(2):
        notes.write("info", "rejected", {"worker": "a", "reason": "norm"})
        notes.write("info", "rejected", {"worker": "b", "reason": "norm"})
        notes.write("info", "rejected", {"worker": "a", "reason": "layout"})
        notes.write("info", "released", {"worker": "a", "reason": "norm"})
        notes.write("info", "buffer frozen", {"reason": "full"})
    assert len(caplog.records) == 4 + 2


def test_memory_is_bounded_against_made_up_names(notes: NoteLog, caplog: pytest.LogCaptureFixture) -> None:
    """The oldest are forgotten."""
    for number in range(KEPT_MAX + 10):
        notes.write("debug", "x", {"worker": str(number), "reason": "r"})
    caplog.clear()
    notes.write("debug", "x", {"worker": "0", "reason": "r"})
    notes.write("debug", "x", {"worker": str(KEPT_MAX), "reason": "r"})
    assert [vars(record)["worker"] for record in caplog.records] == ["0"]
