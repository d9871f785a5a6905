"""A state folder that an earlier schema wrote opens in this version, migrates, and goes on as if nothing had been."""

from pathlib import Path

import pytest

from fedmq.broker.daemon import Broker
from fedmq.broker.store import schema
from fedmq.broker.store.backup import backup
from fedmq.broker.store.history import History
from fedmq.broker.verification import verify
from fedmq.fedcore import config
from fedmq.fedcore.errors import StateError

from ..integration.by_hand import worker
from . import frozen
from .freeze import N, answer

SCHEMAS = range(1, schema.SCHEMA + 1)


def settings(state: Path) -> config.Config:
    """The config that the folder was last started with, where it is now."""
    return config.parse((state / "config.toml").read_text(encoding="utf-8"), base_dir=state.parent)


def test_every_schema_has_a_frozen_folder() -> None:
    """Whoever adds a migration freezes a folder with it: python -m tests.upgrades.freeze SCHEMA."""
    assert {path.name for path in frozen.FOLDERS.iterdir()} == {f"schema{number}" for number in SCHEMAS}


@pytest.mark.parametrize("number", SCHEMAS)
def test_a_released_migration_is_never_edited(number: int) -> None:
    """The frozen tables, indexes and triggers are still those that the migrations make."""
    db, made = frozen.journal(number, ":memory:"), frozen.empty(number)
    assert frozen.laws(db) == frozen.laws(made)
    assert db.execute("PRAGMA user_version").fetchone() == (number,)
    assert db.execute("PRAGMA application_id").fetchone() == (schema.APPLICATION_ID,)
    db.close()
    made.close()


@pytest.mark.parametrize("number", SCHEMAS)
def test_a_folder_opens_migrates_and_goes_on(number: int, tmp_path: Path) -> None:
    """The round is still open, the task in a worker's hands still counts, and the model comes out the same."""
    state, was = frozen.thaw(number, tmp_path)
    with Broker(settings(state)) as broker:
        status = broker.status()
        assert (status["version"], status["buffer"]["have"], status["round"]["asked"]) == (was.version, 1, 2)
        task = was.held()
        with worker(broker.endpoint, "b", n=N, tasks=(task.task,)) as b:
            answer(broker, b, task)
    with History.open(state / "journal.db") as history:
        assert [row["digest"] for row in history.history()] == was.digests
        assert history.accepted() == 6
    assert [verdict.same for verdict in verify(state)] == [True] * 3
    with Broker(settings(state)) as broker:
        assert broker.status()["version"] == was.version + 1


@pytest.mark.parametrize("number", SCHEMAS[:-1])
def test_an_old_folder_can_be_backed_up_before_it_is_migrated(number: int, tmp_path: Path) -> None:
    """The copy has the old schema; readers say what to do, and a broker that is started on it migrates it."""
    state, was = frozen.thaw(number, tmp_path)
    assert backup(state, tmp_path / "copy").version == was.version
    with pytest.raises(StateError, match=rf"has schema {number}, .* start its broker once"):
        History.open(tmp_path / "copy" / "journal.db")
    state.rename(tmp_path / "old")
    (tmp_path / "copy").rename(state)
    with Broker(settings(state)) as broker:
        assert broker.status()["version"] == was.version


def test_a_later_schema_is_refused(tmp_path: Path) -> None:
    """By a name that says what to do, and nothing is touched."""
    state, _ = frozen.thaw(schema.SCHEMA, tmp_path)
    with open(state / "journal.db", "r+b") as file:
        file.seek(60)  # the user version in SQLite's header
        file.write((schema.SCHEMA + 1).to_bytes(4, "big"))
    before = (state / "journal.db").read_bytes()
    with pytest.raises(StateError, match="use a newer fedmq"):
        Broker(settings(state)).start()
    assert (state / "journal.db").read_bytes() == before
