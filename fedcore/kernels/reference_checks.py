"""Checks of the reference kernels' arguments, made before anything is written.

Each names the argument, what it was, and what it may be: `TypeError` for a wrong kind of thing, `ValueError`
for a wrong size or value. The native kernels raise the same types for the same mistakes.
"""

import math
import operator
from collections.abc import Callable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..codecs import Encoding, element_count, is_encoding, payload_size
from . import reference_topk as topk

__all__ = [
    "Payload",
    "count",
    "disjoint",
    "disjoint_output",
    "encoded",
    "encodings",
    "fraction",
    "known_encoding",
    "nonnegative",
    "one_each",
    "out_f32",
    "payloads_of_one_size",
    "positions",
    "positive",
    "raw_bytes",
    "readable_f32",
    "secret",
    "stream",
    "threads",
    "values",
    "values_in",
    "weight",
    "writable_f32",
]

if TYPE_CHECKING:
    from typing_extensions import Buffer

    Payload: TypeAlias = Buffer | NDArray[Any]
else:
    Payload = object
"""Anything that gives its bytes: bytes, memoryview, an array, a mapped file, a frame of a socket."""

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
MAX_POSITION: Final = 2**35
MAX_WEIGHT: Final = 2.0**32

_BYTE_FORMATS: Final = frozenset("Bbc")
_VALUE_FORMATS: Final[dict[str, frozenset[str]]] = {
    "f32": frozenset(("f", "<f")),
    "f16": frozenset(("e", "<e", "H", "<H")),
    "bf16": frozenset(("H", "<H")),
    "i8": frozenset(),
    "topk": frozenset(),
}


def _view(value: Payload) -> memoryview:
    return memoryview(value)  # type: ignore[arg-type]  # typeshed: an array is a Buffer from Python 3.12 on


def known_encoding(encoding: object) -> Encoding:
    """One of the encodings, by name."""
    if not isinstance(encoding, str):
        raise TypeError(f"encoding must be a str, not {type(encoding).__name__}")
    if not is_encoding(encoding):
        payload_size(encoding, 0)  # raises, with the list of names
        raise AssertionError(encoding)
    return encoding


def raw_bytes(name: str, value: Payload, encoding: Encoding) -> NDArray[np.uint8]:
    """The bytes of a buffer, in place, after a look at what kind of elements it holds."""
    try:
        view = _view(value)
    except TypeError:
        raise TypeError(f"{name} must be a bytes-like object, not {type(value).__name__}") from None
    if view.format not in _BYTE_FORMATS and view.format not in _VALUE_FORMATS[encoding]:
        raise TypeError(
            f"{name} must hold bytes or {encoding} values, not elements of format {view.format!r}"
        )
    if not view.c_contiguous:
        raise ValueError(f"{name} must be contiguous; this buffer has strides {view.strides}")
    if view.nbytes == 0:
        return np.empty(0, np.uint8)
    return np.frombuffer(view, np.uint8)


def encoded(name: str, value: Payload, encoding: Encoding, n: int | None = None) -> NDArray[np.uint8]:
    """The bytes of a payload of `n` values, or of any whole number of them."""
    data = raw_bytes(name, value, encoding)
    if encoding == "topk":
        values(topk.check(name, data), n, name, encoding)
    elif n is None:
        try:
            element_count(encoding, data.size)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    elif data.size != payload_size(encoding, n):
        expected = payload_size(encoding, n)
        raise ValueError(f"{name} must be {expected} bytes ({n} values as {encoding}), not {data.size}")
    return data


def values(n: int, expected: int | None, name: str, encoding: Encoding) -> None:
    """As many values as there should be, where that is known."""
    if expected is not None and n != expected:
        raise ValueError(f"{name} must be of {expected} values, as {encoding}, not of {n}")


def values_in(data: NDArray[np.uint8], encoding: Encoding) -> int:
    """How many values a payload that has been checked is of."""
    return topk.span_of(data) if encoding == "topk" else element_count(encoding, data.size)


def encodings(encoding: str | Sequence[str], k: int) -> list[Encoding]:
    """One encoding for all of `k` payloads, or one for each."""
    if isinstance(encoding, str):
        return [known_encoding(encoding)] * k
    names = [known_encoding(name) for name in encoding]
    if len(names) != k:
        raise ValueError(f"encoding must be one name or one per payload ({k}), not {len(names)}")
    return names


def payloads_of_one_size(
    payloads: Sequence[Payload], encoding: str | Sequence[str]
) -> tuple[list[tuple[NDArray[np.uint8], Encoding]], int]:
    """The bytes and encoding of each of one or more payloads, and how many values every one of them holds."""
    names = encodings(encoding, len(payloads))
    if not names:
        raise ValueError("payloads must hold at least one payload, not none")
    first = encoded("payloads[0]", payloads[0], names[0])
    n = values_in(first, names[0])
    rest = [encoded(f"payloads[{i}]", payloads[i], names[i], n) for i in range(1, len(names))]
    return list(zip([first, *rest], names, strict=True)), n


