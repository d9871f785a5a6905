"""What the worker's body does where the disk refuses: it says so, and goes on."""

import logging
from pathlib import Path
from typing import cast

import pytest

from fedmq.worker.body import Body
from fedmq.worker.entry import Entry
from fedmq.worker.events import DeleteModel, DeleteOutbox
from fedmq.worker.models import ModelCache
from fedmq.worker.outbox import Outbox
from fedmq.worker.session import Session
from fedmq.worker.transport import Transport


class Disk:
    """Outbox and model cache of a folder that may be read-only."""

    is_read_only = True

    def delete(self, name: bytes) -> None:
        if self.is_read_only:
            raise PermissionError(13, "Permission denied")


class Socket:
    """Has nothing queued."""

    def forget(self, task: bytes) -> None:
        pass

    def watch(self, source: object) -> None:
        pass


def test_what_cannot_be_deleted_stays(caplog: pytest.LogCaptureFixture) -> None:
    """An acknowledged result or an old model that cannot go is no reason to end; it is said once, until it works."""
    disk = Disk()
    body = Body(
        cast(Session, None), cast(Transport, Socket()), cast(Outbox, disk), cast(ModelCache, disk), "w"
    )
    with caplog.at_level(logging.WARNING):
        for action in (DeleteOutbox(b"a"), DeleteOutbox(b"b"), DeleteModel(b"c")):
            body._perform(action)
        assert [record.getMessage() for record in caplog.records] == [
            "a result cannot be deleted: [Errno 13] Permission denied"
        ]
        disk.is_read_only = False
        body._perform(DeleteModel(b"c"))
        disk.is_read_only = True
        body._perform(DeleteModel(b"d"))
    assert caplog.records[-1].getMessage() == "a model cannot be deleted: [Errno 13] Permission denied"
    assert len(caplog.records) == 2
    body.close()


def test_a_result_that_could_not_be_deleted_is_offered_again(tmp_path: Path) -> None:
    """By the next process, to a broker that knows it: never lost, and answered `duplicate`."""
    outbox = Outbox(tmp_path)
    entry = Entry(
        task=b"t",
        kind="evaluate",
        federation="f",
        base=0,
        examples=1,
        metrics={"loss": 0.0},
        layout=None,
        encoding=None,
    )
    outbox.put(entry)
    kept = (tmp_path / "small").read_bytes()
    outbox.delete(b"t")
    outbox.close()
    (tmp_path / "small").write_bytes(kept)  # as a disk that refuses leaves it
    assert [found.task for found in Outbox(tmp_path).load()] == [b"t"]
