"""The safetensors format, byte by byte: what a header may say, and how ours is written.

An edge box has no safetensors library, and a broker writes a model by tiles, so both need
the format itself: eight bytes of length, a JSON header, then the tensors' bytes without a gap.

Rules that hold here:

- Everything that is read is hostile until `parse_header` returned: sizes are bounded before
  anything is allocated, names are unique, tensors cover the data area exactly, in order,
  without overlap or hole. What breaks a rule is a `ModelError` of one line.
- What is written is a function of names, shapes, dtypes and metadata alone. There is no time,
  no id and no randomness in it, so that equal models are equal files.
- The header is padded with spaces to a multiple of 64 bytes: the data can be mapped and read
  by vector instructions where it lies.

References
----------
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from .errors import ModelError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

ALIGNMENT = 64
"""The data area starts at a multiple of this many bytes."""

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 65_536
MAX_NAME_BYTES = 1_024
MAX_RANK = 32
MAX_FILE_BYTES = 1 << 48

METADATA = "__metadata__"

ITEM_BYTES: dict[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""The dtypes that a model may hold, by the format's names, and the bytes of one element."""


class Entry(msgspec.Struct, frozen=True):
    """One tensor of a file: where its bytes lie, counted from the start of the data area."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(msgspec.Struct, frozen=True):
    """A header that was checked: tensors in the order of their bytes."""

    entries: tuple[Entry, ...]
    metadata: dict[str, str]
    data_start: int
    size: int


def quoted(name: object) -> str:
    """A name from outside, fit for one line of an error message."""
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:76]}...'"


def prefix_bytes(start: ReadableBuffer) -> int:
    """How many bytes of a file hold its length field and header.

    Parameters
    ----------
    start
        The first eight bytes of the file, or more.

    Raises
    ------
    ModelError
        When there are fewer than eight, or the length that they give is absurd.
    """
    view = memoryview(start).cast("B")
    if len(view) < LENGTH_BYTES:
        raise ModelError(f"not a safetensors file: {len(view)} bytes, expected a length field of 8")
    length = int.from_bytes(view[:LENGTH_BYTES], "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise ModelError(
            f"not a safetensors file: a header of {length} bytes, expected 2 to {MAX_HEADER_BYTES}"
        )
    return LENGTH_BYTES + length


def parse_header(prefix: ReadableBuffer, size: int | None = None) -> Header:
    """Read and check the header of a safetensors file.

    Parameters
    ----------
    prefix
        The file, or at least its first `prefix_bytes` bytes.
    size
        The size of the whole file in bytes, where it is known: then the tensors must cover it.

    Raises
    ------
    ModelError
        When the header breaks the format or one of this module's limits.
    """
    view = memoryview(prefix).cast("B")
    data_start = prefix_bytes(view)
    if len(view) < data_start:
        raise ModelError(f"a truncated safetensors file: {len(view)} bytes of a header of {data_start}")
    document = _load(bytes(view[LENGTH_BYTES:data_start]))
    metadata = _checked_metadata(document.pop(METADATA, {}))
    if len(document) > MAX_TENSORS:
        raise ModelError(f"a model of {len(document)} tensors, expected at most {MAX_TENSORS}")
    # Stable: tensors without elements keep the header's order among those that start where they do.
    entries = sorted((_entry(name, row) for name, row in document.items()), key=lambda e: (e.begin, e.end))
    end = 0
    for entry in entries:
        if entry.begin != end:
            what = "overlaps the tensor before it" if entry.begin < end else "leaves a hole before it"
            raise ModelError(
                f"tensor {quoted(entry.name)} starts at byte {entry.begin}, {what} (expected {end})"
            )
        end = entry.end
    if size is not None and data_start + end != size:
        raise ModelError(f"a safetensors file of {size} bytes whose header describes {data_start + end}")
    return Header(tuple(entries), metadata, data_start, data_start + end)


def encode_header(entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    """The length field and padded header for tensors in the order of their bytes.

    Raises
    ------
    ModelError
        When the result would break the limits that `parse_header` holds others to.
    """
    document: dict[str, object] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    for entry in entries:
        document[entry.name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": (entry.begin, entry.end),
        }
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ModelError(f"a model header of {len(text)} bytes, expected at most {MAX_HEADER_BYTES}")
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def check_tensor(name: object, dtype: object, shape: Sequence[object]) -> int:
    """Check one tensor's name, dtype and shape against the limits; return its size in bytes.

    Raises
    ------
    ModelError
        Naming the tensor and what is wrong with it.
    """
    if type(name) is not str or not name or name == METADATA:
        raise ModelError(f"a tensor named {quoted(name)}: expected a non-empty text other than {METADATA}")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise ModelError(f"the tensor name {quoted(name)} is not valid Unicode") from None
    if length > MAX_NAME_BYTES:
        raise ModelError(
            f"tensor {quoted(name)}: a name of {length} bytes, expected at most {MAX_NAME_BYTES}"
        )
    item = ITEM_BYTES.get(dtype) if type(dtype) is str else None
    if item is None:
        raise ModelError(
            f"tensor {quoted(name)}: dtype {quoted(dtype)}, expected one of {', '.join(ITEM_BYTES)}"
        )
    if len(shape) > MAX_RANK:
        raise ModelError(f"tensor {quoted(name)}: {len(shape)} dimensions, expected at most {MAX_RANK}")
    dims: list[int] = []
    for dim in shape:
        if type(dim) is not int or not 0 <= dim <= MAX_FILE_BYTES:
            raise ModelError(
                f"tensor {quoted(name)}: a dimension of {quoted(dim)}, expected an integer from 0"
            )
        dims.append(dim)
    size = math.prod(dims) * item
    if size > MAX_FILE_BYTES:
        raise ModelError(f"tensor {quoted(name)}: larger than {MAX_FILE_BYTES} bytes")
    return size


def _load(text: bytes) -> dict[str, object]:
    """The header's JSON object, refusing a name that stands twice (the last would win silently)."""
    if text[:1] != b"{":
        raise ModelError("not a safetensors file: its header does not start with '{'")
    try:
        document = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"a safetensors header that is not JSON: {str(error)[:120]}") from None
    assert isinstance(document, dict)  # the text starts with '{'
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ModelError(f"a safetensors header in which {quoted(twice)} stands twice")
    return document


def _checked_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(type(value) is str for value in metadata.values()):
        raise ModelError(f"a safetensors header whose {METADATA} is not a map of texts")
    try:
        "".join((*metadata, *metadata.values())).encode()
    except UnicodeEncodeError:
        raise ModelError(f"a safetensors header whose {METADATA} is not valid Unicode") from None
    return metadata


def _entry(name: str, row: object) -> Entry:
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"tensor {quoted(name)}: expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(shape, list):
        raise ModelError(f"tensor {quoted(name)}: a shape that is not a list")
    size = check_tensor(name, dtype, shape)
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(o) is int and 0 <= o <= MAX_FILE_BYTES for o in offsets)
    ):
        raise ModelError(f"tensor {quoted(name)}: data_offsets must be two integers from 0")
    begin, end = offsets
    if end - begin != size:
        raise ModelError(
            f"tensor {quoted(name)}: {end - begin} bytes between its offsets, expected {size} for its shape"
        )
    return Entry(name, dtype, tuple(shape), begin, end)
