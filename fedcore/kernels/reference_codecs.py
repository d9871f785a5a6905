"""Writing and reading encoded values, the same bits on every machine: the definition.

Rules
-----
- ``f32`` is the value itself, bit for bit.
- ``f16`` and ``bf16`` round to nearest, ties to even; what is too large becomes an infinity, what is too
  small a subnormal or a zero of the same sign. Every NaN is written as 0x7e00 (f16) or 0x7fc0 (bf16).
- ``i8`` takes blocks of 1024 values. With a the largest |x_j| of a block, its scale is the smallest float32
  that is at least a / 127, but no more than the largest of which 127 are still finite. A value is written as
  q_j = floor(v + u_j) with v = float64(x_j) / float64(scale), kept within ±127, and u_j = (w_j + ½) / 2^32,
  where w_j is word j of the keyed stream (`reference_chacha.words`): q_j is v rounded up with the probability
  of its fraction, so its expectation is v (within 2^-33). A block of zeros has scale 0 and zeros.
- An ``i8`` block that holds a NaN or an infinity has the scale 0x7fc00000, a NaN, and zeros: it is read as
  NaNs, so that whoever checks an update for finiteness finds it.
- ``topk`` is written in `reference_topk`: all values that are not zero, as ``f16``.
- Reading ``i8`` is one float32 product, scale · q_j. All kernels see a value as the float32 that `decode`
  gives. A NaN is read as a NaN; which one is not promised.
"""

import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..codecs import BLOCK_I8, SCALE_BYTES, Encoding, payload_size
from . import reference_checks as checks
from . import reference_topk as topk
from .reference_chacha import words

__all__ = ["decode", "decode_range", "encode"]

_LEVELS: Final = 127
_MAX_SCALE: Final = np.float32(float.fromhex("0x1.020406p+121"))  # 127 times the next one overflows
_NAN_F16: Final = np.uint16(0x7E00)
_NAN_BF16: Final = np.uint16(0x7FC0)
_NAN_F32: Final = np.uint32(0x7FC00000)
_BLOCK_BYTES: Final = BLOCK_I8 + SCALE_BYTES
_NO_NONCE: Final = bytes(12)
_TILE: Final = 64 * BLOCK_I8

F32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def encode(
    x: F32, encoding: str, *, key: checks.Payload | None = None, nonce: checks.Payload | None = None
) -> bytes:
    """Return the payload of `x` in an encoding.

    Parameters
    ----------
    x : ndarray of float32, any shape, C-contiguous
        The values, in memory order.
    encoding : str
        One of `fedmq.fedcore.codecs.ENCODINGS`.
    key, nonce : bytes of 32 and 12, optional
        The stream by which ``i8`` rounds; the other encodings draw nothing. Without a key it comes from the
        operating system, without a nonce it is twelve zero bytes.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.
    """
    name = checks.known_encoding(encoding)
    flat = checks.readable_f32("x", x)
    stream = checks.stream(os.urandom(32) if key is None else key, _NO_NONCE if nonce is None else nonce)
    with np.errstate(all="ignore"):
        match name:
            case "f32":
                return flat.astype("<f4", copy=False).tobytes()
            case "f16":
                half = flat.astype("<f2").view("<u2")
                half[np.isnan(flat)] = _NAN_F16
                return half.tobytes()
            case "bf16":
                return _encode_bf16(flat).tobytes()
            case "i8":
                return _encode_i8(flat, *stream).tobytes()
            case "topk":
                return topk.encode(flat)


def _encode_bf16(flat: F32) -> NDArray[np.uint16]:
    """Add half of the last place that stays, less one where that place is even; then cut."""
    bits = flat.view(np.uint32)
    rounded = bits >> np.uint32(16)
    odd = rounded & np.uint32(1)
    odd += np.uint32(0x7FFF)
    odd += bits
    np.right_shift(odd, np.uint32(16), out=rounded)
    upper = rounded.astype("<u2")
    upper[np.isnan(flat)] = _NAN_BF16
    return upper


