"""A version's file as a worker may fetch it: its floats in fewer bytes, everything else as it is.

    header  ‖  the flat vector, encoded  ‖  the tensors of other dtypes

Rules that hold here:

- The header is the version's own. So `decoded` gives a model file of the same layout, and what is trained from it
  fits the version like anything else.
- The same version and encoding are the same bytes, on every machine: what was deleted can be made again, and a
  transfer that broke off goes on where it was.
- Every value is finite. A version with one that the encoding cannot say is refused, by name, and travels as it is.
- Beside the file nothing is as large as the model: it is read and made by tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np

from . import kernels
from .codecs import payload_size
from .errors import ModelError
from .layout import Layout
from .safetensors_file import quoted

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["MODEL_ENCODINGS", "ModelEncoding", "decoded", "encoded", "encoded_size"]

ModelEncoding = Literal["f32", "f16", "bf16"]

MODEL_ENCODINGS: Final[tuple[ModelEncoding, ...]] = get_args(ModelEncoding)
"""What a model may travel as; ``f32`` is the version's file itself."""

_TILE: Final = 1 << 20
"""Elements that are converted at a time."""


def encoded_size(layout: Layout, encoding: str) -> int:
    """The bytes of a file of this layout in an encoding.

    Examples
    --------
    >>> layout = Layout.of({"w": np.zeros(1000), "steps": np.array(7)})
    >>> layout.size - encoded_size(layout, "f16")
    2000
    """
    return layout.size - 4 * layout.n + payload_size(encoding, layout.n)


def encoded(file: ReadableBuffer, layout: Layout, encoding: str) -> Iterator[ReadableBuffer]:
    """The bytes of a version's file in an encoding, tile by tile.

    Parameters
    ----------
    file
        The whole file, mapped or in memory.
    layout
        Its layout.
    encoding
        One of `MODEL_ENCODINGS`.

    Raises
    ------
    ModelError
        At the tensor that holds a value which is not finite in this encoding.
    """
    whole = memoryview(file).cast("B")
    flat = layout.flat(whole)
    yield whole[: layout.data_start]
    for start in range(0, layout.n, _TILE):
        chunk = kernels.encode(flat[start : start + _TILE], encoding)
        if not math.isfinite(kernels.sum_squares(chunk, encoding=encoding)):
            values = kernels.decode(chunk, encoding, min(_TILE, layout.n - start))
            at = start + int(np.flatnonzero(~np.isfinite(values))[0])
            raise ModelError(
                f"tensor {quoted(_tensor_at(layout, at))} holds {flat[at]:.6g}, which is not finite as {encoding}"
            )
        yield chunk
    yield whole[layout.data_start + 4 * layout.n :]


def decoded(file: ReadableBuffer, encoding: str) -> Iterator[ReadableBuffer]:
    """The model file that an encoded one stands for, tile by tile; it has the version's layout.

    Raises
    ------
    ModelError
        At once, when it is no model file, or not of the size that its header and its encoding give.
    """
    whole = memoryview(file).cast("B")
    layout = Layout.from_file_prefix(whole)
    expected = encoded_size(layout, encoding)
    if len(whole) != expected:
        raise ModelError(
            f"a model file of {len(whole)} bytes, expected {expected} for its layout as {encoding}"
        )
    return _decoded(whole, layout, encoding)


def _decoded(whole: memoryview, layout: Layout, encoding: str) -> Iterator[ReadableBuffer]:
    yield whole[: layout.data_start]
    for start in range(0, layout.n, _TILE):
        stop = min(start + _TILE, layout.n)
        first, last = (layout.data_start + payload_size(encoding, at) for at in (start, stop))
        yield kernels.decode(whole[first:last], encoding, stop - start).data
    yield whole[layout.data_start + payload_size(encoding, layout.n) :]


def _tensor_at(layout: Layout, element: int) -> str:
    """The name of the tensor that an element of the flat vector belongs to."""
    return next(
        spec.name
        for spec in layout.tensors
        if spec.dtype == "F32" and spec.offset // 4 <= element < spec.offset // 4 + spec.size
    )
