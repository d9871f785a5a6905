"""Recomputing versions from the journal and the payloads that were kept, beside the broker or after it.

A federation with ``storage.keep_payloads`` keeps every update. Then each version can be made again from the
one before it, and must have the same bytes: so an auditor can see that a model is what the journal says it
is, and nothing else. What is checked of each version:

- each payload has the digest and size of its accept row;
- the rows, folded onto the recomputed version before, give a file with the digest in the journal;
- where the clip norm is adapted, they move it to what the journal says.

Recomputation starts at version 0, which must be kept (`storage.keep`), since optimizer state begins there.
Nothing in the state folder is changed.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import xxhash

from fedmq.fedcore import config as configs
from fedmq.fedcore.errors import StateError
from fedmq.fedcore.privacy.correlated import MAX_BANDWIDTH

from .aggregator import fold
from .fold_job import plan_fold
from .mechanism import left_by_first, mechanism
from .rows import AcceptRow, VersionInfo
from .store.history import History
from .store.spool import Spool
from .store.state import read_identity
from .store.versions import VersionStore


class Verdict(msgspec.Struct, frozen=True):
    """One version, recomputed."""

    version: int
    updates: int
    digest: str
    """Of the journal, in hexadecimal digits."""
    recomputed: str
    """Of the recomputed file."""
    clip_norms: tuple[float | None, float | None] = (None, None)
    """Left for the version after, where it is adapted: by the journal, and recomputed."""

    @property
    def same(self) -> bool:
        """Whether the bytes are the same, and the clip norm."""
        return self.digest == self.recomputed and self.clip_norms[0] == self.clip_norms[1]


def verify(state: str | Path) -> Iterator[Verdict]:
    """Recompute every version of a state folder, oldest first.

    Raises
    ------
    StateError
        When version 0 or a payload is not kept, or a payload is not what was accepted.
    """
    state = Path(state)
    identity = read_identity(state)
    config = configs.parse((state / "config.toml").read_text(encoding="utf-8"), base_dir=identity.base_dir)
    private = (
        None if config.privacy is None else mechanism(config, identity.noise_multiplier, identity.bandwidth)
    )
    spool = Spool(state / "spool", fsync=False)
    with History.open(state / "journal.db") as journal, tempfile.TemporaryDirectory() as folder:
        entries, clip_norms = journal.history(), journal.clip_norms()
        again = VersionStore(Path(folder), fsync=False)
        base = _begin(state, again, entries[0]["digest"]) if entries else None
        if base is not None:
            base = msgspec.structs.replace(base, clip_norm=left_by_first(private))
        keys: list[bytes] = []  # of the recomputed noise, the last one's first
        for entry in entries[1:]:
            assert base is not None
            rows = [_row(update, base.version, spool) for update in journal.updates(entry["version"])]
            job = plan_fold(
                base,
                rows,
                weighting=config.aggregate.weight,
                optimizer=config.optimizer,
                rule=config.aggregate.rule,
                mechanism=private,
                master_key=b"" if private is None else (state / "keys" / "noise").read_bytes(),
                earlier=keys,
            )
            if job.release is not None:
                keys = [job.release.key, *keys[: MAX_BANDWIDTH - 2]]
            made = fold(job, again, spool)
            again.delete((base.version - config.reach,))
            base = made.info
            clips = (clip_norms.get(base.version), base.clip_norm)
            yield Verdict(entry["version"], len(rows), entry["digest"], base.digest.hex(), clips)


def _begin(state: Path, again: VersionStore, digest: str) -> VersionInfo:
    kept = VersionStore(state / "versions", fsync=False)
    if 0 not in kept.versions():
        raise StateError(
            f"{state}: version 0 is no longer kept, so nothing can be recomputed from it; set storage.keep above "
            "the number of versions and storage.keep_payloads = true before a federation starts"
        )
    written = again.write(0, [kept.file(0)])
    if written.digest.hex() != digest:
        raise StateError(f"{kept.path(0)} is damaged: its digest is not the journal's")
    layout = again.layout(0)
    return VersionInfo(version=0, digest=written.digest, size=written.size, layout=layout.digest, n=layout.n)


def _row(update: dict[str, object], buffer: int, spool: Spool) -> AcceptRow:
    """The accept row of an update, its payload checked."""
    inline = update["payload"] if update["place"] == "inline" else None
    fields = {name: update[name] for name in AcceptRow.__struct_fields__ if name in update}
    row = AcceptRow(**fields, buffer=buffer, inline=inline)  # type: ignore[arg-type]
    if update["place"] == "inline" and inline is None:
        raise StateError(
            f"the payload of an update of version {buffer + 1} was not kept (storage.keep_payloads)"
        )
    payload = spool.payload(row.task) if row.inline is None else row.inline
    if len(payload) != row.size or xxhash.xxh3_128_digest(payload) != row.digest:
        raise StateError(f"the payload of task {row.task.hex()} is not what was accepted: it is damaged")
    return row
