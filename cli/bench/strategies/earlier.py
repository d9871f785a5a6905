"""The races that ``--json`` files of earlier runs hold."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fedmq.fedcore.errors import ConfigError

from ..earlier import documents
from .race import Curve, Entry

__all__ = ["NOTHING", "Earlier", "recall"]


class Earlier(msgspec.Struct, frozen=True):
    """What need not be run.

    Parameters
    ----------
    central : list of float
        Accuracies of central training, one of each seed; or none.
    races : dict
        Curves, one of each seed, by all that there is to say about their entry.
    """

    central: list[float] = []
    races: dict[str, list[Curve]] = {}

    def curves(self, entry: Entry) -> list[Curve]:
        """Of this very entry; none where anything about it was another."""
        return self.races.get(_text(msgspec.to_builtins(entry)), [])


NOTHING = Earlier()


def recall(files: Sequence[Path], same: Mapping[str, Any]) -> Earlier:
    """Read the races of earlier runs.

    Parameters
    ----------
    files : sequence of path
    same : mapping
        What all of them must have been measured with.

    Raises
    ------
    ConfigError
        When a file is no such document, or was measured otherwise.
    """
    found = Earlier()
    for file, document in zip(files, documents(files, same), strict=True):
        try:
            found.central.extend([] if found.central else msgspec.convert(document["central"], list[float]))
            for race in document["races"]:
                entry = {name: race[name] for name in Entry.__struct_fields__}
                found.races[_text(entry)] = msgspec.convert(race["curves"], list[Curve])
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise ConfigError(f"--from {file}: is not what this version's --json writes: {error}") from error
    return found


def _text(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True)
