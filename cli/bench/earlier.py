"""``--from FILE``: what an earlier run wrote with ``--json`` need not be measured again.

So that a run that was stopped goes on, parts that were run one by one come together in one table, and a picture can
be drawn again without the hours behind it. What was measured otherwise is refused, not mixed in.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmq.fedcore.errors import ConfigError

__all__ = ["documents"]


def documents(files: Sequence[Path], same: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the files hold.

    Parameters
    ----------
    files : sequence of path
    same : mapping
        What this run has, and each of them must have as well. Of a mapping in it, those keys that it has.

    Raises
    ------
    ConfigError
        For a file that cannot be read, is no such document, or was measured otherwise.
    """
    ours = json.loads(json.dumps(same))
    for file in files:
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"--from {file}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"--from {file}: is not JSON: {error}") from error
        if not isinstance(document, dict) or not ours.keys() <= document.keys():
            raise ConfigError(f"--from {file}: is not what --json of this command writes")
        for name, value in ours.items():
            if not _agrees(value, document[name]):
                told = "" if isinstance(value, dict) else f": {document[name]}, and here {value}"
                raise ConfigError(f"--from {file}: was measured with other {name.replace('_', ' ')}{told}")
        yield document


def _agrees(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return all(name in theirs and theirs[name] == value for name, value in ours.items())
    return bool(ours == theirs)
