"""State folders of earlier schemas, frozen as text: how they are kept, and how they become folders again.

``folders/schemaN/journal.sql`` is the journal, ``folder.json`` everything else: small files, and what the
tests have to know of the moment at which it was frozen. `freeze.py` makes them; a released one never changes again.
"""

import base64
import json
import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from fedmq.broker.store import schema
from fedmq.fedcore import wire

FOLDERS = Path(__file__).with_name("folders")


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but the journal.

    Attributes
    ----------
    texts
        Small files that are text, by their names in the state folder.
    files
        The others, in base64.
    initial
        The model file that the federation started from, in base64; its config names it.
    task
        The id of the task that worker `b` had in hand, in hexadecimal digits.
    layout
        Of the model, likewise.
    digests
        Of versions 0, 1, … as far as they were made, and of the one that comes after `b` has answered.
    """

    texts: dict[str, str]
    files: dict[str, str]
    initial: str
    task: str
    layout: str
    digests: list[str]

    @property
    def version(self) -> int:
        """The current version."""
        return len(self.digests) - 2

    def held(self) -> wire.Task:
        """What worker `b` remembers of its task."""
        return wire.Task(
            task=bytes.fromhex(self.task),
            seq=1,
            kind="fit",
            version=self.version,
            size=1,
            digest=bytes.fromhex(self.digests[-2]),
            layout=bytes.fromhex(self.layout),
        )


def write(folder: Path, journal: str, frozen: Frozen) -> None:
    """Keep a frozen folder."""
    folder.mkdir(parents=True)
    (folder / "journal.sql").write_text(journal, encoding="utf-8")
    document = json.dumps(msgspec.to_builtins(frozen), indent=1, sort_keys=True)
    (folder / "folder.json").write_text(document + "\n", encoding="utf-8")


def thaw(number: int, base: Path) -> tuple[Path, Frozen]:
    """Make the state folder of a schema again, and the initial model beside it; the folder, and what is known of it."""
    source = FOLDERS / f"schema{number}"
    frozen = msgspec.json.decode((source / "folder.json").read_bytes(), type=Frozen)
    state = base / "state"
    for name in ("spool", "versions", "keys"):
        (state / name).mkdir(parents=True)
    for name, content in frozen.files.items():
        (state / name).write_bytes(base64.b64decode(content))
    for name, text in frozen.texts.items():
        (state / name).write_text(text, encoding="utf-8")
    (base / "model.safetensors").write_bytes(base64.b64decode(frozen.initial))
    journal(number, state / "journal.db").close()
    return state, frozen


def journal(number: int, path: Path | str) -> sqlite3.Connection:
    """The journal of a schema."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript((FOLDERS / f"schema{number}" / "journal.sql").read_text(encoding="utf-8"))
    db.execute("PRAGMA journal_mode = WAL")
    return db


def empty(number: int) -> sqlite3.Connection:
    """A journal of a schema without a row, as its migrations make it."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    for step in schema.MIGRATIONS[:number]:
        db.executescript(step)
    return db


def laws(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """Every table, index and trigger, as SQLite remembers it."""
    return db.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
    ).fetchall()
