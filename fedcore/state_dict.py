"""State dicts of arrays, in and out of a layout.

Rules that hold here:

- A state dict fits a layout exactly or not at all: the same names, each with the same shape.
  Nothing is broadcast, nothing is filled in. What does not fit is a `LayoutError` that names
  the tensor.
- Tied names hold one array object, so that training one in place trains the other.
- Values are not judged. Whether an update is finite is the broker's to say.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .errors import LayoutError
from .layout import NUMPY_DTYPES, Array, Flat, Layout, TensorSpec
from .safetensors_file import quoted

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def unpack(
    layout: Layout, file: ReadableBuffer, *, copy: bool = True, restore: bool = False
) -> dict[str, Array]:
    """The state dict of a model file, in the order that its user gave it.

    Parameters
    ----------
    file
        The whole file, mapped or in memory.
    copy
        True gives writable arrays of one's own; False views of `file`, read-only where it is.
    restore
        Give F16 and F64 tensors their dtype back (BF16 stays float32: numpy has no such type).
        Otherwise every float is float32.

    Raises
    ------
    ModelError
        When the file is not of the layout's size.
    """
    layout.check_size(file)
    whole = memoryview(file)
    arrays: dict[str, Array] = {}
    for spec in layout.tensors:
        view = np.frombuffer(whole, NUMPY_DTYPES[spec.dtype], spec.size, layout.data_start + spec.offset)
        wanted = NUMPY_DTYPES.get(spec.original, view.dtype) if restore else view.dtype
        arrays[spec.name] = view.reshape(spec.shape).astype(wanted, copy=copy)
    return _in_order(layout, arrays)


def unflatten(layout: Layout, flat: Flat) -> dict[str, Array]:
    """Views of a flat vector, float32[n], by name; tensors of other dtypes are not in it."""
    if flat.shape != (layout.n,) or flat.dtype != np.float32:
        raise LayoutError(f"a flat vector of {flat.dtype}{list(flat.shape)}, expected float32[{layout.n}]")
    return _in_order(
        layout,
        {spec.name: flat[_run(spec)].reshape(spec.shape) for spec in layout.tensors if spec.dtype == "F32"},
    )


def flatten(layout: Layout, tensors: Mapping[str, Array]) -> Flat:
    """A state dict's floats as one new flat vector, float32[n].

    Raises
    ------
    LayoutError
        When names or shapes are not the layout's.
    """
    flat = np.empty(layout.n, np.float32)
    with np.errstate(all="ignore"):
        for spec, array in _matched(layout, tensors):
            flat[_run(spec)] = array.reshape(-1)
    return flat


def delta(layout: Layout, base: Flat, trained: Mapping[str, Array]) -> Flat:
    """What training changed: trained − base, a new float32[n]; see `Change`."""
    return Change(layout, base, trained)[:]


class Change:
    """What training changed, trained − base, computed where it is asked for: nothing is held of it.

    Parameters
    ----------
    base
        The flat vector that the training started from, float32[n].
    trained
        The state dict after training. Floats may be of any width: they are subtracted before the
        difference is rounded to float32. An alias may be left out; where it is there, it must be
        equal to the tensor that it is tied to. Tensors of other dtypes are checked, and left out.

    Raises
    ------
    LayoutError
        Naming the first tensor that is missing, not in the layout, of another shape or of no
        numeric type.
    """

    def __init__(self, layout: Layout, base: Flat, trained: Mapping[str, Array]) -> None:
        if base.shape != (layout.n,) or base.dtype != np.float32:
            raise LayoutError(f"a base of {base.dtype}{list(base.shape)}, expected float32[{layout.n}]")
        self.size = layout.n
        self._base = base
        runs = [(_run(spec), array.reshape(-1)) for spec, array in _matched(layout, trained) if spec.size]
        self._runs = sorted(runs, key=lambda run: run[0].start)
        self._starts = [run.start for run, _ in self._runs]

    def __getitem__(self, at: slice) -> Flat:
        """Elements [start, stop), new."""
        start, stop, _ = at.indices(self.size)
        return self.into(np.empty(max(stop - start, 0), np.float32), start)

    def into(self, out: Flat, start: int) -> Flat:
        """Write the elements from `start` on over `out`, all of it, and return that."""
        stop = start + out.size
        at = max(bisect.bisect_right(self._starts, start) - 1, 0)
        with np.errstate(all="ignore"):
            for run, array in self._runs[at:]:
                if run.start >= stop:
                    break
                first, last = max(run.start, start), min(run.stop, stop)
                if first < last:
                    np.subtract(
                        array[first - run.start : last - run.start],
                        self._base[first:last],
                        out=out[first - start : last - start],
                        casting="same_kind",
                    )
        return out


def _run(spec: TensorSpec) -> slice:
    """Where an F32 tensor lies in the flat vector."""
    start = spec.offset // 4
    return slice(start, start + spec.size)


def _matched(layout: Layout, tensors: Mapping[str, Array]) -> list[tuple[TensorSpec, Array]]:
    """The floats of a state dict, after the whole of it was checked against the layout."""
    _check_names(layout, tensors)
    floats: list[tuple[TensorSpec, Array]] = []
    for spec in layout.tensors:
        array = np.asarray(tensors[spec.name])
        if array.shape != spec.shape:
            raise LayoutError(
                f"tensor {quoted(spec.name)} has shape {list(array.shape)}, expected {list(spec.shape)}"
            )
        if spec.dtype == "F32":
            if array.dtype.kind not in "fiu":
                raise LayoutError(f"tensor {quoted(spec.name)} is of {array.dtype}, expected floating point")
            floats.append((spec, array))
    for alias, name in layout.ties:
        if alias not in tensors or tensors[alias] is tensors[name]:
            continue
        if not np.array_equal(np.asarray(tensors[alias]), np.asarray(tensors[name]), equal_nan=True):
            raise LayoutError(f"tensor {quoted(alias)} is tied to {quoted(name)}, but their values differ")
    return floats


def _check_names(layout: Layout, tensors: Mapping[str, Array]) -> None:
    if missing := [spec.name for spec in layout.tensors if spec.name not in tensors]:
        raise LayoutError(f"tensor {_listed(missing)} is missing from the state dict")
    known = set(layout.names)
    if extra := [name for name in tensors if name not in known]:
        raise LayoutError(f"tensor {_listed(extra)} is not in the model's layout")


def _in_order(layout: Layout, arrays: dict[str, Array]) -> dict[str, Array]:
    """Add the aliases and give the names the order of the user's state dict."""
    for alias, name in layout.ties:
        if name in arrays:
            arrays[alias] = arrays[name]
    return {name: arrays[name] for name in layout.names if name in arrays}


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(quoted(name) for name in names[:3])
    return f"{shown} (and {len(names) - 3} more)" if len(names) > 3 else shown
