"""Model files, against the safetensors library: it reads ours, we read its."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmq.fedcore import model_file
from fedmq.fedcore.errors import ModelError
from fedmq.fedcore.layout import NUMPY_DTYPES, Array, Layout
from fedmq.fedcore.state_dict import unpack

ARRAYS = st.sampled_from(list(NUMPY_DTYPES.values())).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        elements=st.integers(0, 100)
        if dtype.kind in "ui"
        else st.booleans()
        if dtype.kind == "b"
        else st.just(1.5),
    )
)
MODELS = st.dictionaries(st.text("ab.é", min_size=1, max_size=5), ARRAYS, max_size=8)


def written(tensors: dict[str, Array], **options: dict[str, str]) -> bytes:
    return b"".join(model_file.from_arrays(tensors, **options).chunks)


@given(MODELS)
def test_the_library_reads_what_we_write(model: dict[str, Array]) -> None:
    """Every tensor is there for any reader: floats as float32, the rest unchanged."""
    file = written(model)
    seen = safetensors.numpy.load(file)
    assert seen.keys() == model.keys()
    for name, array in model.items():
        expected = array.astype(np.float32) if array.dtype.kind == "f" else array
        assert seen[name].dtype == expected.dtype
        np.testing.assert_array_equal(seen[name], expected)


@given(MODELS)
def test_we_read_what_the_library_writes(model: dict[str, Array]) -> None:
    """A user's file, in whatever order, becomes ours without a value changed; ours stays as it is."""
    theirs = safetensors.numpy.save(model, metadata={"format": "np"})
    imported = model_file.from_file(theirs)
    file = b"".join(imported.chunks)
    assert imported.layout == Layout.from_file_prefix(file, len(file))
    assert imported.layout.metadata == (("format", "np"),)
    restored = unpack(imported.layout, file, restore=True)
    assert restored.keys() == model.keys()
    for name, array in model.items():
        assert restored[name].dtype == array.dtype
        np.testing.assert_array_equal(restored[name], array)
    assert b"".join(model_file.from_file(file).chunks) == file


@given(MODELS)
def test_an_export_gives_the_users_model_back(model: dict[str, Array]) -> None:
    """Original dtypes and every name, in a file that the library reads."""
    exported = safetensors.numpy.load(b"".join(model_file.export(written(model))))
    assert exported.keys() == model.keys()
    for name, array in model.items():
        assert exported[name].dtype == array.dtype
        np.testing.assert_array_equal(exported[name], array)


def test_torch_reads_an_integer_that_lies_on_an_odd_multiple_of_four() -> None:
    """An odd number of floats leaves int64 tensors unaligned in the file; readers cope."""
    seen = safetensors.torch.load(written({"w": np.ones(3, np.float32), "i": np.array([5, 6])}))
    assert seen["i"].tolist() == [5, 6]
    assert seen["w"].tolist() == [1, 1, 1]


def test_every_bfloat16_survives_import_and_export() -> None:
    """All finite bfloat16 values pass through float32 and back, −0 included."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[(bits & 0x7F80) != 0x7F80]
    tensor = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16)
    file = b"".join(model_file.from_file(safetensors.torch.save({"w": tensor})).chunks)
    assert torch.equal(safetensors.torch.load(file)["w"].view(torch.int32), tensor.float().view(torch.int32))
    exported = safetensors.torch.load(b"".join(model_file.export(file)))["w"]
    assert exported.dtype == torch.bfloat16
    assert torch.equal(exported.view(torch.int16), tensor.view(torch.int16))


def test_bfloat16_is_rounded_as_torch_does() -> None:
    """Trained values between two bfloat16 go to the nearest, ties to even."""
    values = np.concatenate([np.random.default_rng(1).normal(size=1000), [1.00390625, 1.01171875]]).astype(
        "<f4"
    )
    file = written({"w": values}, dtypes={"w": "BF16"})
    exported = safetensors.torch.load(b"".join(model_file.export(file)))["w"]
    assert torch.equal(exported, torch.from_numpy(values).to(torch.bfloat16))


def test_tied_names_are_stored_once_and_exported_twice() -> None:
    """Sharing costs no bytes in a version; an export knows both names, in the user's words."""
    shared = np.ones((8, 8), np.float16)
    file = written({"in": shared, "b": np.ones(3), "out": shared})
    assert len(file) - Layout.from_file_prefix(file).data_start == 4 * (64 + 3)
    exported = safetensors.numpy.load(b"".join(model_file.export(file)))
    assert exported.keys() == {"in", "out", "b"}
    np.testing.assert_array_equal(exported["out"], shared)


