"""Layouts: where each tensor of a model lies in its file, and in one flat float32 vector.

A model version is a safetensors file (`fedmq.fedcore.safetensors_file`) of one particular order.
Rules that hold in every layout:

- Floating-point tensors come first and are stored as F32, in one contiguous run that starts at
  a multiple of 64 bytes. That run, read as little-endian float32, is the *flat vector*: what
  deltas are taken from and what is aggregated.
- Every other dtype follows, widest first, unchanged. It is never aggregated.
- What the user's tensors were before (F16, BF16, F64), which names were tied to which, and the
  order that the names had, stand in the file's ``__metadata__`` under ``fedmq``, so that a layout
  is known from a file's first bytes, and an export gives the user's own dtypes and names back.

`fedmq.fedcore.state_dict` moves arrays in and out of a layout, `fedmq.fedcore.model_file` writes files.
On an edge box these are all that a worker has: they need numpy, msgspec and xxhash.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from .errors import ModelError
from .safetensors_file import ITEM_BYTES, Entry, check_tensor, encode_header, parse_header, quoted

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Array = NDArray[Any]
Flat = NDArray[np.float32]

FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
"""What is stored as F32 and aggregated."""

METADATA_KEY = "fedmq"

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
"""numpy's type for each of the format's dtypes. BF16 has none: it appears as float32."""

DTYPE_NAMES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in NUMPY_DTYPES.items()}


class TensorSpec(msgspec.Struct, frozen=True):
    """One tensor of a layout.

    Attributes
    ----------
    name, shape
        As in the user's state dict.
    dtype
        As stored in the file, by the format's name: ``F32`` for every float.
    offset
        Where its bytes start in the file's data area; ``offset // 4`` is the place of an F32
        tensor's first element in the flat vector.
    original
        What the user's tensor was: ``dtype``, or ``F16``, ``BF16`` or ``F64``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    original: str

    @property
    def size(self) -> int:
        """The number of elements."""
        size = 1
        for dim in self.shape:
            size *= dim
        return size

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file."""
        return self.size * ITEM_BYTES[self.dtype]


class Layout(msgspec.Struct, frozen=True):
    """The names, shapes, dtypes and order of a model's tensors.

    Two layouts are the same exactly when their digests are. `header` is the same for every
    version of a model, so are `data_start` and `size`.

    Attributes
    ----------
    tensors
        In the order of their bytes in the file: F32 first.
    ties
        Pairs (alias, name): the state dict holds one tensor under both names.
    names
        Every name, aliases included, in the order of the state dict.
    metadata
        What else the user's file said about itself, as sorted pairs.
    n
        The number of elements in the flat vector.
    data_start
        The byte of the file at which the flat vector starts; a multiple of 64.
    size
        The bytes of the whole file.
    digest
        XXH3-128 over names, shapes, dtypes and ties, in order; 16 bytes.
    """

    tensors: tuple[TensorSpec, ...]
    ties: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    metadata: tuple[tuple[str, str], ...]
    n: int
    data_start: int
    size: int
    digest: bytes

    @classmethod
    def plan(
        cls,
        tensors: Sequence[tuple[str, str, tuple[int, ...]]],
        *,
        ties: Mapping[str, str] | None = None,
        names: Sequence[str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Layout:
        """Lay out tensors that are described by (name, dtype, shape), in the state dict's order.

        Parameters
        ----------
        tensors
            What is to be stored; dtypes by the format's names.
        ties
            Other names, each with the name of the tensor that it shares.
        names
            Every name in the state dict's order; default: the tensors, then the ties.
        metadata
            Texts to keep in the file beside our own.

        Raises
        ------
        ModelError
            When a name, dtype or shape cannot be stored, or a name stands twice.
        """
        ties = dict(ties or {})
        for name, dtype, shape in tensors:
            check_tensor(name, dtype, shape)
        given = [name for name, _, _ in tensors]
        everything = _checked_names(given, ties, given + list(ties) if names is None else list(names))
        floats = [row for row in tensors if row[1] in FLOATS]
        # Widest first: where the run's length allows it, every element lies on its own alignment.
        others = sorted((row for row in tensors if row[1] not in FLOATS), key=lambda row: -ITEM_BYTES[row[1]])
        specs: list[TensorSpec] = []
        offset = n = 0
        for name, original, shape in (*floats, *others):
            dtype = "F32" if original in FLOATS else original
            spec = TensorSpec(name, shape, dtype, offset, original)
            specs.append(spec)
            offset += spec.nbytes
            n += spec.size if dtype == "F32" else 0
        kept = {key: value for key, value in (metadata or {}).items() if key != METADATA_KEY}
        layout = cls(tuple(specs), tuple(ties.items()), everything, tuple(sorted(kept.items())), n, 0, 0, b"")
        data_start = len(layout.header())
        digest = xxhash.xxh3_128_digest(layout._identity())
        return msgspec.structs.replace(layout, data_start=data_start, size=data_start + offset, digest=digest)

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, Array],
        *,
        dtypes: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Layout:
        """The layout of a state dict of arrays. Names that share one memory are tied.

        Parameters
        ----------
        tensors
            The state dict. Its order is kept.
        dtypes
            Original dtypes where numpy cannot tell, by name: ``{"w": "BF16"}`` for a float32 array.

        Raises
        ------
        ModelError
            When something in it is not an array of a dtype that a model file can hold.
        """
        first: dict[object, str] = {}
        ties: dict[str, str] = {}
        rows: list[tuple[str, str, tuple[int, ...]]] = []
        # A lazy mapping (numpy's NpzFile) would reuse one array's memory for the next.
        tensors = dict(tensors)
        for name, array in tensors.items():
            owner = first.setdefault(_memory(name, array), name)
            if owner != name:
                ties[name] = owner
                continue
            dtype = (dtypes or {}).get(name) or dtype_name(name, array)
            rows.append((name, dtype, array.shape))
        return cls.plan(rows, ties=ties, names=list(tensors), metadata=metadata)

    @classmethod
    def from_file_prefix(cls, prefix: ReadableBuffer, size: int | None = None) -> Layout:
        """The layout of a model file, from its first bytes.

        Parameters
        ----------
        prefix
            The file, or at least as much of it as `safetensors_file.prefix_bytes` says.
        size
            The whole file's size in bytes, where it is known; it must be what the header says.

        Raises
        ------
        ModelError
            When it is no safetensors file, or not one in the order that this module describes.
        """
        header = parse_header(prefix, size)
        ours = _our_metadata(header.metadata.get(METADATA_KEY, "{}"))
        _check_order(header.entries, header.data_start)
        specs = []
        for entry in header.entries:
            original = ours.dtypes.get(entry.name, entry.dtype)
            if original != entry.dtype and not (entry.dtype == "F32" and original in FLOATS):
                raise ModelError(
                    f"tensor {quoted(entry.name)}: stored as {entry.dtype}, said to be {quoted(original)}"
                )
            specs.append(TensorSpec(entry.name, entry.shape, entry.dtype, entry.begin, original))
        given = [spec.name for spec in specs]
        everything = given + list(ours.tied)
        if ours.order:
            if sorted(ours.order) != list(range(len(everything))):
                raise ModelError("a model file whose 'order' is not a permutation of its names")
            everything = [everything[i] for i in ours.order]
        names = _checked_names(given, ours.tied, everything)
        kept = tuple(sorted((k, v) for k, v in header.metadata.items() if k != METADATA_KEY))
        n = sum(spec.size for spec in specs if spec.dtype == "F32")
        layout = cls(
            tuple(specs), tuple(ours.tied.items()), names, kept, n, header.data_start, header.size, b""
        )
        return msgspec.structs.replace(layout, digest=xxhash.xxh3_128_digest(layout._identity()))

    def header(self) -> bytes:
        """The first bytes of every file of this layout, up to `data_start`."""
        entries = [Entry(t.name, t.dtype, t.shape, t.offset, t.offset + t.nbytes) for t in self.tensors]
        ours: dict[str, object] = {}
        if dtypes := {t.name: t.original for t in self.tensors if t.original != t.dtype}:
            ours["dtypes"] = dtypes
        if self.ties:
            ours["tied"] = dict(self.ties)
        stored = [t.name for t in self.tensors] + [alias for alias, _ in self.ties]
        if stored != list(self.names):
            place = {name: i for i, name in enumerate(stored)}
            ours["order"] = [place[name] for name in self.names]
        metadata = dict(self.metadata)
        if ours:
            metadata[METADATA_KEY] = json.dumps(ours, ensure_ascii=False, separators=(",", ":"))
        return encode_header(entries, metadata)

    def flat(self, file: ReadableBuffer) -> Flat:
        """The flat vector of a model file that is mapped or in memory: a view, float32[n].

        Raises
        ------
        ModelError
            When the file is not of this layout's size.
        """
        self.check_size(file)
        return np.frombuffer(memoryview(file), np.float32, self.n, self.data_start)

    def check_size(self, file: ReadableBuffer) -> None:
        """Raise a `ModelError` when a file is not of this layout's size."""
        if (size := memoryview(file).nbytes) != self.size:
            raise ModelError(f"a model file of {size} bytes, expected {self.size} for its layout")

    def _identity(self) -> bytes:
        rows = [(t.name, t.original, t.shape) for t in self.tensors]
        return json.dumps([rows, self.ties], separators=(",", ":")).encode()