def _encode_i8(flat: F32, key: bytes, nonce: bytes) -> Bytes:
    payload = np.empty(payload_size("i8", flat.size), np.uint8)
    for start in range(0, flat.size, _TILE):
        stop = min(start + _TILE, flat.size)
        x = np.zeros((-(-(stop - start) // BLOCK_I8), BLOCK_I8), np.float32)
        x.reshape(-1)[: stop - start] = flat[start:stop]
        scales, q = _quantise(x, words(key, nonce, start, start + x.size).reshape(x.shape))
        made = np.empty((len(x), _BLOCK_BYTES), np.uint8)
        made[:, :SCALE_BYTES] = scales.astype("<f4").view(np.uint8).reshape(-1, SCALE_BYTES)
        made[:, SCALE_BYTES:] = q.view(np.uint8)
        first, last = payload_size("i8", start), payload_size("i8", stop)
        payload[first:last] = made.reshape(-1)[: last - first]
    return payload


def _quantise(x: F32, drawn: NDArray[np.uint32]) -> tuple[F32, NDArray[np.int8]]:
    """Scales, and rounded values, of blocks (one per row)."""
    largest = np.abs(np.maximum(x.max(axis=1), -x.min(axis=1)))  # a NaN wins either; −0 is a zero
    finite = np.isfinite(largest)
    a: F32 = np.where(finite, largest, np.float32(0)).astype(np.float32)
    scales: F32 = np.divide(a, np.float32(_LEVELS), dtype=np.float32)
    too_small = scales.astype(np.float64) * _LEVELS < a.astype(np.float64)
    scales[too_small] = np.nextafter(scales[too_small], np.float32(np.inf))
    np.minimum(scales, _MAX_SCALE, out=scales)

    divisor = np.where(scales > 0, scales, np.float32(1)).astype(np.float64)
    v = np.where(finite[:, None], x, np.float32(0)).astype(np.float64)
    v /= divisor[:, None]
    np.clip(v, -float(_LEVELS), float(_LEVELS), out=v)
    u = drawn.astype(np.float64)
    u += 0.5
    u *= 2.0**-32
    v += u
    np.floor(v, out=v)
    scales[~finite] = _NAN_F32.view(np.float32)
    return scales, v.astype(np.int8)


def decode(payload: checks.Payload, encoding: str, n: int) -> F32:
    """Return the `n` values of a payload, as a new float32 array.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind, or the payload does not have the size of `n` values.
    """
    name = checks.known_encoding(encoding)
    n = checks.count("n", n, 0, 2**62)
    return decode_range(checks.encoded("payload", payload, name, n), name, 0, n).copy()


def decode_range(data: Bytes, encoding: Encoding, start: int, stop: int) -> F32:
    """Values [start, stop) of a payload that has been checked; `start` is a multiple of 1024.

    The result may be a view of the payload, and unaligned.
    """
    match encoding:
        case "f32":
            return data[4 * start : 4 * stop].view("<f4")
        case "f16":
            return _quietly(data[2 * start : 2 * stop].view("<f2"))
        case "bf16":
            bits = data[2 * start : 2 * stop].view("<u2").astype(np.uint32)
            bits <<= np.uint32(16)
            return bits.view(np.float32)
        case "i8":
            return _decode_i8(data, start, stop)
        case "topk":
            return topk.decode_range(data, start, stop)


def _quietly(half: NDArray[np.float16]) -> F32:
    with np.errstate(all="ignore"):
        return half.astype(np.float32)


def _decode_i8(data: Bytes, start: int, stop: int) -> F32:
    x = np.empty(stop - start, np.float32)
    whole = (stop - start) // BLOCK_I8 * BLOCK_I8
    first = payload_size("i8", start)
    blocks = data[first : first + payload_size("i8", whole)].reshape(-1, _BLOCK_BYTES)
    last = data[first + blocks.size :]
    with np.errstate(all="ignore"):
        if whole:
            scales = np.ascontiguousarray(blocks[:, :SCALE_BYTES]).view("<f4")
            np.multiply(scales, blocks[:, SCALE_BYTES:].view(np.int8), out=x[:whole].reshape(-1, BLOCK_I8))
        if stop - start > whole:
            scale = last[:SCALE_BYTES].copy().view("<f4")
            q = last[SCALE_BYTES : SCALE_BYTES + stop - start - whole].view(np.int8)
            np.multiply(scale, q, out=x[whole:])
    return x
