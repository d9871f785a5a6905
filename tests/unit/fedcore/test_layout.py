"""Layouts: one order of tensors, known from a file's first bytes, the same for equal models."""

import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmq.fedcore.errors import ModelError
from fedmq.fedcore.layout import FLOATS, NUMPY_DTYPES, Array, Layout

DTYPES = st.sampled_from([*NUMPY_DTYPES, "BF16"])
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
ROWS = st.dictionaries(st.text("abc.é☃", min_size=1, max_size=6), st.tuples(DTYPES, SHAPES), max_size=12)

A_MODEL: dict[str, Array] = {
    "steps": np.array(7),
    "w": np.ones((3, 5), np.float32),
    "mask": np.array([True, False]),
    "half": np.ones(4, np.float16),
    "empty": np.zeros((0, 3)),
    "bias": np.ones((), np.float64),
}


def test_floats_come_first_and_the_rest_widest_first() -> None:
    """The flat vector is one run at the start of the data; other dtypes follow by width."""
    layout = Layout.of(A_MODEL)
    assert [t.name for t in layout.tensors] == ["w", "half", "empty", "bias", "steps", "mask"]
    assert [t.dtype for t in layout.tensors] == ["F32", "F32", "F32", "F32", "I64", "BOOL"]
    assert [t.original for t in layout.tensors] == ["F32", "F16", "F64", "F64", "I64", "BOOL"]
    assert [t.offset for t in layout.tensors] == [0, 60, 76, 76, 80, 88]
    assert layout.n == 20
    assert layout.data_start % 64 == 0
    assert layout.size == layout.data_start + 90
    assert layout.names == tuple(A_MODEL)


