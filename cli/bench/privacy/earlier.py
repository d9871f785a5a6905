"""The arms that ``--json`` files of earlier runs hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fedmq.fedcore.errors import ConfigError

from ..earlier import documents
from .arms import Arm, Found

__all__ = ["recall"]

_WHICH = ("epsilons", "crowds")
"""Keys of the setting that say which arms there are, not what they are."""


def recall(files: Sequence[Path], same: Mapping[str, Any]) -> dict[Arm, Found]:
    """Read the arms of earlier runs.

    Parameters
    ----------
    files : sequence of path
    same : mapping
        What all of them must have been measured with; but for the budgets and crowds, which an arm names itself.

    Raises
    ------
    ConfigError
        When a file is no such document, or was measured otherwise.
    """
    setting = {name: value for name, value in same["setting"].items() if name not in _WHICH}
    found: dict[Arm, Found] = {}
    for file, document in zip(files, documents(files, {**same, "setting": setting}), strict=True):
        try:
            arms = msgspec.convert(document["arms"], list[Found])
        except (KeyError, msgspec.ValidationError) as error:
            raise ConfigError(f"--from {file}: is not what this version's --json writes: {error}") from error
        found.update((each.arm, each) for each in arms)
    return found
