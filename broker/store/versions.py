"""The version store: every version is one safetensors file, its optimizer state lies beside it.

    state/versions/
      v00000042.safetensors        the model, as workers fetch it
      v00000042.velocity.f32       a flat float32 vector for each slot of the server optimizer
      v00000042.center.f32         the combined update, where the rule starts the next one from it
      v00000042.f16                the model as workers fetch it, where that is encoded (`encoded_versions`)

Rules that hold here:

- A file under its final name is whole and never changes. It is written under a temporary name, fsynced,
  renamed, and its folder fsynced; only then may the journal name it. The model is renamed last.
- The journal decides which version is current. What is newer than that was made and not committed
  before a crash: `recover` deletes it, and the same fold makes it again.
- Files are read through maps, and handed out as read-only views without a copy. A deleted file stays
  readable for those who still hold a view of it.
- The I/O thread reads blocks while the aggregation thread writes the next version; both may call this.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final, Self

import numpy as np
import xxhash

from fedmq.fedcore import model_file
from fedmq.fedcore.encoded_model import MODEL_ENCODINGS
from fedmq.fedcore.errors import StateError
from fedmq.fedcore.layout import Flat, Layout

from .refusals import patiently, unwritten

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["VersionStore", "VersionWriter", "sync_folder", "versions_in"]

_UNABLE: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""File systems that take no space beforehand; it is taken while the file is written."""

MAPS_MAX = 64
"""Files that stay mapped, those that were used last: each mapping holds a descriptor, and many versions may be kept."""
_NAME: Final = re.compile(r"v(\d{8,})\.(?:safetensors|([a-z]+)\.f32)(\.new)?")
_ENCODED: Final = re.compile(rf"v\d{{8,}}\.({'|'.join(MODEL_ENCODINGS)})(\.new)?")


class VersionStore:
    """The versions of one federation on disk.

    Parameters
    ----------
    folder : Path
        Made when it is not there.
    fsync : bool
        False (``durability = "os"``) keeps the order of writes, but does not wait for the disk.
    """

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._fsync = fsync
        self._lock = threading.Lock()
        self._maps: dict[Path, memoryview] = {}
        self._with_state: set[int] = set()
        """Versions that may have files of optimizer state: where there are none, the folder need not be read."""
        self._layout: Layout | None = None
        self._header = b""

    def recover(self, current: int | None) -> tuple[int, ...]:
        """Delete what a crash left behind, and say which versions there are.

        Parameters
        ----------
        current : int or None
            The last version that the journal knows; None when it knows none.

        Raises
        ------
        StateError
            When the current version's file is not there.
        """
        for path in self._folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if _ENCODED.fullmatch(path.name):
                path.unlink()  # never synced, and soon made again
            elif match and (match[3] or current is None or int(match[1]) > current):
                path.unlink()
            elif match and match[2]:
                self._with_state.add(int(match[1]))
        versions = self.versions()
        if current is not None and current not in versions:
            raise StateError(
                f"{self.path(current)} is missing, but the journal says that version {current} is current; "
                "restore the state folder as a whole"
            )
        return versions

    def versions(self) -> tuple[int, ...]:
        """The versions whose files are there, ascending."""
        return versions_in(self._folder)

    def path(self, version: int, encoding: str = "f32") -> Path:
        """Where a version's file, or what it is as workers fetch it, is or would be."""
        return self._folder / f"v{version:08d}.{'safetensors' if encoding == 'f32' else encoding}"

    def file(self, version: int) -> memoryview:
        """A version's whole file, mapped, read-only.

        Raises
        ------
        StateError
            When it is no longer kept.
        """
        return self._map(self.path(version), f"version {version}")

    def block(self, version: int, offset: int, length: int, encoding: str = "f32") -> memoryview:
        """The bytes that a FETCH asks for: a view of min(length, size − offset) bytes.

        Raises
        ------
        StateError
            When the version is no longer kept.
        ValueError
            When nothing lies at `offset`.
        """
        what = f"version {version}" if encoding == "f32" else f"version {version} as {encoding}"
        file = self._map(self.path(version, encoding), what)
        if not (0 <= offset < len(file) and length > 0):
            raise ValueError(f"{length} bytes at {offset} of a file of {len(file)}")
        return file[offset : offset + length]

    def layout(self, version: int) -> Layout:
        """The layout of a version's file. Every version of a model has the same header: it is parsed once."""
        file = self.file(version)
        if self._layout is None or bytes(file[: len(self._header)]) != self._header:
            self._layout = Layout.from_file_prefix(file, len(file))
            self._header = bytes(file[: self._layout.data_start])
        return self._layout

    def verify(self, version: int, *, size: int, digest: bytes) -> None:
        """Read a version's file once and compare it with what the journal says about it.

        Raises
        ------
        StateError
            When the file is missing, cut or damaged.
        """
        file = self.file(version)
        if len(file) != size or model_file.digest(file) != digest:
            raise StateError(
                f"{self.path(version)} is damaged: not the {size} bytes that were written; "
                "restore the state folder as a whole"
            )

    def state(self, version: int, slot: str, n: int) -> Flat:
        """A slot of the optimizer's state after a version, float32[n], mapped, read-only.

        Version 0 has no files of state: its slots are zeros.

        Raises
        ------
        StateError
            When the slot is missing or of another length.
        """
        if version == 0:
            return np.broadcast_to(np.float32(0), (n,))
        path = self._state_path(version, slot)
        data = self._map(path, f"the optimizer's {slot} of version {version}") if n else memoryview(b"")
        if len(data) != 4 * n:
            raise StateError(f"{path} is damaged: {len(data)} bytes, expected {4 * n}")
        return np.frombuffer(data, np.float32)

    def write(self, version: int, chunks: Iterable[ReadableBuffer]) -> model_file.Written:
        """Write a whole version without optimizer state, as version 0 is; durable on return.

        Raises
        ------
        StateError
            When the disk refuses.
        """
        with self.writer(version) as writer:
            for chunk in chunks:
                writer.model(chunk)
            return writer.commit()

    def writer(self, version: int, slots: Sequence[str] = (), *, size: int = 0, n: int = 0) -> VersionWriter:
        """Begin to write a version and the optimizer state that goes with it.

        Parameters
        ----------
        version
            Which.
        slots
            Names of the vectors of state.
        size, n
            The bytes of the model's file and the elements of a vector of state, as far as they are known: disk space
            for them is taken at once.

        Raises
        ------
        StateError
            When the disk refuses.
        """
        if slots:
            self._with_state.add(version)
        paths = {slot: self._state_path(version, slot) for slot in slots} | {"": self.path(version)}
        return VersionWriter(paths, self._fsync, dict.fromkeys(slots, 4 * n) | {"": size})

    def delete(self, versions: Iterable[int]) -> None:
        """Delete versions with their state; those that are not there are no error."""
        doomed = frozenset(versions)
        for version in doomed:
            for encoding in MODEL_ENCODINGS:
                self._unlink(self.path(version, encoding))
        self._unlink_states(doomed.__contains__)

    def delete_states_before(self, version: int) -> None:
        """Delete the optimizer state of older versions: nothing folds onto them any more."""
        self._unlink_states(lambda older: older < version)

    def _state_path(self, version: int, slot: str) -> Path:
        return self._folder / f"v{version:08d}.{slot}.f32"

    def _map(self, path: Path, what: str) -> memoryview:
        with self._lock:
            view = self._maps.pop(path, None)
            if view is None:
                try:
                    with path.open("rb") as file:
                        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                except FileNotFoundError:
                    raise StateError(f"{what} is not kept in {self._folder}") from None
                except (OSError, ValueError) as error:
                    raise StateError(f"{path} cannot be read: {error}") from error
                if len(self._maps) >= MAPS_MAX:
                    del self._maps[next(iter(self._maps))]  # whoever still reads it keeps it mapped
            self._maps[path] = view
            return view

    def _unlink(self, path: Path) -> None:
        with self._lock:
            self._maps.pop(path, None)
            path.unlink(missing_ok=True)

    def _unlink_states(self, is_doomed: Callable[[int], bool]) -> None:
        doomed = {version for version in self._with_state.copy() if is_doomed(version)}
        if not doomed:
            return
        for path in patiently(lambda: list(self._folder.iterdir())):
            match = _NAME.fullmatch(path.name)
            if match and match[2] and not match[3] and int(match[1]) in doomed:
                self._unlink(path)
        self._with_state -= doomed