def readable_f32(name: str, value: object, n: int | None = None) -> NDArray[np.float32]:
    """A contiguous float32 array, flat; of `n` elements if that is given."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a numpy array of float32, not {type(value).__name__}")
    if value.dtype != np.float32:
        raise TypeError(f"{name} must be a numpy array of float32, not of {value.dtype}")
    if not value.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous; its strides are {value.strides}")
    if n is not None and value.size != n:
        raise ValueError(f"{name} must have {n} elements, not {value.size}")
    return value.reshape(-1)


def writable_f32(name: str, value: object, n: int | None = None) -> NDArray[np.float32]:
    """A contiguous float32 array that may be written to, flat; of `n` elements if that is given."""
    flat = readable_f32(name, value, n)
    if not flat.flags.writeable:
        raise ValueError(f"{name} must be writable; this array is read-only")
    return flat


def out_f32(out: object, n: int) -> NDArray[np.float32]:
    """The caller's array for `n` results, or a new one."""
    return np.empty(n, np.float32) if out is None else writable_f32("out", out, n)


def disjoint(**arrays: NDArray[np.float32]) -> None:
    """Contiguous arrays that share no memory: what is written into one would change another."""
    names = list(arrays)
    for i, later in enumerate(names):
        for earlier in names[:i]:
            if np.may_share_memory(arrays[later], arrays[earlier]):
                raise ValueError(f"{later} must not overlap {earlier}")


def disjoint_output(out: NDArray[np.float32], payloads: Sequence[tuple[NDArray[np.uint8], Encoding]]) -> None:
    """A result that shares no memory with the payloads that it is made of."""
    for i, (data, _) in enumerate(payloads):
        if np.may_share_memory(out, data):
            raise ValueError(f"out must not overlap payloads[{i}]")


def count(name: str, value: object, low: int, high: int) -> int:
    """An integer in [low, high]."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {number}")
    return number


def threads(value: int | None) -> None:
    """None, or how many threads may work: 1 to 1024."""
    if value is not None:
        count("threads", value, 1, 1024)


def _real(name: str, value: object) -> float:
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    return float(value)


def nonnegative(name: str, value: float) -> float:
    """A finite number, 0 or more."""
    number = _real(name, value)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{name} must be finite and 0 or more, not {number}")
    return number


def positive(name: str, value: float) -> float:
    """A finite number above 0."""
    number = _real(name, value)
    if not 0.0 < number < math.inf:
        raise ValueError(f"{name} must be finite and above 0, not {number}")
    return number


def fraction(name: str, value: float) -> float:
    """A number in [0, 1)."""
    number = _real(name, value)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name} must be at least 0 and below 1, not {number}")
    return number


def weight(name: str, value: float) -> float:
    """A weight of an update: finite, 0 or more, at most 2^32, so that sums of dyadic weights stay exact."""
    number = nonnegative(name, value)
    if number > MAX_WEIGHT:
        raise ValueError(f"{name} must be at most 2^32, not {number}")
    return number


def one_each(
    name: str, values: Sequence[float] | NDArray[np.floating], k: int, check: Callable[[str, float], float]
) -> list[float]:
    """One number for each of k payloads, every one checked."""
    if not isinstance(values, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a sequence, not {type(values).__name__}")
    if len(values) != k:
        raise ValueError(f"{name} must have one number per payload ({k}), not {len(values)}")
    return [check(f"{name}[{i}]", value) for i, value in enumerate(values)]


def secret(name: str, value: Payload, size: int) -> bytes:
    """A key or a nonce: so many bytes. The message does not repeat them."""
    try:
        data = bytes(_view(value))
    except TypeError:
        raise TypeError(f"{name} must be {size} bytes, not {type(value).__name__}") from None
    if len(data) != size:
        raise ValueError(f"{name} must be {size} bytes, not {len(data)}")
    return data


def stream(key: Payload, nonce: Payload) -> tuple[bytes, bytes]:
    """The name of a keyed stream."""
    return secret("key", key, KEY_BYTES), secret("nonce", nonce, NONCE_BYTES)


def positions(offset: int, n: int) -> int:
    """An offset into a keyed stream that holds `n` more positions from there on."""
    offset = count("offset", offset, 0, MAX_POSITION)
    if offset + n > MAX_POSITION:
        raise ValueError(f"offset + n must be at most 2^35, where the stream ends, not {offset + n}")
    return offset
