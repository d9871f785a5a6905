"""Model files: from a state dict, from anybody's safetensors file, and back to the user's own dtypes.

Rules that hold here:

- A file is produced as a sequence of chunks of at most a few MiB, so that it can be written,
  hashed and sent without being held. `write_chunks` and `b"".join` are the two ways to use them.
- A model that is to be trained holds finite floats only: NaN or Inf in the first version would
  be in every delta. What is not finite is refused here, by name.
- Nothing is unpickled, and nothing but bytes, shapes and names is read from a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import xxhash

from .errors import ModelError
from .layout import NUMPY_DTYPES, Array, Layout, TensorSpec
from .safetensors_file import ITEM_BYTES, Entry, encode_header, parse_header, quoted

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

CHUNK_ITEMS = 1 << 20
"""Elements that are converted at a time."""


class Model(msgspec.Struct, frozen=True):
    """A model file that is about to be written: its layout and its bytes, to be read once."""

    layout: Layout
    chunks: Iterator[ReadableBuffer]


class Written(msgspec.Struct, frozen=True):
    """What was written: bytes, and their XXH3-128."""

    size: int
    digest: bytes


def digest(data: ReadableBuffer) -> bytes:
    """The digest of a file or payload: XXH3-128, seed 0, canonical big-endian, 16 bytes."""
    return xxhash.xxh3_128_digest(memoryview(data))


def from_arrays(
    tensors: Mapping[str, Array],
    *,
    dtypes: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Model:
    """The model file of a state dict of arrays.

    Parameters
    ----------
    tensors
        The state dict; its order is kept, and names that share one memory are tied.
    dtypes
        Original dtypes where numpy cannot tell, by name: ``{"w": "BF16"}`` for a float32 array.
    metadata
        Texts to keep in the file.

    Raises
    ------
    ModelError
        At once, when a name, type or shape cannot be stored; while the chunks are read, when a
        float is not finite.

    Examples
    --------
    >>> model = from_arrays({"w": np.zeros((2, 3)), "steps": np.array(7)})
    >>> file = b"".join(model.chunks)
    >>> model.layout.n, len(file) == model.layout.size
    (6, True)
    """
    tensors = dict(tensors)
    layout = Layout.of(tensors, dtypes=dtypes, metadata=metadata)
    return Model(layout, _chunks(layout, tensors))


def from_file(file: ReadableBuffer) -> Model:
    """The model file of anybody's safetensors file: any order of tensors, any dtype of ours.

    A file in our own order comes out as it is. A view of `file` lives until the chunks were read.

    Raises
    ------
    ModelError
        At once, when the file breaks the format; while the chunks are read, when a float is not
        finite.
    """
    whole = memoryview(file).cast("B")
    header = parse_header(whole, len(whole))
    arrays: dict[str, Array] = {}
    for entry in header.entries:
        stored = NUMPY_DTYPES["U16" if entry.dtype == "BF16" else entry.dtype]
        items = (entry.end - entry.begin) // stored.itemsize
        arrays[entry.name] = np.frombuffer(whole, stored, items, header.data_start + entry.begin)
    try:
        layout = Layout.from_file_prefix(whole, len(whole))
    except ModelError:
        rows = [(entry.name, entry.dtype, entry.shape) for entry in header.entries]
        layout = Layout.plan(rows, metadata=header.metadata)
    return Model(layout, _chunks(layout, arrays))


def export(file: ReadableBuffer) -> Iterator[ReadableBuffer]:
    """A version's file as its user knows it: original dtypes, tied names, the state dict's order.

    Tied tensors are written once for each of their names, as safetensors has no other way to say it.

    Raises
    ------
    ModelError
        When the file is not a model file of fedmq's.
    """
    whole = memoryview(file).cast("B")
    layout = Layout.from_file_prefix(whole, len(whole))
    owner = {spec.name: spec for spec in layout.tensors}
    owner.update((alias, owner[name]) for alias, name in layout.ties)
    entries: list[Entry] = []
    end = 0
    # Wide elements first, so that every tensor lies on its own alignment.
    for name in sorted(layout.names, key=lambda name: -ITEM_BYTES[owner[name].original]):
        spec = owner[name]
        begin, end = end, end + spec.size * ITEM_BYTES[spec.original]
        entries.append(Entry(name, spec.original, spec.shape, begin, end))
    yield encode_header(entries, dict(layout.metadata))
    for entry in entries:
        spec = owner[entry.name]
        stored = np.frombuffer(whole, NUMPY_DTYPES[spec.dtype], spec.size, layout.data_start + spec.offset)
        for start in range(0, spec.size, CHUNK_ITEMS):
            yield _restored(stored[start : start + CHUNK_ITEMS], spec.original)


def write_chunks(path: Path, chunks: Iterable[ReadableBuffer], *, fsync: bool = True) -> Written:
    """Write a file that must not exist, chunk by chunk, and digest it on the way.

    When a chunk cannot be made or written, the file is removed and the error goes on.
    """
    state = xxhash.xxh3_128()
    size = 0
    with path.open("xb", buffering=0) as out:
        try:
            for chunk in chunks:
                view = memoryview(chunk).cast("B")
                state.update(view)
                size += len(view)
                while view:
                    view = view[out.write(view) :]
            if fsync:
                os.fsync(out.fileno())
        except BaseException:
            path.unlink()
            raise
    return Written(size, state.digest())


def _chunks(layout: Layout, arrays: Mapping[str, Array]) -> Iterator[ReadableBuffer]:
    yield layout.header()
    for spec in layout.tensors:
        array = arrays[spec.name].reshape(-1)
        for start in range(0, spec.size, CHUNK_ITEMS):
            yield _stored(spec, array[start : start + CHUNK_ITEMS])


def _stored(spec: TensorSpec, items: Array) -> ReadableBuffer:
    """Elements as they stand in a file of ours."""
    if spec.dtype != "F32":
        return np.ascontiguousarray(items, NUMPY_DTYPES[spec.dtype]).data
    if spec.original == "BF16" and items.dtype == NUMPY_DTYPES["U16"]:
        items = (items.astype("<u4") << np.uint32(16)).view("<f4")
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(items, NUMPY_DTYPES["F32"])
    if not np.isfinite(floats).all():
        raise ModelError(
            f"tensor {quoted(spec.name)} holds a value that is not finite in float32; no model can be trained"
            " from it (leave masks and other constants out of the state dict)"
        )
    return floats.data


def _restored(items: Array, original: str) -> ReadableBuffer:
    """Elements as they stood in the user's file."""
    if original == "BF16":
        bits = items.view("<u4")
        # To nearest, ties to even. A version holds finite values only, so no NaN can be rounded to Inf.
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (rounded >> np.uint32(16)).astype("<u2").data
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(items, NUMPY_DTYPES[original]).data
