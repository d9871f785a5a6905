"""From TOML to a checked `Config`, with an error that a person can act on.

Everything is checked key by key, so that the first thing wrong is named by its key, with what it holds and
what it may hold, in one line. Unknown tables and keys are errors. Nothing here touches a socket or imports an
app; of the file system only the file itself is read.
"""

import difflib
import functools
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from msgspec import Meta, Struct

from fedmq.fedcore import wire
from fedmq.fedcore.errors import ConfigError

from .clip_tables import AdaptiveClip
from .correlated_table import Correlated
from .model_table import Model
from .rule_tables import RULES, Mean, UserRule
from .sampled_privacy import SampledPrivacy, misplaced
from .tables import (
    APP_PATTERN,
    Adagrad,
    Adam,
    AsyncMode,
    Fadas,
    FedAsync,
    Momentum,
    Privacy,
    Sgd,
    SyncMode,
    WorkerPrivacy,
    Yogi,
)
from .whole import Config

TASK_MAX = 32 * 1024  # bytes of [task] as msgpack: it rides in a header of at most 64 KiB
VARIANTS: dict[str, dict[str, type[Struct]]] = {
    "mode": {t.kind: t for t in (AsyncMode, SyncMode)},
    "optimizer": {t.kind: t for t in (Sgd, Momentum, Adagrad, Adam, Yogi, Fadas, FedAsync)},
    "aggregate.rule": RULES,
}
DEFAULT_KINDS = {"mode": AsyncMode.kind, "optimizer": Sgd.kind, "aggregate.rule": Mean.kind}
UNITS: dict[str, type[Struct]] = {"record": Privacy, "worker": WorkerPrivacy}
"""The [privacy] table by its `unit`; in rounds that of a worker is `SampledPrivacy`."""
SUBTABLES: dict[str, type[Struct]] = {
    "privacy.adaptive_clip": AdaptiveClip,
    "privacy.correlated": Correlated,
}
"""Tables that are a key of another one."""
# What [privacy] needs from keys that the file leaves out.
_PRIVATE_DEFAULTS: dict[str, dict[str, object]] = {
    "aggregate": {"weight": "uniform"},
    "evaluate": {"fraction": 0.0},
}
_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Key(typing.NamedTuple):
    """What is known of one key: its type, its bounds, and how it is written in a file."""

    name: str
    type: object  # the annotation without its Meta
    meta: Meta
    required: bool
    default: object

    @property
    def written_as(self) -> str:
        """``"size"``, ``"path"``, or ``""`` for what TOML has itself."""
        return str((self.meta.extra or {}).get("as", ""))


def load(path: str | Path, *, insecure: bool = False) -> Config:
    """Read and check a federation.toml.

    Parameters
    ----------
    path : path
    insecure : bool
        As if the file said ``security.insecure = true``.

    Raises
    ------
    ConfigError
        The file is not there, is not TOML, or holds something wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f'{path}: no such file; "fedmq init" writes one') from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        tables = _toml(text)
        security = tables.get("security", {})
        if insecure and isinstance(security, Mapping):
            tables["security"] = {**security, "insecure": True}
        return parse(tables, base_dir=path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(source: str | Mapping[str, object], *, base_dir: str | Path = ".") -> Config:
    """Check the text of a federation.toml, or a mapping of the same shape.

    Parameters
    ----------
    source : str or mapping
        TOML, or what `tomllib.loads` would give; a mapping may hold `Path` objects for paths.
    base_dir : path
        Relative paths inside are relative to it.

    Raises
    ------
    ConfigError
        Naming the key, what it holds, and what it may hold.

    Examples
    --------
    >>> config = parse("[mode]\\nkind = 'sync'\\nmin_available = 3")
    >>> config.mode.min_available, config.optimizer.lr
    (3, 1.0)
    >>> parse("[mode]\\nbufer = 3")
    Traceback (most recent call last):
    fedmq.fedcore.errors.ConfigError: mode.bufer is not a key; did you mean mode.buffer?
    """
    tables = _toml(source) if isinstance(source, str) else dict(source)
    base = Path(base_dir).absolute()
    _refuse_unknown_tables(tables)
    following = _following(tables)
    values: dict[str, object] = {"base_dir": str(base)}
    for name in table_names():
        given = tables.get(name)
        if given is None:
            given = {}
            if name == "privacy":
                continue
        if not isinstance(given, Mapping):
            raise ConfigError(f"{name} is {_show(given)}; it may hold a table, written [{name}]")
        if name == "task":
            values[name] = _task(given)
            continue
        given = following.get(name, {}) | dict(given)
        is_async = _is_async(tables.get("mode"))
        values[name] = _table(name, given, base, is_async=is_async)
    return Config(**typing.cast("dict[str, typing.Any]", values))


def table_names() -> tuple[str, ...]:
    """Every table of the file, in its order."""
    return tuple(name for name in Config.__struct_fields__ if name != "base_dir")


@functools.cache
def keys(table: type[Struct]) -> dict[str, Key]:
    """The keys of one table's struct, in the order of the file, without the tag."""
    hints = typing.get_type_hints(table, include_extras=True)
    found = {}
    for field in msgspec.structs.fields(table):
        annotation = hints[field.name]
        meta = next((m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, Meta)), Meta())
        bare = annotation.__origin__ if hasattr(annotation, "__metadata__") else annotation
        found[field.name] = Key(field.name, bare, meta, field.required, field.default)
    return found


