"""torch state dicts, in and out of model files. torch is imported only when something here is called.

Rules that hold here:

- A state dict holds tensors and nothing else: other objects would need a pickle.
- Tensors that share one storage under several names (tied weights) stay tied, both ways.
- bfloat16, which numpy does not know, passes as float32 with its name beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import model_file
from .errors import ModelError
from .layout import Array, Layout
from .safetensors_file import quoted
from .state_dict import unpack

if TYPE_CHECKING:
    import torch
    from _typeshed import ReadableBuffer


def to_arrays(state: Mapping[str, Any]) -> tuple[dict[str, Array], dict[str, str]]:
    """A torch state dict as arrays, and the original dtypes that numpy cannot tell.

    Arrays of CPU tensors are views of them; tied tensors are one array object.

    Raises
    ------
    ModelError
        When a value is no dense tensor, naming it.
    """
    import torch

    arrays: dict[str, Array] = {}
    dtypes: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise ModelError(
                f"state dict entry {quoted(name)} is {_described(tensor)}, expected a dense tensor with data"
            )
        # Without elements there is no storage to share, and every data_ptr is zero.
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        owner = first.setdefault(place, name)
        if owner != name:
            arrays[name] = arrays[owner]
            continue
        local = tensor.detach().cpu()
        if local.dtype == torch.bfloat16:
            dtypes[name] = "BF16"
            local = local.float()
        try:
            arrays[name] = local.resolve_conj().resolve_neg().numpy()
        except TypeError:
            raise ModelError(
                f"state dict entry {quoted(name)} is of {tensor.dtype}, which a model file cannot hold"
            ) from None
    return arrays, dtypes


def from_state_dict(state: Mapping[str, Any]) -> model_file.Model:
    """The model file of a torch state dict; see `model_file.from_arrays`."""
    arrays, dtypes = to_arrays(state)
    return model_file.from_arrays(arrays, dtypes=dtypes)


def to_state_dict(layout: Layout, file: ReadableBuffer, *, restore: bool = True) -> dict[str, torch.Tensor]:
    """A model file as a torch state dict, on the CPU, writable, ready for ``load_state_dict``.

    Parameters
    ----------
    restore
        Give every tensor its original dtype, bfloat16 included; otherwise floats are float32.
    """
    import torch

    originals = {spec.name: spec.original for spec in layout.tensors}
    originals.update((alias, originals[name]) for alias, name in layout.ties)
    tensors: dict[int, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for name, array in unpack(layout, file, restore=restore).items():
        if id(array) not in tensors:
            tensor = torch.from_numpy(array)
            if restore and originals[name] == "BF16":
                tensor = tensor.to(torch.bfloat16)
            tensors[id(array)] = tensor
        state[name] = tensors[id(array)]
    return state


def _described(value: object) -> str:
    layout = getattr(value, "layout", None)
    return f"a {type(value).__name__}" + (f" of layout {layout}" if layout is not None else "")
