"""From a `Config` back to TOML, and the commented file that `fedmq init` writes.

`to_toml` writes every key, so that what it writes does not depend on the defaults of the version that reads
it; paths inside the file's folder become relative again, so that a folder can be moved as a whole.
"""

import json
import textwrap
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from .reading import DEFAULT_KINDS, SUBTABLES, VARIANTS, Key, keys, keys_of, may_hold, struct_of, table_names
from .rule_tables import RULES, plain
from .sampled_privacy import SampledPrivacy
from .tables import Privacy, WorkerPrivacy
from .whole import Config

WIDTH = 110
_PRIVACY_EXAMPLE = {
    "epsilon": 3.0,
    "delta": 1e-5,
    "max_grad_norm": 0.1,
    "sampling_rate": 0.1,
    "steps": 300,
    "divisor": 150.0,
    "max_batch": 64,
}
_WORKER_PRIVACY_EXAMPLE = {"epsilon": 8.0, "delta": 1e-5, "clip_norm": 1.0, "max_participations": 10}
_SUBTABLE_EXAMPLES = {
    "privacy.adaptive_clip": {},
    "privacy.correlated": {"versions": 200, "min_separation": 10},
}
_SAMPLED_PRIVACY_EXAMPLE = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "clip_norm": 1.0,
    "sampling_rate": 0.05,
    "steps": 200,
    "divisor": 100.0,
}
_RULE_EXAMPLE = {"byzantine": 1, "radius": 10.0, "max_norm": 1.0}


def to_toml(config: Config) -> str:
    """Write a config so that ``parse(to_toml(config), base_dir=config.base_dir) == config``."""
    lines: list[str] = []
    for name in table_names():
        table = getattr(config, name)
        if table is None:
            continue
        lines.append(f"[{name}]")
        if isinstance(table, Mapping):
            lines += [f"{_key(key)} = {_toml(value)}" for key, value in table.items()]
        else:
            if name in VARIANTS:
                lines.append(f"kind = {_toml(table.kind)}")
            for key in keys_of(table):
                value = getattr(table, key.name)
                if value is not None:
                    lines.append(f"{key.name} = {_toml(portable(config, name, key, value))}")
        lines.append("")
    return "\n".join(lines)


def portable(config: Config, table: str, key: Key, value: object) -> object:
    """A value as a file in `config.base_dir` would write it: paths below that folder become relative."""
    if f"{table}.{key.name}" in SUBTABLES:
        return None if value is None else _given(typing.cast("msgspec.Struct", value))
    if isinstance(value, msgspec.Struct):
        return plain(typing.cast("typing.Any", value))
    is_path = key.written_as == "path" or (
        table == "model" and value == config.model.initial and config.model.source == "file"
    )
    if is_path and value and Path(str(value)).is_relative_to(config.base_dir):
        return Path(str(value)).relative_to(config.base_dir).as_posix()
    return value


def _given(table: msgspec.Struct) -> dict[str, object]:
    """A table that is a key of another one: the keys that are set."""
    return {key: value for key, value in msgspec.structs.asdict(table).items() if value is not None}


def template(*, name: str = "federation", mode: str = "async") -> str:
    """The federation.toml of `fedmq init`: every key with its default, and what it means.

    Parameters
    ----------
    name : str
        The federation's name.
    mode : {"async", "sync"}
        Which mode is switched on; the other one stands beside it as a comment.
    """
    lines = [
        "# A fedmq federation. Every key stands here with its default: delete what you do not change.",
        '# Sizes are bytes or text ("64 MiB"), times are seconds, and 0 or "" switches a limit off.',
        "# Paths are relative to this file. Start it with: fedmq broker federation.toml",
    ]
    for table in table_names():
        lines.append("")
        if table == "task":
            lines += ["# Free: the app gets it as task.config.", "[task]", "# lr = 0.1", "# epochs = 1"]
        elif table == "privacy":
            lines += _privacy_lines()
        elif table in VARIANTS:
            lines += _variant_lines(table, mode if table == "mode" else DEFAULT_KINDS[table])
        else:
            given = {"name": name} if table == "federation" else {}
            lines += [*_about(struct_of(table)), f"[{table}]"]
            lines += key_lines(struct_of(table), given)
            if table == "aggregate":
                lines += _rule_lines()
    return "\n".join(lines) + "\n"