class _OurMetadata(msgspec.Struct, forbid_unknown_fields=False):
    """What stands in ``__metadata__`` under our key."""

    dtypes: dict[str, str] = {}
    tied: dict[str, str] = {}
    order: list[int] = []


def dtype_name(name: str, array: Array) -> str:
    """The format's name of an array's dtype.

    Raises
    ------
    ModelError
        Naming the tensor, when it is not an array, or of a dtype that a model file cannot hold.
    """
    if not isinstance(array, np.ndarray):
        raise ModelError(f"tensor {quoted(name)} is a {type(array).__name__}, expected a numpy array")
    dtype = DTYPE_NAMES.get(array.dtype.newbyteorder("<"))
    if dtype is None:
        raise ModelError(
            f"tensor {quoted(name)} is of {array.dtype}, expected one of {', '.join(ITEM_BYTES)}"
        )
    return dtype


def _memory(name: str, array: Array) -> object:
    """Equal for two names exactly when they show one and the same memory, element for element."""
    dtype_name(name, array)
    if array.size == 0:
        return id(array)
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype


def _checked_names(given: list[str], ties: Mapping[str, str], everything: list[str]) -> tuple[str, ...]:
    known = set(given)
    if len(known) != len(given):
        raise ModelError(f"tensor {quoted(Counter(given).most_common(1)[0][0])} stands twice in a model")
    for alias, name in ties.items():
        if alias in known or name not in known:
            raise ModelError(f"tensor {quoted(alias)} cannot be tied to {quoted(name)}")
        check_tensor(alias, "F32", ())
    if len(everything) != len(given) + len(ties) or set(everything) != known | ties.keys():
        raise ModelError("a model's order of names must hold each of its names once")
    return tuple(everything)


def _check_order(entries: Sequence[Entry], data_start: int) -> None:
    seen_other: Entry | None = None
    for entry in entries:
        if entry.dtype != "F32":
            seen_other = entry
        if entry.dtype in FLOATS and (entry.dtype != "F32" or seen_other is not None):
            raise ModelError(
                f"tensor {quoted(entry.name)} ({entry.dtype}) is not where fedmq keeps it: floats are stored"
                " as F32, before every other dtype; import the file first"
            )
    if data_start % 64:
        raise ModelError(
            f"the tensors start at byte {data_start}, expected a multiple of 64; import the file first"
        )


def _our_metadata(text: str) -> _OurMetadata:
    try:
        return msgspec.json.decode(text.encode(), type=_OurMetadata)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelError(
            f"a model file whose {METADATA_KEY} metadata is damaged: {str(error)[:120]}"
        ) from None
