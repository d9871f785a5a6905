"""What a broker opens before it serves: its state folder's parts, brought into one state after any crash.

Rules that hold here:

- The journal decides. Version files that it does not name, and payloads that it has no use for, go; what it
  names and is not there, or is not what it was, ends the start with a clear line.
- Version 0 is written and committed here, where it comes from a file or an app; a worker's is the mind's.
"""

import contextlib
import mmap
import shutil
import tempfile
from pathlib import Path

import msgspec

from fedmq.fedcore.config import AsyncMode, Change, Config, UserRule, check_minimum
from fedmq.fedcore.errors import ConfigError, ModelError, StateError
from fedmq.fedcore.privacy.correlated_level import CorrelatedWorkerLevel
from fedmq.fedcore.privacy.mechanisms import Mechanism
from fedmq.fedcore.strategy import robust

from .evaluator import make_initial
from .mechanism import left_by_first, mechanism
from .rows import FinishRow, Recovered, VersionInfo, VersionRow
from .store.journal import Journal
from .store.spool import Spool
from .store.state import StateFolder, read_identity
from .store.versions import VersionStore
from .tasks import TaskIds
from .threads import write_initial


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    """What was opened, and what was found in it."""

    journal: Journal
    versions: VersionStore
    spool: Spool
    recovered: Recovered
    mechanism: Mechanism | None
    changes: tuple[Change, ...]
    """Keys of the config that differ from the last start."""


def open_storage(config: Config, state: StateFolder, stack: contextlib.ExitStack) -> Storage:
    """Open the parts of a locked state folder; `stack` closes them.

    Raises
    ------
    FedmqError
        When the folder is of another federation, is damaged or cannot be written, or the initial model
        cannot be made.
    """
    _check_rule(config)
    private = None
    if config.privacy is not None:
        before = None if state.is_new else read_identity(state.path)
        private = (
            mechanism(config)
            if before is None
            else mechanism(config, before.noise_multiplier, before.bandwidth)
        )
    changes = state.settle(
        config,
        None if private is None else private.noise_multiplier,
        private.noise.bandwidth if isinstance(private, CorrelatedWorkerLevel) else None,
    )
    fsync = config.storage.durability == "fsync"
    journal = Journal.open(
        state.journal, config.storage.durability, keep_payloads=config.storage.keep_payloads
    )
    stack.callback(journal.close)
    versions = VersionStore(state.versions, fsync=fsync)
    spool = Spool(state.spool, fsync=fsync)
    stack.callback(spool.close)
    current = journal.current()
    versions.recover(None if current is None else current.version)
    if current is not None:
        versions.verify(current.version, size=current.size, digest=current.digest)
    elif config.model.source != "first-worker":
        info = msgspec.structs.replace(
            _initial(config, state.path, versions), clip_norm=left_by_first(private)
        )
        journal.apply([VersionRow(info=info)])
    if any(change.key.startswith("stop.") for change in changes):
        journal.apply(
            [FinishRow(reason=None)]
        )  # it had ended for another reason; this one may lie further on
    max_staleness = config.mode.max_staleness if isinstance(config.mode, AsyncMode) else 0
    recovered = journal.recover(max_staleness, versions.versions())
    _check_bases(config, versions, recovered)
    spool.delete(_unwanted(config, journal, spool, recovered, max_staleness))
    return Storage(
        journal=journal,
        versions=versions,
        spool=spool,
        recovered=recovered,
        mechanism=private,
        changes=changes,
    )


def _check_rule(config: Config) -> None:
    """Load the combination rule where it is the user's own, and see that buffers will be large enough for it.

    Raises
    ------
    ConfigError
        When it does not load, or a buffer or round could hold less than it needs.
    """
    rule = config.aggregate.rule
    if isinstance(rule, UserRule):
        minimum = robust.make(rule).minimum
        check_minimum(config, rule.app, minimum, f"its minimum, {minimum} updates")


def _check_bases(config: Config, versions: VersionStore, recovered: Recovered) -> None:
    """Read the older versions that updates are mixed in with (FedAsync).

    One that is gone is missed only where an accepted update needs it: others that were trained from it are stale.

    Raises
    ------
    StateError
        When one is damaged, or gone and needed.
    """
    current = max((info.version for info in recovered.versions), default=0)
    waiting = {row.base for row in (*recovered.frozen, *recovered.open)}
    for info in recovered.versions:
        if not current - config.reach <= info.version < current:
            continue
        if info.version in recovered.kept:
            versions.verify(info.version, size=info.size, digest=info.digest)
        elif info.version in waiting:
            raise StateError(
                f"{versions.path(info.version)} is missing, but an update that was accepted is to be mixed in with it; "
                "restore the state folder as a whole"
            )


def _initial(config: Config, folder: Path, versions: VersionStore) -> VersionInfo:
    """Write version 0 from what `model.initial` names."""
    if config.model.source == "file":
        return _from_file(Path(config.model.initial), config, versions)
    for left in folder.glob("initial-*"):  # of a start that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix="initial-", dir=folder) as scratch:
        target = Path(scratch) / "initial.safetensors"
        make_initial(config, target)
        return _from_file(target, config, versions)


def _from_file(path: Path, config: Config, versions: VersionStore) -> VersionInfo:
    try:
        with path.open("rb") as file:
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f'model.initial is "{config.model.initial}", which cannot be read: {reason}; it may name a '
            '.safetensors file, an app as "module:attribute", or be "first-worker"'
        ) from None
    try:
        return write_initial(versions, whole, config.model.max_bytes)
    except ModelError as error:
        raise ModelError(f'model.initial is "{config.model.initial}": {error}') from error


def _unwanted(
    config: Config, journal: Journal, spool: Spool, recovered: Recovered, max_staleness: int
) -> list[bytes]:
    """Payloads that nothing will read: their version is made, or they could only be stale by now."""
    waiting = {row.task for row in (*recovered.frozen, *recovered.open)}
    left = spool.tasks() - waiting
    consumed = journal.consumed(left)
    newest = max((info.version for info in recovered.versions), default=0)
    unwanted = set() if config.storage.keep_payloads else set(consumed)
    for task in left - consumed:
        claim = TaskIds.read(task)
        useful = claim is not None and newest - max_staleness <= claim.version <= newest
        if not useful or (claim is not None and claim.kind == "init" and recovered.versions):
            unwanted.add(task)
    return sorted(unwanted)
