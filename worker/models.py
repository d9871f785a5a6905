"""The model cache: model files as they came over the wire, by the digest of the whole file.

    models/<digest>.safetensors    complete, or as much of it as has arrived

Small models, which come with their tasks, are kept in memory and never written. What came in fewer bytes is kept as it
came; the model that it stands for is made beside it when it is opened, in a file without a name.

Rules that hold here:

- A file grows at its end only, so its length is how much of it is here.
- Nothing is said about what is in it until `open` has compared the whole file with its digest, once per
  process. So a file that a crash, a disk or a person damaged is found out before an app trains on it.
- An open model stays mapped and unchanged while its app runs, even when it is deleted meanwhile.
- `open` and `writable` are called by the app's thread, the rest by the I/O thread.
"""

import mmap
import os
from pathlib import Path
from typing import Final

import xxhash

from fedmq.fedcore.encoded_model import decoded
from fedmq.fedcore.errors import ModelError, StateError

SUFFIX: Final = ".safetensors"


class ModelCache:
    """The model files in one state folder.

    Parameters
    ----------
    path
        The folder, which exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._verified: set[bytes] = set()
        self._small: dict[bytes, memoryview] = {}
        self._decoded: dict[bytes, tuple[str, memoryview]] = {}

    def lengths(self) -> dict[bytes, int]:
        """Digest and length of each file, the least recently written first; other files are removed."""
        found: list[tuple[int, bytes, int]] = []
        for file in self._path.iterdir():
            try:
                digest = bytes.fromhex(file.stem)
            except ValueError:
                digest = b""
            if file.suffix == SUFFIX and len(digest) == 16:
                stat = file.stat()
                found.append((stat.st_mtime_ns, digest, stat.st_size))
            else:
                file.unlink()
        return {digest: length for _, digest, length in sorted(found)}

    def append(self, digest: bytes, offset: int, data: memoryview) -> None:
        """Write the next bytes of a file. Raises OSError when they cannot be written."""
        fd = os.open(self._file(digest), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while data.nbytes:
                written = os.pwrite(fd, data, offset)
                data = data[written:]
                offset += written
        finally:
            os.close(fd)

    def keep(self, digest: bytes, data: memoryview) -> None:
        """Keep a whole model in memory."""
        # Of its own: the frame that it came in would stay as long as the app holds a view.
        self._small[digest] = memoryview(bytes(data))

    def open(self, digest: bytes, encoding: str = "f32") -> memoryview:
        """The model's file, read-only, verified; mapped, unless it is in memory.

        Parameters
        ----------
        digest
            Of the file as it came.
        encoding
            What it came as, one of `fedmq.fedcore.encoded_model.MODEL_ENCODINGS`.

        Raises
        ------
        ModelError
            When it is not there, not what its digest says, or no model in this encoding.
        StateError
            When there is no room for the model that an encoded one stands for.
        """
        small = self._small.get(digest)
        data = self._mapped(digest) if small is None else small
        if digest not in self._verified:
            if xxhash.xxh3_128_digest(data) != digest:
                raise ModelError(f"the model {digest.hex()} is not what its digest says")
            self._verified.add(digest)
        if encoding == "f32":
            return data
        known = self._decoded.get(digest)
        if known is None or known[0] != encoding:
            known = encoding, self._decode(data, encoding, small is not None)
            if digest in self._verified:  # not deleted meanwhile
                self._decoded[digest] = known
        return known[1]

    def writable(self, digest: bytes, encoding: str = "f32") -> memoryview:
        """The same of a model that was opened, for somebody who may write into it: nobody else sees what he writes.

        Of a mapped one a page is copied when it is written. So an app that copies its weights elsewhere, as one of
        torch's does, takes no second copy of the model; one that trains in place pays a page fault for each page.

        Raises
        ------
        ModelError
            When it is not there.
        """
        if encoding != "f32":  # what it was decoded into has no name to be mapped by once more
            return memoryview(bytearray(self.open(digest, encoding)))
        small = self._small.get(digest)
        return self._mapped(digest, mmap.ACCESS_COPY) if small is None else memoryview(bytearray(small))

    def delete(self, digest: bytes) -> None:
        """Forget a model; an unknown one is no error."""
        self._verified.discard(digest)
        self._decoded.pop(digest, None)
        if self._small.pop(digest, None) is None:
            self._file(digest).unlink(missing_ok=True)

    def _decode(self, data: memoryview, encoding: str, is_small: bool) -> memoryview:
        """The model that a file stands for: in memory where that is, else mapped, and gone with the last view of it."""
        import tempfile  # which a program whose models come as they are need not load

        chunks = decoded(data, encoding)
        if is_small:
            return memoryview(b"".join(chunks))
        try:
            with tempfile.TemporaryFile(dir=self._path) as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise StateError(f"the model cannot be stored: {error.strerror}") from error

    def _mapped(self, digest: bytes, access: int = mmap.ACCESS_READ) -> memoryview:
        try:
            with self._file(digest).open("rb", buffering=0) as file:
                return memoryview(mmap.mmap(file.fileno(), 0, access=access))
        except (OSError, ValueError) as error:
            raise ModelError(f"the model {digest.hex()} is not in the cache: {error}") from error

    def _file(self, digest: bytes) -> Path:
        return self._path / (digest.hex() + SUFFIX)