@given(ROWS)
def test_a_layout_is_read_back_from_its_header(rows: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Names, shapes, dtypes, offsets, order and digest survive; the run of floats has no gap."""
    layout = Layout.plan([(name, dtype, shape) for name, (dtype, shape) in rows.items()], names=list(rows))
    header = layout.header()
    assert Layout.from_file_prefix(header) == layout
    assert Layout.from_file_prefix(header + bytes(64), layout.size) == layout
    assert len(header) == layout.data_start
    assert layout.names == tuple(rows)
    floats = [t for t in layout.tensors if t.original in FLOATS]
    assert [t.dtype for t in floats] == ["F32"] * len(floats)
    assert sum(t.size for t in floats) == layout.n
    assert all(t.offset % 4 == 0 and t.offset + t.nbytes <= 4 * layout.n for t in floats)
    assert {t.name: (t.original, t.shape) for t in layout.tensors} == rows


def test_ties_and_metadata_are_read_back() -> None:
    """Names of one memory are tied to the first of them; other metadata is kept, sorted."""
    shared = np.ones((2, 2), np.float32)
    layout = Layout.of(
        {"out": shared, "b": np.zeros(2), "in": shared, "view": shared[:]},
        metadata={"z": "1", "format": "pt"},
    )
    assert layout.ties == (("in", "out"), ("view", "out"))
    assert [t.name for t in layout.tensors] == ["out", "b"]
    assert layout.names == ("out", "b", "in", "view")
    assert layout.metadata == (("format", "pt"), ("z", "1"))
    assert Layout.from_file_prefix(layout.header()) == layout


def test_only_the_same_elements_are_tied() -> None:
    """A part of an array, its transpose, its reinterpretation and empty arrays are tensors of their own."""
    array = np.ones((4, 4), np.float32)
    empty = np.zeros(0, np.float32)
    views = {
        "a": array,
        "row": array[0],
        "t": array.T,
        "bits": array.view(np.int32),
        "e": empty,
        "f": empty[:],
    }
    assert Layout.of(views).ties == ()


def test_a_lazy_mapping_is_not_taken_for_ties(tmp_path: Path) -> None:
    """Arrays that a mapping makes when asked may reuse memory; they are not one tensor."""
    np.savez(tmp_path / "m.npz", a=np.zeros(1000, np.float32), b=np.ones(1000, np.float32))
    with np.load(tmp_path / "m.npz") as archive:
        assert Layout.of(archive).ties == ()


def test_the_digest_knows_names_shapes_dtypes_order_and_ties() -> None:
    """Whatever changes the meaning of the flat vector changes the digest; metadata does not."""
    a, b = ("a", "F32", (2,)), ("b", "F32", (2,))
    layouts = [
        Layout.plan([a, b]),
        Layout.plan([b, a]),
        Layout.plan([a, ("c", "F32", (2,))]),
        Layout.plan([a, ("b", "F32", (1, 2))]),
        Layout.plan([a, ("b", "F16", (2,))]),
        Layout.plan([a, b], ties={"c": "a"}),
        Layout.plan([a, b], ties={"c": "b"}),
        Layout.plan([a, b, ("i", "I32", ())]),
    ]
    assert len({layout.digest for layout in layouts}) == len(layouts)
    assert all(len(layout.digest) == 16 for layout in layouts)
    assert Layout.plan([a, b], metadata={"k": "v"}).digest == layouts[0].digest


def test_a_header_is_the_same_in_every_process() -> None:
    """There is nothing of the process in a header: no time, no hash seed, no address."""
    program = (
        "import sys, numpy as np; from fedmq.fedcore.layout import Layout;"
        "a = np.ones(3, np.float16);"
        "layout = Layout.of({'b': np.array(1), 'a': a, 'c': a}, metadata={'y': '', 'x': ''});"
        "sys.stdout.buffer.write(layout.header())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True) for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout
    assert Layout.from_file_prefix(runs[0].stdout).names == ("b", "a", "c")


def test_equal_layouts_are_equal_values() -> None:
    """A layout is a value: comparable, hashable, immutable."""
    one, two = Layout.of(A_MODEL), Layout.of(dict(A_MODEL))
    assert one == two
    assert hash(one) == hash(two)
    with pytest.raises(AttributeError):
        one.n = 1  # type: ignore[misc]


def test_three_thousand_tensors_are_laid_out_at_once() -> None:
    """Planning and reading back 3,000 tensors takes well under the time of one message."""
    model: dict[str, Array] = {
        f"block.{i}.weight": np.zeros((), np.int64) if i % 3 == 0 else np.zeros((2, 3), np.float32)
        for i in range(3000)
    }

    def seconds() -> float:
        start = time.perf_counter()
        layout = Layout.of(model)
        Layout.from_file_prefix(layout.header())
        return time.perf_counter() - start

    # Planned in < 50 ms and read in < 50 ms here; the best of five leaves room for a busy machine.
    assert min(seconds() for _ in range(5)) < 0.2


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"a": 1.5}, "'a' is a float, expected a numpy array"),
        ({"a": np.array("text")}, "'a' is of <U4"),
        ({"a": np.array([object()])}, "'a' is of object"),
        ({"a": np.ones(2, np.complex64)}, "'a' is of complex64"),
        ({"a": np.ones(2, np.longdouble)}, "'a' is of float128"),
        ({"": np.ones(2)}, "non-empty"),
        ({"__metadata__": np.ones(2)}, "other than __metadata__"),
        ({1: np.ones(2)}, "a tensor named 1"),
        ({"x" * 2000: np.ones(2)}, "name of 2000 bytes"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_by_name(tensors: dict[str, Array], says: str) -> None:
    """Objects, texts, complex numbers and impossible names are a `ModelError`."""
    with pytest.raises(ModelError, match=says):
        Layout.of(tensors)


def test_a_plan_that_contradicts_itself_is_refused() -> None:
    """Names stand once, ties point at tensors, the order of names is complete."""
    a = ("a", "F32", (2,))
    with pytest.raises(ModelError, match="'a' stands twice"):
        Layout.plan([a, a])
    with pytest.raises(ModelError, match="'b' cannot be tied to 'c'"):
        Layout.plan([a], ties={"b": "c"})
    with pytest.raises(ModelError, match="'a' cannot be tied to 'a'"):
        Layout.plan([a], ties={"a": "a"})
    with pytest.raises(ModelError, match="order of names"):
        Layout.plan([a], ties={"b": "a"}, names=["a"])


def file_prefix(metadata: str | None, *rows: tuple[str, str, list[int], list[int]]) -> bytes:
    document: dict[str, object] = {} if metadata is None else {"__metadata__": {"fedmq": metadata}}
    document |= {name: {"dtype": d, "shape": s, "data_offsets": o} for name, d, s, o in rows}
    text = json.dumps(document).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


A = ("a", "F32", [2], [0, 8])


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        (
            file_prefix(None, ("i", "I64", [1], [0, 8]), ("a", "F32", [2], [8, 16])),
            "not where fedmq keeps it",
        ),
        (file_prefix(None, ("a", "F16", [2], [0, 4])), "not where fedmq keeps it"),
        (file_prefix(None, A)[:8], "truncated"),
        ((2).to_bytes(8, "little") + b"{}", "multiple of 64"),
        (file_prefix("[", A), "damaged"),
        (file_prefix("[" * 100_000, A), "damaged"),
        (file_prefix('{"dtypes":{"a":5}}', A), "damaged"),
        (file_prefix('{"dtypes":{"a":"I64"}}', A), "said to be 'I64'"),
        (file_prefix('{"dtypes":{"i":"F16"}}', A, ("i", "I64", [1], [8, 16])), "said to be 'F16'"),
        (file_prefix('{"tied":{"b":"c"}}', A), "cannot be tied"),
        (file_prefix('{"tied":{"":"a"}}', A), "non-empty"),
        (file_prefix('{"order":[0,0]}', A), "permutation"),
        (file_prefix('{"order":[1]}', A), "permutation"),
    ],
)
def test_a_file_that_is_not_laid_out_like_ours_is_refused(prefix: bytes, says: str) -> None:
    """A foreign or forged order of tensors never becomes a layout."""
    with pytest.raises(ModelError, match=says) as error:
        Layout.from_file_prefix(prefix)
    assert len(str(error.value)) < 300


def test_later_versions_may_say_more_in_our_metadata() -> None:
    """Keys that a newer release writes do not stop an older worker."""
    assert Layout.from_file_prefix(file_prefix('{"later":1}', A)).n == 2


def test_the_flat_vector_is_a_view_of_the_file() -> None:
    """`flat` copies nothing, and refuses a file of another size."""
    layout = Layout.of({"i": np.array(1), "w": np.ones(3, np.float32)})
    file = bytearray(layout.header() + np.arange(3, dtype="<f4").tobytes() + bytes(8))
    flat = layout.flat(file)
    file[layout.data_start : layout.data_start + 4] = np.float32(9).tobytes()
    assert flat.tolist() == [9, 1, 2]
    with pytest.raises(ModelError, match=f"expected {layout.size}"):
        layout.flat(file[:-1])


def test_a_layout_travels_as_plain_data() -> None:
    """Layouts pass through msgspec, so that they can stand in jobs and results."""
    layout = Layout.of(A_MODEL)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(layout), type=Layout) == layout


def test_an_edge_box_needs_little() -> None:
    """Layout, state dict and model file import neither torch nor safetensors nor a socket."""
    program = (
        "import sys, fedmq.fedcore.layout, fedmq.fedcore.state_dict, fedmq.fedcore.model_file,"
        " fedmq.fedcore.torch_state;"
        "print(*sorted({'torch', 'safetensors', 'zmq', 'sqlite3', 'fedmq.broker'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