def keys_of(table: Struct) -> Iterable[Key]:
    """The keys of a table that has been read."""
    return keys(type(table)).values()


def structs_of(table: str) -> tuple[type[Struct], ...]:
    """The structs that a table is written with: one for each kind; none for [task], which is free."""
    if table in VARIANTS:
        return tuple(VARIANTS[table].values())
    if table == "task":
        return ()
    if table == "privacy":
        return (*UNITS.values(), SampledPrivacy, *SUBTABLES.values())
    found = typing.get_type_hints(Config)[table]
    assert isinstance(found, type)
    return (found, *RULES.values()) if table == "aggregate" else (found,)


def struct_of(table: str, kind: str | None = None) -> type[Struct]:
    """The one struct of a table; of a table with kinds, that kind's."""
    if table in SUBTABLES:
        return SUBTABLES[table]
    return structs_of(table)[0] if kind is None else VARIANTS[table][kind]


def may_hold(key: Key) -> str:
    """In words, what a key accepts: ``"an integer ≥ 1"``."""
    kind, bounds = key.type, _bounds(key.meta)
    if key.written_as == "size":
        return f'a size{bounds}, in bytes or as text such as "64 MiB"'
    if form := (key.meta.extra or {}).get("form"):
        return str(form)
    if typing.get_origin(kind) is typing.Literal:
        return _choices(typing.get_args(kind))
    if isinstance(kind, types.UnionType):  # float | None: left out, or a number
        kind = next(arm for arm in typing.get_args(kind) if arm is not types.NoneType)
    words = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}[
        typing.cast("type", kind)
    ]
    return words + bounds


def _toml(text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}") from None


def _refuse_unknown_tables(tables: Mapping[str, object]) -> None:
    for name in tables:
        if name not in table_names():
            raise ConfigError(f"[{name}] is not a table; {_did_you_mean(name, table_names())}")


def _following(tables: Mapping[str, object]) -> Mapping[str, dict[str, object]]:
    """Defaults that follow from what else stands in the file: from [privacy], or from the rule."""
    privacy = tables.get("privacy")
    if isinstance(privacy, Mapping) and privacy.get("unit") == "worker":
        return _PRIVATE_DEFAULTS | (
            {"mode": {"one_per_worker": True}} if _is_async(tables.get("mode")) else {}
        )
    if privacy is not None:
        return _PRIVATE_DEFAULTS
    aggregate, mode = tables.get("aggregate"), tables.get("mode")
    rule = aggregate.get("rule") if isinstance(aggregate, Mapping) else None
    kind = rule.get("kind") if isinstance(rule, Mapping) else rule
    if not isinstance(kind, str):
        return {}
    table: typing.Any = RULES.get(kind, UserRule)
    follows: dict[str, dict[str, object]] = {"aggregate": {"weight": "uniform"}} if table.uniform else {}
    if table.one_per_worker and _is_async(mode):
        follows["mode"] = {"one_per_worker": True}
    return follows


def _is_async(mode: object) -> bool:
    """Whether a [mode] table, or the lack of one, means asynchronous."""
    return not isinstance(mode, Mapping) or mode.get("kind", AsyncMode.kind) == AsyncMode.kind


def _rule(value: object, key: Key, base: Path) -> Struct:
    """A rule from its name, its table, or where to import it from."""
    if isinstance(value, Mapping):
        return _table("aggregate.rule", value, base)
    if isinstance(value, str) and value in RULES:
        return _table("aggregate.rule", {"kind": value}, base)
    if isinstance(value, str) and re.fullmatch(APP_PATTERN, value):
        return UserRule(value)
    raise ConfigError(f"aggregate.rule is {_show(value)}; it may hold {may_hold(key)}")


def _table(name: str, given: Mapping[str, object], base: Path, *, is_async: bool = True) -> Struct:
    """Check one table's keys and build its struct."""
    given = dict(given)
    kind: str | None = None
    if name in VARIANTS:
        wanted = given.pop("kind", DEFAULT_KINDS[name])
        if not isinstance(wanted, str) or wanted not in VARIANTS[name]:
            raise ConfigError(f"{name}.kind is {_show(wanted)}; it may hold {_choices(VARIANTS[name])}")
        kind = wanted
    struct = _private(given, is_async) if name == "privacy" else struct_of(name, kind)
    known = keys(struct)
    for key in given:
        if key not in known:
            raise ConfigError(_unknown_key(name, key, kind, known))
    values = {}
    for key, about in known.items():
        if key in given:
            values[key] = _value(f"{name}.{key}", given[key], about, base)
        elif about.required:
            raise ConfigError(
                f"{name}.{key} is missing; [{name}] needs it, and it may hold {may_hold(about)}"
            )
        elif about.written_as == "path" or (name, key) == ("model", "initial"):
            values[key] = _value(f"{name}.{key}", about.default, about, base)
    return struct(**values)