class VersionWriter:
    """Writes one version from front to back, its state alongside, and digests the model on the way.

    A context manager: what was not committed is gone when it ends.
    """

    def __init__(self, paths: dict[str, Path], fsync: bool, sizes: dict[str, int]) -> None:
        self._path = path = paths[""]
        self._paths = paths
        self._fsync = fsync
        self._files: dict[str, BinaryIO] = {}
        self._digest = xxhash.xxh3_128()
        self._size = 0
        try:
            for slot, target in self._paths.items():
                self._files[slot] = _opened(_temporary(target))
                _reserve(self._files[slot], sizes[slot])
        except OSError as error:
            self._discard()
            raise unwritten(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._discard()

    def model(self, data: ReadableBuffer) -> None:
        """Append to the model's file."""
        view = memoryview(data)
        self._digest.update(view)
        self._size += view.nbytes
        self._append("", view)

    def state(self, slot: str, data: ReadableBuffer) -> None:
        """Append to a slot of the optimizer's state."""
        self._append(slot, memoryview(data))

    def commit(self) -> model_file.Written:
        """Make the files durable under their final names; what the model's file is."""
        try:
            for file in self._files.values():
                if self._fsync:
                    os.fsync(file.fileno())
                file.close()
            # The model last: where it is, its state is as well.
            for target in self._paths.values():
                _temporary(target).replace(target)
            if self._fsync:
                sync_folder(self._path.parent)
        except OSError as error:
            raise unwritten(self._path, error) from error
        return model_file.Written(self._size, self._digest.digest())

    def _append(self, slot: str, view: memoryview) -> None:
        if view.nbytes == 0:
            return
        rest = view.cast("B")
        try:
            while rest:
                rest = rest[self._files[slot].write(rest) :]
        except OSError as error:
            raise unwritten(self._path, error) from error

    def _discard(self) -> None:
        for file in self._files.values():
            file.close()
        for target in self._paths.values():
            # What cannot be removed now is at the next start; why the writing ended must not be lost over it.
            with contextlib.suppress(OSError):
                _temporary(target).unlink(missing_ok=True)


def versions_in(folder: Path) -> tuple[int, ...]:
    """The versions whose files are in a folder, ascending."""
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return tuple(sorted(int(match[1]) for match in found if match and not match[2] and not match[3]))


def sync_folder(folder: Path) -> None:
    """Make a folder's names durable."""
    descriptor = patiently(lambda: os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(target: Path) -> Path:
    return target.with_name(target.name + ".new")


def _opened(path: Path) -> BinaryIO:
    return patiently(lambda: path.open("wb", buffering=0))


def _reserve(file: BinaryIO, size: int) -> None:
    """Take the space for a file that will have this size: a full disk shows at once, and writing takes less time."""
    if size and sys.platform == "linux":
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
