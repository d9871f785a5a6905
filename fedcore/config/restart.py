"""What a restart may alter: a federation goes on only as the same federation.

Keys about when, where and how much may change between two starts on one state folder. Keys that say *what is
computed* may not: the versions before and after would not be one run, a resent update could be counted
twice, or a privacy budget would be spent under two sets of rules. The broker keeps `to_toml(config)` and
the `fingerprint` in its state folder, and asks `changes` when the fingerprints differ.
"""

import json

import msgspec
import xxhash

from .reading import VARIANTS, keys_of, table_names
from .tables import WorkerPrivacy
from .whole import Config
from .writing import portable

FREE_TABLES = frozenset({"evaluate", "stop", "storage", "network", "security"})
FREE_KEYS = frozenset(
    {
        "federation.bind",
        "federation.state",
        "model.max_bytes",
        "mode.concurrency",
        "mode.tasks_per_worker",
        "mode.min_available",
        "mode.deadline_s",
        "aggregate.max_update_norm",
        "aggregate.max_examples",
    }
)


class Change(msgspec.Struct, frozen=True):
    """One key that differs; a key that is not there is None."""

    key: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.key}: {_show(self.old)} -> {_show(self.new)}"


def changes(old: Config, new: Config) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
    """Compare two configs of one state folder.

    Returns
    -------
    allowed, refused : tuple of Change
        Both in the order of the file.
    """
    before, after = _flat(old), _flat(new)
    private = old.privacy is not None or new.privacy is not None
    allowed: list[Change] = []
    refused: list[Change] = []
    for key in [*before, *(key for key in after if key not in before)]:
        change = Change(key, before.get(key), after.get(key))
        if change.old == change.new:
            continue
        renamed = key == "security.keys" and _named(old) != _named(new)
        (allowed if _may_change(key, private) and not renamed else refused).append(change)
    return tuple(allowed), tuple(refused)


def fingerprint(config: Config) -> str:
    """32 hexadecimal digits over everything that a restart may not change."""
    private = config.privacy is not None
    fixed = {key: value for key, value in _flat(config).items() if not _may_change(key, private)}
    if isinstance(config.privacy, WorkerPrivacy):
        fixed["security.keys"] = _named(config)
    return xxhash.xxh3_128_hexdigest(json.dumps(fixed, sort_keys=True).encode())


def _may_change(key: str, private: bool) -> bool:
    table = key.partition(".")[0]
    if table == "task":
        return not private  # the app computes its clipped sums from it
    return table in FREE_TABLES or key in FREE_KEYS


def _named(config: Config) -> bool | None:
    """Whether the ledger of worker-level privacy knows workers by their keys; None where there is none.

    With keys instead of names, or the other way, each worker would come back as another one, with a whole budget.
    """
    return bool(config.security.keys) if isinstance(config.privacy, WorkerPrivacy) else None


def _flat(config: Config) -> dict[str, object]:
    """``{"mode.buffer": 10, …}``, with paths as the file wrote them."""
    flat: dict[str, object] = {}
    for name in table_names():
        table = getattr(config, name)
        if table is None:
            continue
        if isinstance(table, dict):
            flat |= {f"{name}.{key}": value for key, value in table.items()}
            continue
        if name in VARIANTS:
            flat[f"{name}.kind"] = table.kind
        for key in keys_of(table):
            flat[f"{name}.{key.name}"] = portable(config, name, key, getattr(table, key.name))
    return flat


def _show(value: object) -> str:
    return "not there" if value is None else json.dumps(value, ensure_ascii=False, default=str)
