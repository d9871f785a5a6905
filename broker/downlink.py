"""What workers fetch: a version's file, or the same in fewer bytes where `model.downlink` says so. Pure.

Rules that hold here:

- A version is encoded once, after it is durable, and never for a worker. Until that is done its tasks wait.
- Nothing of it is journalled: the files of an earlier life are made again, of the current version at the start, of an
  older one when somebody goes on with fetching it. Their bytes are the same.
- A worker that trains is given one and the same file for all of its tasks on a version, so that it fetches it once. It
  is the encoded one when it has said that it reads it, and there is one.
- A worker that only evaluates is given the version's own file, and so is everybody where the version holds a value
  that the encoding cannot say.
"""

from collections.abc import Iterable

import msgspec

from .events import EncodeModel, ModelEncoded
from .rows import VersionInfo
from .sessions import Session

__all__ = ["Downlink", "ModelFile"]


class ModelFile(msgspec.Struct, frozen=True):
    """What a TASK says of the file that its worker needs."""

    encoding: str
    size: int
    digest: bytes


class Downlink:
    """Which versions are there as workers fetch them.

    Parameters
    ----------
    encoding
        As configured; with ``f32`` there is nothing to do.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._made: dict[int, ModelFile | None] = {}
        """None: of that version there is no encoded file, and never will be."""
        self._asked: set[int] = set()

    def request(self, version: int) -> tuple[EncodeModel, ...]:
        """What is to be done so that this version can be handed out."""
        if not self.is_missing(version, self._encoding) or version in self._asked:
            return ()
        self._asked.add(version)
        return (EncodeModel(version, self._encoding),)

    def made(self, event: ModelEncoded) -> None:
        """A version's file is there, or cannot be."""
        self._asked.discard(event.version)
        file = ModelFile(event.encoding, event.size, event.digest)
        self._made[event.version] = None if event.refusal else file

    def forget(self, versions: Iterable[int]) -> None:
        """These versions are no longer kept."""
        for version in versions:
            self._made.pop(version, None)

    def is_pending(self, version: int) -> bool:
        """Whether tasks on this version have to wait for its file."""
        return self.is_missing(version, self._encoding)

    def is_missing(self, version: int, encoding: str) -> bool:
        """Whether it is not known what this version is in this encoding, though it will be when somebody asks."""
        return encoding == self._encoding != "f32" and version not in self._made

    def file(self, info: VersionInfo, session: Session) -> ModelFile:
        """What a worker is to fetch for a task on a version."""
        made = self._made.get(info.version) if info.digest else None
        if made is None or made.encoding not in session.models or "fit" not in session.kinds:
            return ModelFile("f32", info.size, info.digest)
        return made

    def size(self, info: VersionInfo, encoding: str) -> int | None:
        """The bytes of a version in an encoding; None when it is not there in that one."""
        if encoding == "f32":
            return info.size
        made = self._made.get(info.version)
        return made.size if made is not None and made.encoding == encoding else None
