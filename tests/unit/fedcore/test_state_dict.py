"""State dicts in and out of a layout: exactly, or a `LayoutError` that names the tensor."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmq.fedcore import model_file
from fedmq.fedcore.errors import LayoutError, ModelError
from fedmq.fedcore.layout import Array, Layout
from fedmq.fedcore.state_dict import Change, delta, flatten, unflatten, unpack

SHARED = np.arange(4, dtype=np.float32).reshape(2, 2)
MODEL: dict[str, Array] = {
    "steps": np.array(7),
    "w": SHARED,
    "half": np.array([0.5, -0.0], np.float16),
    "tied": SHARED,
    "scalar": np.array(0.1),
    "none": np.zeros((3, 0), np.float32),
}
LAYOUT = Layout.of(MODEL)
FILE = b"".join(model_file.from_arrays(MODEL).chunks)
BASE = LAYOUT.flat(FILE)


def test_a_model_file_is_unpacked_in_the_users_order() -> None:
    """Names, order, shapes and values are the user's; floats are float32; ties are one object."""
    state = unpack(LAYOUT, FILE)
    assert list(state) == list(MODEL)
    for name, array in MODEL.items():
        assert state[name].shape == array.shape
        assert state[name].dtype == (np.int64 if name == "steps" else np.float32)
        np.testing.assert_array_equal(state[name], array.astype(state[name].dtype))
    assert state["tied"] is state["w"]
    state["w"] += 1
    state["scalar"][()] = 3
    assert BASE[0] == 0


def test_views_are_read_only_where_the_file_is() -> None:
    """Without a copy nothing is allocated, and the base cannot be trained in place by accident."""
    state = unpack(LAYOUT, FILE, copy=False)
    with pytest.raises(ValueError, match="read-only"):
        state["w"] += 1
    assert unpack(LAYOUT, bytearray(FILE), copy=False)["w"].flags.writeable


def test_original_dtypes_come_back_when_asked() -> None:
    """`restore` gives F16 and F64 back."""
    state = unpack(LAYOUT, FILE, restore=True)
    assert {name: str(array.dtype) for name, array in state.items()} == {
        name: str(array.dtype) for name, array in MODEL.items()
    }
    assert np.signbit(state["half"][1])


def test_a_file_of_another_size_is_refused() -> None:
    """A cut file is never unpacked."""
    with pytest.raises(ModelError, match=f"expected {LAYOUT.size}"):
        unpack(LAYOUT, FILE[:-1])


def test_flatten_and_unflatten_are_inverse() -> None:
    """The flat vector holds the floats, in the layout's order; `unflatten` gives views of it."""
    flat = flatten(LAYOUT, MODEL)
    np.testing.assert_array_equal(flat, BASE)
    views = unflatten(LAYOUT, flat)
    assert list(views) == [name for name in MODEL if name != "steps"]
    views["tied"][:] = 5
    assert flat[:4].tolist() == [5, 5, 5, 5]
    with pytest.raises(LayoutError, match=r"expected float32\[7\]"):
        unflatten(LAYOUT, flat[:-1])
    with pytest.raises(LayoutError, match="float64"):
        unflatten(LAYOUT, flat.astype(np.float64))


@given(st.data())
def test_a_delta_is_trained_minus_base(data: st.DataObject) -> None:
    """Whatever the shapes, delta + base gives the trained floats, and integers are left out."""
    shapes = data.draw(st.lists(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), max_size=5))
    numbers = st.integers(-1000, 1000)
    model = {
        str(i): data.draw(hnp.arrays(np.float32, shape, elements=numbers)) for i, shape in enumerate(shapes)
    }
    model["count"] = np.array(3)
    layout = Layout.of(model)
    trained = {
        name: np.asarray(array + 1 if name != "count" else 9) for name, array in reversed(model.items())
    }
    out = delta(layout, flatten(layout, model), trained)
    assert out.dtype == np.float32
    assert out.tolist() == [1.0] * layout.n


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 20))
def test_a_change_may_be_looked_at_piece_by_piece(sizes: list[int], step: int) -> None:
    """Wherever pieces and tensors begin and end, the pieces make the whole, and nothing else is written."""
    model = {str(i): np.full(size, i, np.float32) for i, size in enumerate(sizes)}
    layout = Layout.of(model)
    trained = {name: array + np.arange(array.size, dtype=np.float32) for name, array in model.items()}
    change = Change(layout, flatten(layout, model), trained)
    whole = flatten(layout, trained) - flatten(layout, model)
    assert change.size == layout.n
    assert change[:].tolist() == whole.tolist()
    for start in range(0, layout.n, step):
        assert change[start : start + step].tolist() == whole[start : start + step].tolist()
        own = np.full(step + 1, -7, np.float32)
        piece = change.into(own[: min(step, layout.n - start)], start)
        assert piece.base is own
        assert own[piece.size :].tolist() == [-7] * (own.size - piece.size)


