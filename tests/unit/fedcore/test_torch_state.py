"""torch state dicts in and out of model files."""

import re

import pytest
import safetensors.torch
import torch

from fedmq.fedcore import model_file
from fedmq.fedcore.errors import ModelError
from fedmq.fedcore.layout import Layout
from fedmq.fedcore.torch_state import from_state_dict, to_arrays, to_state_dict


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 5)
        self.norm = torch.nn.BatchNorm1d(5)
        self.half = torch.nn.Linear(5, 5).to(torch.bfloat16)
        self.head = torch.nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("mask", torch.tensor([True, False]))


def test_a_module_goes_to_a_file_and_back() -> None:
    """Names, order, dtypes (bfloat16 too), integer buffers, 0-d and empty tensors survive."""
    torch.manual_seed(1)
    module = Tied()
    state = module.state_dict()
    model = from_state_dict(state)
    file = b"".join(model.chunks)
    again = to_state_dict(model.layout, file)
    assert list(again) == list(state)
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)
    Tied().load_state_dict(again, strict=True)
    assert again["norm.num_batches_tracked"].dtype == torch.int64


def test_tied_weights_are_stored_once_and_stay_tied() -> None:
    """One storage under two names is one tensor of the layout, and one tensor again."""
    model = from_state_dict(Tied().state_dict())
    assert model.layout.ties == (("head.weight", "embed.weight"),)
    again = to_state_dict(model.layout, b"".join(model.chunks))
    assert again["head.weight"] is again["embed.weight"]


def test_floats_are_float32_when_asked() -> None:
    """Training wants float32, whatever the file came from."""
    model = from_state_dict(
        {"h": torch.ones(3, dtype=torch.bfloat16), "d": torch.ones(3, dtype=torch.float64)}
    )
    again = to_state_dict(model.layout, b"".join(model.chunks), restore=False)
    assert {tensor.dtype for tensor in again.values()} == {torch.float32}
    again["h"] += 1


def test_the_library_saves_what_we_import_alike() -> None:
    """A state dict and its safetensors file have one digest of values."""
    state = {"b": torch.ones(2, 3), "a": torch.ones(3, dtype=torch.float16), "i": torch.tensor(3)}
    ours = from_state_dict(state)
    theirs = model_file.from_file(safetensors.torch.save(state))
    loaded = to_state_dict(theirs.layout, b"".join(theirs.chunks))
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
        n: t.tolist() for n, t in state.items()
    }
    assert {t.name: t.original for t in theirs.layout.tensors} == {
        t.name: t.original for t in ours.layout.tensors
    }


def test_cpu_tensors_are_not_copied() -> None:
    """Arrays of CPU tensors are views of them; gradients and strides are no obstacle."""
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    arrays, dtypes = to_arrays({"w": parameter, "t": parameter.t()})
    with torch.no_grad():
        parameter += 1
    assert arrays["w"].tolist() == [[2.0] * 3] * 2
    assert arrays["t"].shape == (3, 2)
    assert dtypes == {}


def test_views_of_one_storage_are_not_tied() -> None:
    """A slice that starts where its storage starts, and empty tensors, are tensors of their own."""
    whole = torch.ones(4, 4)
    arrays, _ = to_arrays({"whole": whole, "row": whole[0], "e": torch.zeros(0), "f": torch.zeros(0)})
    assert Layout.of(arrays).ties == ()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"step": 1}, "'x' is a dict, expected a dense tensor"),
        (3.5, "'x' is a float, expected a dense tensor"),
        (torch.ones(2, 2).to_sparse(), "'x' is a Tensor of layout torch.sparse_coo"),
        (torch.ones(2, device="meta"), "expected a dense tensor with data"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2).to(torch.float8_e4m3fn), "torch.float8_e4m3fn, which a model file cannot hold"),
    ],
)
def test_what_is_no_dense_tensor_is_refused_by_name(value: object, says: str) -> None:
    """Extra state, sparse, meta, complex and 8-bit tensors are a `ModelError`."""
    with pytest.raises(ModelError, match=re.escape(says)):
        from_state_dict({"x": value})