def _private(given: Mapping[str, object], is_async: bool) -> type[Struct]:
    """The struct of a [privacy] table, by its unit and, of a worker's, by the mode."""
    unit = given.get("unit", "record")
    if not isinstance(unit, str) or unit not in UNITS:
        raise ConfigError(f"privacy.unit is {_show(unit)}; it may hold {_choices(UNITS)}")
    if unit != "worker":
        return UNITS[unit]
    mine, other = (WorkerPrivacy, SampledPrivacy) if is_async else (SampledPrivacy, WorkerPrivacy)
    for key in given:
        said = None if key in keys(mine) else misplaced(key, "async" if is_async else "sync", keys(other))
        if said is not None:
            raise ConfigError(said)
    return mine


def _value(where: str, value: object, key: Key, base: Path) -> object:
    """Check one value against its key; sizes become integers and paths absolute."""
    if where == "aggregate.rule":
        return _rule(value, key, base)
    if where in SUBTABLES:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {_show(value)}; it may hold {may_hold(key)}")
        return _table(where, value, base)
    if isinstance(value, Path):
        value = str(value)
    plain = _size(value) if key.written_as == "size" and isinstance(value, str) else value
    kind = key.type
    if isinstance(
        kind, types.UnionType
    ):  # `float | None`: what stands in a file is the number, bounds and all
        (kind,) = (part for part in kind.__args__ if part is not types.NoneType)
    try:
        checked: object = msgspec.convert(plain, typing.Annotated[typing.cast("type", kind), key.meta])
    except msgspec.ValidationError:
        raise ConfigError(f"{where} is {_show(value)}; it may hold {may_hold(key)}") from None
    if isinstance(checked, float) and not math.isfinite(checked):
        raise ConfigError(f"{where} is {checked}; it may hold {may_hold(key)}")
    is_path = key.written_as == "path" or (where == "model.initial" and Model(str(checked)).source == "file")
    return str(base / Path(str(checked)).expanduser()) if is_path and checked else checked


def _size(text: str) -> object:
    """Bytes in ``"64 MiB"``; the text itself where it is not a size, for the check that follows."""
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        return text
    number = float(match[1]) * _UNITS[match[2].upper()]
    return int(number) if number < 2**63 else text


def _task(given: Mapping[str, object]) -> dict[str, object]:
    """The free table: whatever msgpack can carry to a worker, within a header's size."""
    for where, value in _walk("task", given):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where} is {value}; it may hold a finite number")
        if not isinstance(value, str | bool | int | float):
            raise ConfigError(
                f"{where} is {_show(value)}; it may hold text, a number, true or false, an array or a table"
            )
    try:
        size = len(msgspec.msgpack.encode(given))
    except (OverflowError, UnicodeEncodeError) as error:
        raise ConfigError(f"[task] holds what no message can carry: {error}") from None
    if size > TASK_MAX:
        raise ConfigError(
            f"[task] takes {size} bytes; it may take {TASK_MAX}, because it rides with every task"
        )
    try:
        wire.encode(wire.Task(task=b"-", seq=0, kind="init", version=0, size=0, config=dict(given)))
    except ValueError as error:  # nested too deeply, an array too long: the wire's limits
        raise ConfigError(f"[task] holds what no message can carry: {error}") from None
    return dict(given)


def _walk(where: str, value: object) -> Iterable[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(f"{where}.{key}", inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _walk(f"{where}[{index}]", inner)
    else:
        yield where, value


def _unknown_key(table: str, key: str, kind: str | None, known: Iterable[str]) -> str:
    for other, struct in VARIANTS.get(table, {}).items():
        if key in keys(struct):
            return f'{table}.{key} belongs to kind = "{other}", but {table}.kind is "{kind}"'
    names = [*known, *(["kind"] if table in VARIANTS else [])]
    return f"{table}.{key} is not a key; {_did_you_mean(key, names, prefix=f'{table}.')}"


def _did_you_mean(name: str, names: Iterable[str], prefix: str = "") -> str:
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {prefix}{close[0]}?" if prefix else f"did you mean [{close[0]}]?"
    return f"there are: {', '.join(names)}"


def _bounds(meta: Meta) -> str:
    parts = [
        f"{sign} {bound}" if isinstance(bound, int) else f"{sign} {bound:g}"
        for sign, bound in (("≥", meta.ge), (">", meta.gt), ("≤", meta.le), ("<", meta.lt))
        if bound is not None
    ]
    if meta.min_length:
        parts.append("that is not empty")
    if meta.max_length:
        parts.append(f"of at most {meta.max_length} characters")
    return " " + " and ".join(parts) if parts else ""


def _choices(values: Iterable[object]) -> str:
    shown = [_show(value) for value in values]
    return " or ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else f"{shown[0]} only"


def _show(value: object) -> str:
    """A value as TOML writes it, cut short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = '"' + value.replace("\n", "\\n") + '"'
    elif isinstance(value, Mapping):
        return "a table"
    elif isinstance(value, list | tuple):
        return "an array"
    else:
        text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