def test_floats_of_any_width_are_subtracted_before_rounding() -> None:
    """A float64 result keeps what float32 would have lost; float16 and integers are welcome."""
    layout = Layout.of({"w": np.ones(2, np.float32)})
    base = np.ones(2, np.float32)
    fine = delta(layout, base, {"w": np.array([1 + 1e-9, 1.0])})
    assert fine.tolist() == [np.float32((1 + 1e-9) - 1), 0]
    assert delta(layout, base, {"w": np.array([2, 3])}).tolist() == [1, 2]
    assert delta(layout, base, {"w": np.array([2, 0.5], np.float16)}).tolist() == [1, -0.5]


def test_memory_order_does_not_matter() -> None:
    """A transposed or strided result is read by its elements."""
    layout = Layout.of({"w": np.zeros((2, 3), np.float32)})
    trained = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert delta(layout, np.zeros(6, np.float32), {"w": trained}).tolist() == [0, 1, 2, 3, 4, 5]


def test_what_is_not_finite_is_passed_on() -> None:
    """NaN, Inf and overflow are the broker's to judge: no error, no warning."""
    layout = Layout.of({"w": np.zeros(3, np.float32)})
    out = delta(layout, np.zeros(3, np.float32), {"w": np.array([np.nan, np.inf, 1e300])})
    assert np.isnan(out[0])
    assert np.isinf(out[1:]).all()


def changed(**changes: object) -> dict[str, Array]:
    state: dict[str, Array] = {**MODEL, **changes}  # type: ignore[dict-item]
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("trained", "says"),
    [
        (changed(w=None), "'w' is missing"),
        (changed(steps=None), "'steps' is missing"),
        ({}, "'w', 'half', 'scalar' (and 2 more) is missing"),
        (changed(more=np.ones(1)), "'more' is not in the model"),
        (changed(w=np.ones((2, 1)), tied=None), "'w' has shape [2, 1], expected [2, 2]"),
        (changed(w=np.ones((1, 2, 2)), tied=None), "'w' has shape [1, 2, 2]"),
        (changed(w=np.float32(1), tied=None), "'w' has shape []"),
        (changed(scalar=np.ones(1)), "'scalar' has shape [1], expected []"),
        (changed(none=np.zeros((0, 3))), "'none' has shape [0, 3]"),
        (changed(steps=np.ones(2)), "'steps' has shape [2]"),
        (changed(half=np.array(["a", "b"])), "'half' is of <U1"),
        (changed(half=np.array([1j, 0])), "'half' is of complex128"),
        (changed(half=np.array([True, False])), "'half' is of bool"),
        (changed(half=np.array([None, None])), "'half' is of object"),
        (changed(w=SHARED + 1), "'tied' is tied to 'w', but their values differ"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_name(trained: dict[str, Array], says: str) -> None:
    """Missing, extra, of another shape (nothing broadcasts), not numeric, untied: each is named."""
    with pytest.raises(LayoutError, match=re.escape(says)):
        delta(LAYOUT, BASE, trained)
    with pytest.raises(LayoutError, match=re.escape(says)):
        flatten(LAYOUT, trained)


def test_an_alias_may_be_left_out_or_repeated() -> None:
    """Tied weights count once, whether the app returns one name, one object or equal copies."""
    once = delta(LAYOUT, BASE, changed(w=SHARED + 1, tied=None))
    assert once[:4].tolist() == [1, 1, 1, 1]
    np.testing.assert_array_equal(delta(LAYOUT, BASE, changed(w=SHARED + 1, tied=SHARED + 1)), once)


def test_a_base_of_another_length_is_refused() -> None:
    """A delta against the wrong base is worse than none."""
    with pytest.raises(LayoutError, match=r"expected float32\[7\]"):
        delta(LAYOUT, BASE[:-1], MODEL)
    with pytest.raises(LayoutError, match="float64"):
        delta(LAYOUT, BASE.astype(np.float64), MODEL)  # type: ignore[arg-type]