def _variant_lines(table: str, kind: str) -> Iterator[str]:
    kinds = ", ".join(f'"{other}"' for other in VARIANTS[table])
    yield from _about(struct_of(table, kind))
    yield f"[{table}]"
    yield from _commented(f'kind = "{kind}"', f"One of {kinds}.")
    yield from key_lines(struct_of(table, kind))
    for other, struct in VARIANTS[table].items():
        if other != kind:
            yield "#"
            yield from _about(struct, indent="# ")
            yield f'# kind = "{other}"'
            yield from ("# " + line for line in key_lines(struct))


def _rule_lines() -> Iterator[str]:
    """The other rules, each with all its parameters."""
    for kind, struct in RULES.items():
        if kind == DEFAULT_KINDS["aggregate.rule"]:
            continue
        given = {key.name: _RULE_EXAMPLE.get(key.name, key.default) for key in keys(struct).values()}
        rule = {"kind": kind, **given} if given else kind
        yield "#"
        yield from _about(struct, indent="# ")
        yield f"# rule = {_toml(rule)}"
        yield from (f"#   {name}: {keys(struct)[name].meta.description}" for name in given)


def _privacy_lines() -> Iterator[str]:
    yield from _about(Privacy)
    yield '# Off unless the table is there. It needs [mode] kind = "sync".'
    yield "# [privacy]"
    yield from ("# " + line for line in key_lines(Privacy, _PRIVACY_EXAMPLE))
    yield ""
    yield from _about(WorkerPrivacy)
    yield '# The other unit. It needs [mode] kind = "async", and a file or an app as model.initial.'
    yield "# [privacy]"
    yield from ("# " + line for line in key_lines(WorkerPrivacy, _WORKER_PRIVACY_EXAMPLE))
    for name, struct in SUBTABLES.items():
        yield "#"
        yield from _about(struct, indent="# ")
        yield f"# [{name}]"
        yield from ("# " + line for line in key_lines(struct, _SUBTABLE_EXAMPLES[name]))
    yield ""
    yield from _about(SampledPrivacy)
    yield '# The same unit with [mode] kind = "sync": a secret coin decides whom a round asks.'
    yield "# [privacy]"
    yield from ("# " + line for line in key_lines(SampledPrivacy, _SAMPLED_PRIVACY_EXAMPLE))
    yield from (
        f"# [{name}] may stand beside it, as above."
        for name in SUBTABLES
        if name.rpartition(".")[2] in keys(SampledPrivacy)
    )


def key_lines(struct: type[msgspec.Struct], given: Mapping[str, object] | None = None) -> Iterator[str]:
    """Each key of a table as a line with its default, or with what is `given`; unset ones as comments."""
    for key in keys(struct).values():
        value = (given or {}).get(key.name, key.default)
        unset = value is None or value is msgspec.NODEFAULT
        line = f"# {key.name} =" if unset else f"{key.name} = {_toml(_readable(key, value))}"
        yield from _commented(line, _explain(key))


def _explain(key: Key) -> str:
    """The description, and the choices where there are any."""
    choices = typing.get_args(key.type) if typing.get_origin(key.type) is typing.Literal else ()
    return " ".join([key.meta.description or "", f"{may_hold(key)}." if len(choices) > 1 else ""]).strip()


def _readable(key: Key, value: object) -> object:
    """A size in the largest unit that divides it."""
    if isinstance(value, msgspec.Struct):
        return plain(typing.cast("typing.Any", value))
    if key.written_as != "size" or not isinstance(value, int) or value == 0:
        return value
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value % size == 0:
            return f"{value // size} {unit}"
    return value


def _about(struct: type[msgspec.Struct], indent: str = "") -> list[str]:
    first = (struct.__doc__ or "").splitlines()[0]
    return [f"{indent}# {first}" if not indent else f"{indent}{first}"]


def _commented(line: str, comment: str) -> Iterator[str]:
    """``key = value  # comment``, with a long comment on lines of its own above."""
    if len(line) + len(comment) + 5 <= WIDTH:
        yield f"{line:<32}  # {comment}"
        return
    for part in textwrap.wrap(comment, WIDTH - 4):
        yield f"# {part}"
    yield line


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _quoted(name)


def _quoted(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, but for surrogate pairs and DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml(value: object) -> str:
    """One TOML value on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(inner) for inner in value) + "]"
    return str(value)
