"""A delta as a payload: tiles that make the whole, the largest values, and what is left out."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.fedcore import kernels
from fedmq.fedcore.codecs import ENCODINGS, TOPK_BLOCK
from fedmq.fedcore.errors import ClientAppError
from fedmq.fedcore.layout import Layout
from fedmq.fedcore.state_dict import Change, flatten
from fedmq.worker import compression
from fedmq.worker.compression import encoded


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tiles_make_the_payload_of_the_whole(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding by tiles needs no second copy of the delta, and decodes to the same."""
    monkeypatch.setattr(compression, "TILE", TOPK_BLOCK)
    delta = np.random.default_rng(1).normal(size=40_000).astype(np.float32)
    payload = b"".join(encoded(delta, encoding, seed=3))
    back = kernels.decode(payload, encoding, delta.size)
    loss = {"f32": 0, "f16": 2e-3, "bf16": 2e-2, "i8": 4e-2, "topk": 2e-3}[encoding]
    np.testing.assert_allclose(back, delta, atol=loss)
    assert payload == b"".join(encoded(delta, encoding, seed=3))
    if encoding != "i8":
        assert payload == kernels.encode(delta, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_said_and_what_is_left_out_make_the_delta(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the rounding of a float32, and exactly where nothing is said."""
    monkeypatch.setattr(compression, "TILE", TOPK_BLOCK)
    delta = np.random.default_rng(2).normal(size=40_000).astype(np.float32)
    left: list[Any] = []
    payload = b"".join(encoded(delta, encoding, seed=3, keep=500, left_out=left.append))
    said = kernels.decode(payload, encoding, delta.size)
    np.testing.assert_allclose(said + np.concatenate(left), delta, rtol=1e-6, atol=1e-9)
    silent = said == 0
    assert (np.concatenate(left)[silent] == delta[silent]).all()


@pytest.mark.parametrize("encoding", ["f32", "f16", "bf16", "i8"])
def test_a_change_is_encoded_as_its_delta_is(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, though it is never there as a whole."""
    monkeypatch.setattr(compression, "TILE", 2048)
    monkeypatch.setattr(compression, "PLAIN_TILE", 1000)
    rng = np.random.default_rng(4)
    base = {"a": rng.normal(size=1500).astype(np.float32), "b": rng.normal(size=4000).astype(np.float32)}
    trained = {name: array * np.float32(1.5) for name, array in base.items()}
    layout = Layout.of(base)
    change = Change(layout, flatten(layout, base), trained)
    sent = b"".join([bytes(chunk) for chunk in encoded(change, encoding, seed=3)])
    assert sent == b"".join(encoded(change[:], encoding, seed=3))


def test_a_change_beyond_float32_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two finite models can be further apart than any float32."""
    monkeypatch.setattr(compression, "PLAIN_TILE", 2)
    most = np.finfo(np.float32).max
    base, trained = ({"w": np.array([0, 1, 2, x], np.float32)} for x in (-most, most))
    layout = Layout.of(base)
    with pytest.raises(ClientAppError, match="further than its encoding can say"):
        list(encoded(Change(layout, flatten(layout, base), trained), "f32", seed=3))


VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 0.5]), st.floats(-100, 100, width=16, allow_subnormal=False)
)


@given(st.lists(VALUES, min_size=1, max_size=60), st.integers(1, 70))
@settings(max_examples=200)
def test_topk_keeps_the_largest_and_of_equals_the_first(values: list[float], keep: int) -> None:
    """As a stable sort by magnitude would choose."""
    delta = np.array(values, np.float32)
    payload = b"".join(encoded(delta, "topk", seed=0, keep=keep))
    expected = np.zeros_like(delta)
    chosen = np.argsort(-np.abs(delta), kind="stable")[:keep]
    expected[chosen] = delta[chosen]
    assert (kernels.decode(payload, "topk", delta.size) == expected).all()


def test_ties_and_ranks_hold_across_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile does not know how many of its values stay; the vector does."""
    monkeypatch.setattr(compression, "TILE", TOPK_BLOCK)
    delta = np.ones(3 * TOPK_BLOCK, np.float32)
    delta[-1] = 2
    payload = b"".join(encoded(delta, "topk", seed=0, keep=TOPK_BLOCK + 8))
    kept = np.flatnonzero(kernels.decode(payload, "topk", delta.size))
    assert kept.tolist() == [*range(TOPK_BLOCK + 7), delta.size - 1]
