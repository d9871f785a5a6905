"""A disk that can be pulled: real folders, written by the real stores, of which is known what a power cut leaves.

The stores run unchanged on a folder in memory. What they do to make things durable (`fsync`, `fdatasync`) and
what they do to names (`replace`, `unlink`) is watched through the `os` module, so that a `Folder` knows two
things: what is there, as any process sees it, and what is certain to be there after a power cut. Rules that
hold here:

- A process that is killed leaves what it has written. A write in which it dies is there in part.
- After a power cut a name is as it was when its folder was last synced, or as it was last changed; each name
  for itself. A file holds what was synced of it, and of the rest a prefix, which may have holes of zeros.
- What the code of a dead process still does while Python unwinds it changes nothing.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from .process import Killed

MEMORY: Final = Path("/dev/shm")
HOLE: Final = 0.2
"""How often what was not synced has a hole."""

_really_unlink: Final = os.unlink


class File:
    """What is certain of one file."""

    __slots__ = ("content", "synced")

    def __init__(self, synced: bytes = b"") -> None:
        self.synced = synced
        self.content: bytes | None = None
        """What it held before its name went or it was cut, which may come back."""


class Folder:
    """One watched folder.

    Parameters
    ----------
    path : Path
        Made here.
    operates : callable
        Called before each change; True when the process dies in it.
    """

    def __init__(self, path: Path, operates: Callable[[], bool]) -> None:
        path.mkdir(parents=True)
        self.path = path
        self.is_frozen = False
        """The process is dead, and changes nothing more."""
        self._operates = operates
        self._now: dict[str, File] = {}
        self._durable: dict[str, File] = {}

    def begins(self) -> bool:
        """A change is about to be made; False when nobody is there to make it.

        Raises
        ------
        Killed
            When the process dies before it is made.
        """
        if not self.is_frozen and self._operates():
            self.is_frozen = True
            raise Killed
        return not self.is_frozen

    def synced(self, name: str) -> None:
        """A file's bytes are on the disk; its name may not be."""
        self._file(name).synced = (self.path / name).read_bytes()

    def names_synced(self) -> None:
        """The folder's names are on the disk."""
        self._durable = {path.name: self._file(path.name) for path in self.path.iterdir()}

    def gone(self, name: str) -> None:
        """A name is about to go, or to be another file's."""
        file = self._now.pop(name, None)
        if file is not None and self._durable.get(name) is file:
            file.content = (self.path / name).read_bytes()

    def cut(self, name: str) -> None:
        """A file is about to be cut."""
        self._file(name).content = (self.path / name).read_bytes()

    def renamed(self, before: str, after: str) -> None:
        """A file has another name."""
        self._now[after] = self._file(before)
        del self._now[before]

    def power_cut(self, rng: random.Random) -> None:
        """Lose what was not synced."""
        here = {path.name for path in self.path.iterdir()}
        left: dict[str, tuple[int, bytes]] = {}
        for name in sorted({*here, *self._durable}):
            now = self._file(name) if name in here else None
            file = now if rng.random() < 0.5 else self._durable.get(name)
            if file is not None:
                left[name] = self._torn(name, file, file is now, rng)
        for name in here:
            _really_unlink(self.path / name)
        self._now = {}
        for name, (mtime, content) in left.items():
            (self.path / name).write_bytes(content)
            os.utime(self.path / name, ns=(mtime, mtime))
            self._now[name] = File(content)
        self._durable = dict(self._now)

    def _file(self, name: str) -> File:
        return self._now.setdefault(name, File())

    def _torn(self, name: str, file: File, is_here: bool, rng: random.Random) -> tuple[int, bytes]:
        path = self.path / name
        content = path.read_bytes() if is_here else file.content
        if is_here and file.content is not None and rng.random() < 0.5:
            content = file.content
        mtime = path.stat().st_mtime_ns if is_here else 0
        if content is None or not content.startswith(file.synced):
            return mtime, file.synced  # it was begun anew, and that did not reach the disk
        sure = len(file.synced)
        end = rng.choice((sure, rng.randint(sure, len(content)), len(content)))
        torn = bytearray(content[:end])
        if end > sure and rng.random() < HOLE:
            first = rng.randrange(sure, end)
            last = rng.randint(first, end)
            torn[first:last] = bytes(last - first)
        return mtime, bytes(torn)


class Disks:
    """All folders of a simulation; removed at its end.

    A context manager, in which the `os` module tells what happens to them.
    """

    def __init__(self) -> None:
        self._folders: dict[str, Folder] = {}
        base = MEMORY if os.access(MEMORY, os.W_OK) else None
        self._root = Path(tempfile.mkdtemp(prefix="fedmq-simulation-", dir=base)).resolve()

    def folder(self, machine: str, name: str, operates: Callable[[], bool]) -> Folder:
        """A new folder of a machine's."""
        folder = Folder(self._root / machine / name, operates)
        self._folders[str(folder.path)] = folder
        return folder

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Hear of all that is done to the folders."""
        watching = {
            name: getattr(self, f"_{name}")(getattr(os, name))
            for name in (
                "fsync",
                "fdatasync",
                "replace",
                "unlink",
                "write",
                "pwrite",
                "truncate",
                "ftruncate",
            )
        }
        before = {name: getattr(os, name) for name in watching}
        try:
            for name, function in watching.items():
                setattr(os, name, function)
            yield
        finally:
            for name, function in before.items():
                setattr(os, name, function)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._root)

    def _at(self, path: Any) -> tuple[Folder | None, str]:
        parent, _, name = os.fspath(path).rpartition("/")
        return self._folders.get(parent), name

    def _of(self, fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115

    def _fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def fsync(fd: int) -> None:
            path = self._of(fd)
            whole = self._folders.get(path)
            folder, name = (whole, "") if whole is not None else self._at(path)
            if folder is None:
                real(fd)
            elif folder.begins():
                folder.synced(name) if name else folder.names_synced()

        return fsync

    _fdatasync = _fsync

    def _replace(self, real: Callable[..., None]) -> Callable[..., None]:
        def replace(src: Any, dst: Any, **kwargs: Any) -> None:
            folder, before = self._at(src)
            if folder is None:
                real(src, dst, **kwargs)
            elif folder.begins():
                after = self._at(dst)[1]
                folder.gone(after)
                real(src, dst, **kwargs)
                folder.renamed(before, after)

        return replace

    def _unlink(self, real: Callable[..., None]) -> Callable[..., None]:
        def unlink(path: Any, **kwargs: Any) -> None:
            folder, name = self._at(path)
            if folder is None:
                real(path, **kwargs)
            elif folder.begins():
                folder.gone(name)
                real(path, **kwargs)

        return unlink

    def _write(self, real: Callable[..., int]) -> Callable[..., int]:
        def write(fd: int, data: Any, *position: int) -> int:
            folder, _ = self._at(self._of(fd))
            if folder is None:
                return real(fd, data, *position)
            try:
                begins = folder.begins()
            except Killed:
                real(fd, memoryview(data)[: len(data) // 2], *position)
                raise
            return real(fd, data, *position) if begins else len(data)

        return write

    _pwrite = _write

    def _truncate(self, real: Callable[..., None]) -> Callable[..., None]:
        def truncate(path: Any, length: int) -> None:
            folder, name = self._at(self._of(path) if isinstance(path, int) else path)
            if folder is None:
                real(path, length)
            elif folder.begins():
                folder.cut(name)
                real(path, length)

        return truncate

    _ftruncate = _truncate
