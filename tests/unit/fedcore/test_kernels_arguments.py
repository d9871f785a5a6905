"""The contract of arguments: a mistake has its type, names its argument, and nothing is written."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

KEY, NONCE = bytes(32), bytes(12)

ONES = np.ones(4, np.float32)


def accumulator(kernels: ModuleType, **kwargs: Any) -> Any:
    """A sum of four values, or one that is made wrongly."""
    return kernels.Accumulator(kwargs.pop("n", 4), **({"frac_bits": 10} | kwargs))


def gaussian(kernels: ModuleType, **kwargs: Any) -> None:
    """add_gaussian_ with one argument changed."""
    defaults: dict[str, Any] = {"x": ONES.copy(), "sigma": 1.0, "key": KEY, "nonce": NONCE}
    changed = defaults | kwargs
    kernels.add_gaussian_(changed.pop("x"), changed.pop("sigma"), **changed)


def add(kernels: ModuleType, payload: Any, **kwargs: Any) -> None:
    """Accumulator.add."""
    accumulator(kernels).add(payload, **kwargs)


def noise(kernels: ModuleType, **kwargs: Any) -> None:
    """Accumulator.add_noise with one argument changed."""
    changed: dict[str, Any] = {"sigma": 1.0, "key": KEY, "nonce": NONCE} | kwargs
    accumulator(kernels).add_noise(changed.pop("sigma"), **changed)


def read_only() -> np.ndarray:
    """A vector that may not be written."""
    x = ONES.copy()
    x.flags.writeable = False
    return x


Call = Callable[[ModuleType], Any]

MISTAKES: list[tuple[str, type[Exception], Call]] = [
    # payloads
    ("payload", TypeError, lambda k: add(k, [1.0, 2.0, 3.0, 4.0])),
    ("payload", TypeError, lambda k: add(k, "text")),
    ("payload", TypeError, lambda k: add(k, None)),
    ("payload", TypeError, lambda k: add(k, np.ones(4))),
    ("payload", TypeError, lambda k: add(k, np.ones(4, np.int32))),
    ("payload", TypeError, lambda k: add(k, ONES, encoding="f16")),
    ("payload", ValueError, lambda k: add(k, np.ones(3, np.float32))),
    ("payload", ValueError, lambda k: add(k, bytes(17))),
    ("payload", ValueError, lambda k: add(k, bytes(16), encoding="i8")),
    ("payload", ValueError, lambda k: add(k, np.ones(8, np.float32)[::2])),
    ("payload", ValueError, lambda k: k.sum_squares(bytes(7))),
    ("payload", TypeError, lambda k: k.sum_squares(3)),
    ("payload", ValueError, lambda k: k.decode(bytes(7), "f32", 2)),
    ("data", TypeError, lambda k: k.Norm("f32").update(7)),
    # names
    ("encoding", ValueError, lambda k: add(k, ONES, encoding="F32")),
    ("encoding", TypeError, lambda k: add(k, ONES, encoding=None)),
    ("encoding", ValueError, lambda k: k.Norm("float32")),
    ("encoding", ValueError, lambda k: k.encode(ONES, "i4")),
    ("encoding", TypeError, lambda k: k.sum_squares(ONES, encoding=32)),
    # numbers of an update
    ("weight", ValueError, lambda k: add(k, ONES, weight=-1.0)),
    ("weight", ValueError, lambda k: add(k, ONES, weight=math.nan)),
    ("weight", ValueError, lambda k: add(k, ONES, weight=math.inf)),
    ("weight", ValueError, lambda k: add(k, ONES, weight=2.0**32 + 1)),
    ("weight", TypeError, lambda k: add(k, ONES, weight="1")),
    ("weight", TypeError, lambda k: add(k, ONES, weight=None)),
    ("norm", ValueError, lambda k: add(k, ONES, norm=math.nan, max_norm=1.0)),
    ("norm", ValueError, lambda k: add(k, ONES, norm=-1.0, max_norm=1.0)),
    ("max_norm", ValueError, lambda k: add(k, ONES, max_norm=0.0)),
    ("max_norm", ValueError, lambda k: add(k, ONES, max_norm=math.inf)),
    ("max_norm", TypeError, lambda k: add(k, ONES, max_norm="1")),
    # an accumulator
    ("n", ValueError, lambda k: accumulator(k, n=-1)),
    ("n", TypeError, lambda k: accumulator(k, n=4.0)),
    ("frac_bits", ValueError, lambda k: accumulator(k, frac_bits=101)),
    ("frac_bits", ValueError, lambda k: accumulator(k, frac_bits=-201)),
    ("frac_bits", TypeError, lambda k: accumulator(k, frac_bits=1.5)),
    ("offset", ValueError, lambda k: accumulator(k, offset=1000)),
    ("offset", ValueError, lambda k: accumulator(k, offset=-1024)),
    ("threads", ValueError, lambda k: accumulator(k, threads=0)),
    ("threads", TypeError, lambda k: accumulator(k, threads=1.5)),
    ("sigma", ValueError, lambda k: noise(k, sigma=-1.0)),
    ("sigma", ValueError, lambda k: noise(k, sigma=math.nan)),
    ("key", ValueError, lambda k: noise(k, key=bytes(31))),
    ("nonce", ValueError, lambda k: noise(k, nonce=bytes(16))),
    ("denominator", TypeError, lambda k: accumulator(k).mean("1")),
    ("out", ValueError, lambda k: accumulator(k).mean(1.0, read_only())),
    ("out", ValueError, lambda k: accumulator(k).mean(1.0, np.zeros(5, np.float32))),
    ("out", TypeError, lambda k: accumulator(k).mean(1.0, np.zeros(4))),
    ("out", TypeError, lambda k: accumulator(k).mean(1.0, [0.0] * 4)),
    # vectors in place
    ("x", TypeError, lambda k: gaussian(k, x=np.ones(4))),
    ("x", TypeError, lambda k: gaussian(k, x=[1.0])),
    ("x", ValueError, lambda k: gaussian(k, x=read_only())),
    ("x", ValueError, lambda k: gaussian(k, x=np.ones(8, np.float32)[::2])),
    ("sigma", ValueError, lambda k: gaussian(k, sigma=-0.1)),
    ("sigma", TypeError, lambda k: gaussian(k, sigma="0.1")),
    ("key", ValueError, lambda k: gaussian(k, key=bytes(16))),
    ("key", TypeError, lambda k: gaussian(k, key="k" * 32)),
    ("nonce", ValueError, lambda k: gaussian(k, nonce=bytes(8))),
    ("nonce", TypeError, lambda k: gaussian(k, nonce=0)),
    ("offset", ValueError, lambda k: gaussian(k, offset=-1)),
    ("offset", TypeError, lambda k: gaussian(k, offset=0.0)),
    ("threads", ValueError, lambda k: gaussian(k, threads=-2)),
    ("x", TypeError, lambda k: k.clip_(np.ones(4), 1.0)),
    ("x", ValueError, lambda k: k.clip_(read_only(), 1.0)),
    ("max_norm", ValueError, lambda k: k.clip_(ONES.copy(), -1.0)),
    ("x", TypeError, lambda k: k.encode(np.ones(4), "f32")),
    ("x", ValueError, lambda k: k.encode(np.ones(8, np.float32)[::2], "f32")),
    ("key", ValueError, lambda k: k.encode(ONES, "i8", key=b"short")),
    ("nonce", ValueError, lambda k: k.encode(ONES, "i8", key=KEY, nonce=b"short")),
    ("n", ValueError, lambda k: k.decode(b"", "f32", -1)),
    ("n", TypeError, lambda k: k.decode(b"", "f32", "0")),
    # many payloads
    ("payloads", ValueError, lambda k: k.median([])),
    (r"payloads\[1\]", ValueError, lambda k: k.median([ONES, np.ones(3, np.float32)])),
    # what is written shares no memory with anything else
    ("delta", ValueError, lambda k: k.sgd_(*[ONES.copy()] * 2, lr=1.0)),
    ("velocity", ValueError, lambda k: k.momentum_(*[ONES.copy()] * 2, ONES, lr=1.0)),
    ("v", ValueError, lambda k: k.adagrad_(*[ONES.copy()] * 2, ONES, lr=1.0)),
    ("v", ValueError, lambda k: k.adam_(ONES.copy(), *[ONES.copy()] * 2, ONES, lr=1.0)),
    ("m", ValueError, lambda k: k.yogi_(*[ONES.copy()] * 2, ONES.copy(), ONES, lr=1.0)),
    ("vhat", ValueError, lambda k: k.fadas_(ONES.copy(), ONES.copy(), *[ONES.copy()] * 2, ONES, lr=1.0)),
    ("out", ValueError, lambda k: k.weighted_mean([ONES], [1.0], out=ONES)),
    ("out", ValueError, lambda k: k.median([ONES], out=ONES)),
    ("out", ValueError, lambda k: k.trimmed_mean([ONES], 0, out=ONES)),
    (r"payloads\[1\]", TypeError, lambda k: k.pairwise_sq_distances([ONES, 5])),
    ("encoding", ValueError, lambda k: k.median([ONES, ONES], encoding=["f32"])),
]


@pytest.mark.parametrize(
    ("name", "error", "call"), MISTAKES, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(MISTAKES)]
)
def test_a_mistake_is_named(kernels: ModuleType, name: str, error: type[Exception], call: Call) -> None:
    """TypeError for the wrong kind of thing, ValueError for a wrong value; the message has its name."""
    with pytest.raises(error, match=rf"\b{name}(?!\w)"):
        call(kernels)


def test_secrets_stay_out_of_messages(kernels: ModuleType) -> None:
    """A key of a wrong length is not repeated in the error."""
    with pytest.raises(ValueError, match="32 bytes, not 6") as caught:
        gaussian(kernels, key=b"secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"sigma": math.nan}, {"key": b""}, {"nonce": b""}, {"offset": -1}, {"threads": 0}]
)
def test_a_vector_is_untouched_by_a_wrong_call(kernels: ModuleType, wrong: dict[str, Any]) -> None:
    """Checks come before the first write."""
    x = np.arange(5000, dtype=np.float32)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        gaussian(kernels, x=x, **wrong)
    assert (x == np.arange(5000)).all()


def test_any_buffer_is_a_payload(kernels: ModuleType) -> None:
    """bytes, bytearray, memoryview, arrays of any shape, of values or of bytes."""
    payload = np.arange(6, dtype=np.float32)
    forms = [payload, payload.tobytes(), bytearray(payload.tobytes()), memoryview(payload.tobytes())]
    forms += [payload.reshape(2, 3), payload.view(np.uint8), memoryview(payload), payload.reshape(1, 6, 1)]
    assert {kernels.sum_squares(form) for form in forms} == {55.0}
    for form in (np.zeros((0, 3), np.float32), b"", bytearray(), memoryview(b"")):
        assert kernels.sum_squares(form) == 0.0


def test_numbers_may_be_numpys(kernels: ModuleType) -> None:
    """Scalars that a caller took out of an array are as good as Python's."""
    total = kernels.Accumulator(np.int64(4), frac_bits=np.int32(10), offset=np.int64(1024))
    total.add(ONES, weight=np.float32(0.5))
    total.add(ONES, weight=np.int64(2))
    assert total.mean(np.float64(2.5)).tolist() == [1, 1, 1, 1]
    x = ONES.copy()
    kernels.add_gaussian_(x, np.float32(0), key=bytearray(KEY), nonce=memoryview(NONCE), offset=np.uint8(3))
    assert (x == 1).all()