def test_equal_models_are_equal_files() -> None:
    """Byte order, memory order and identity of arrays do not show; content does."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    file = written({"w": array})
    assert written({"w": np.asfortranarray(array)}) == file
    assert written({"w": array.astype(">f4")}) == file
    assert written({"w": array[::-1][::-1]}) == file
    assert written({"w": array + 1}) != file


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_model_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    """NaN, Inf and what overflows float32 would be in every delta: they never enter version 0."""
    model = {"fine": np.ones(3), "mask": np.array([0.0, bad])}
    with pytest.raises(ModelError, match="'mask' holds a value that is not finite"):
        written(model)
    with pytest.raises(ModelError, match="'mask' holds a value that is not finite"):
        list(model_file.from_file(safetensors.numpy.save(model)).chunks)


def test_a_hostile_file_is_refused_at_once() -> None:
    """What is no safetensors file, was cut, or is of a dtype that cannot be trained is refused."""
    good = safetensors.numpy.save({"w": np.ones(3, np.float32)})
    for bad in (b"", b"\x80\x04\x95 a pickle, perhaps", good[:-1], good + b"\0"):
        with pytest.raises(ModelError):
            model_file.from_file(bad)
    eight = safetensors.torch.save({"w": torch.ones(4).to(torch.float8_e4m3fn)})
    with pytest.raises(ModelError, match="'w': dtype 'F8_E4M3'"):
        model_file.from_file(eight)
    with pytest.raises(ModelError, match="import the file first"):
        list(model_file.export(safetensors.numpy.save({"w": np.ones(3)})))


def test_a_file_that_claims_to_be_ours_and_is_not_is_read_as_a_strangers() -> None:
    """Forged metadata of ours is dropped; the tensors are taken for what they are."""
    forged = safetensors.numpy.save({"w": np.ones(3, np.float32)}, metadata={"fedmq": '{"tied":{"x":"y"}}'})
    imported = model_file.from_file(forged)
    assert (imported.layout.names, imported.layout.metadata) == (("w",), ())


def test_writing_digests_and_never_overwrites(tmp_path: Path) -> None:
    """A written file's size and digest are those of its bytes; a file that exists is left alone."""
    model = model_file.from_arrays({"w": np.arange(3_000_000, dtype=np.float64), "e": np.zeros(0)})
    result = model_file.write_chunks(tmp_path / "m", model.chunks)
    data = (tmp_path / "m").read_bytes()
    assert result == model_file.Written(len(data), xxhash.xxh3_128(data).digest())
    assert result.digest == model_file.digest(data)
    assert result.size == model.layout.size
    with pytest.raises(FileExistsError):
        model_file.write_chunks(tmp_path / "m", [b"other"])
    assert (tmp_path / "m").read_bytes() == data


def test_a_chunk_that_fails_leaves_no_file(tmp_path: Path) -> None:
    """An error in the middle goes on, and half a file does not stay behind."""

    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ModelError("no more")

    with pytest.raises(ModelError, match="no more"):
        model_file.write_chunks(tmp_path / "m", chunks(), fsync=False)
    assert not any(tmp_path.iterdir())


def test_a_large_file_is_imported_in_little_memory(tmp_path: Path) -> None:
    """Importing 64 MiB of float64 from a mapped file holds a few chunks, not the model."""
    with (tmp_path / "big").open("wb") as out:
        entry = '{"w":{"dtype":"F64","shape":[8388608],"data_offsets":[0,67108864]}}'.ljust(72).encode()
        out.write(len(entry).to_bytes(8, "little") + entry)
        out.truncate(80 + (64 << 20))
    program = (
        "import mmap, pathlib, re, sys; from fedmq.fedcore import model_file\n"
        "def anon(): return int(re.search(r'RssAnon:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "big = pathlib.Path(sys.argv[1]); before = anon()\n"
        "with big.open('rb') as f: m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "peak = 0\n"
        "def watched():\n"
        "    global peak\n"
        "    for chunk in model_file.from_file(m).chunks:\n"
        "        peak = max(peak, anon() - before); yield chunk\n"
        "model_file.write_chunks(big.with_suffix('.out'), watched(), fsync=False); print(peak)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "big")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 24 << 10
