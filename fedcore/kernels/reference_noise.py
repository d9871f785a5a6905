"""Gaussian noise from a keyed stream, the same bits on every machine: the definition.

Rules
-----
- The stream is a function of (key, nonce, position) alone. Tiles, threads and where a call starts do not
  change it.
- Only + − × ÷ √ of float64, each rounded once, in the order written here, and integers. No fused
  multiply-add, and no ``log``, ``sin`` or ``cos`` of a library: those differ between versions and instruction
  sets.
- Two uses of one (key, nonce) share their noise, and its difference tells secrets: draw a key per use.

From words to normals
---------------------
Blocks of ChaCha20 are taken sixteen at a time, as `reference_chacha` says: W[i][b] is
word i of block b of group g. A group makes 128 normals at positions 128 g … 128 g + 127. For p = 0 … 3 and b
= 0 … 15 the pair (p, b) is made of

- ``r = W[4p][b] | W[4p+1][b] << 32``, 64 bits for the radius, and
- ``a = W[4p+2][b] | W[4p+3][b] << 32``, 64 bits for the angle,

by Box–Muller: position 128 g + 32 p + b gets ``radius(r) * x`` and position 128 g + 32 p + 16 + b gets
``radius(r) * y``, where (x, y) = `unit_vectors` (a) is uniform on the circle. The radius has 64 bits so that
the tail ends at 9.49 σ, where it holds a probability of 2e-21 (32 bits would end at 6.8 σ, and 24 bits at 5.9
σ, which a privacy proof does not forgive).

References
----------
.. [1] G. E. P. Box, M. E. Muller, "A note on the generation of random normal deviates", Ann. Math. Stat. 29,
   1958.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from . import reference_checks as checks
from .reference_chacha import GROUP_BLOCKS, blocks

__all__ = ["MAX_RADIUS", "add_gaussian_", "normals", "radius", "unit_vectors"]

F64 = NDArray[np.float64]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

MAX_RADIUS: Final = 9.5
"""No normal is larger than this: √(130 ln 2) = 9.4926…"""

GROUP_NORMALS: Final = 128

_TILE_GROUPS: Final = 256

# ln m = 2 s + s p(s²) with s = (m − 1) / (m + 1), for m in [√½, √2). Minimax, relative to ln m: 2^-59.5.
_LOG: Final = (
    0.6666666666666734,
    0.39999999999414676,
    0.2857142874238801,
    0.22222198573157687,
    0.18183564327008403,
    0.1531405053943999,
    0.14795949746796902,
)
_LN2_HIGH: Final = 0.6931471803691238  # its last 21 bits are zero, so that n · _LN2_HIGH is exact
_LN2_LOW: Final = 1.9082149292705877e-10
_SQRT_HALF_BITS: Final = 0x3FE6A09E667F3BCD
_EXPONENT_ONE: Final = 1 << 52
_SIGNIFICAND: Final = _EXPONENT_ONE - 1

# sin(t π/2) = t S(t²) and cos(t π/2) = 1 + t² C(t²), for t in [−½, ½]. Minimax, relative: 2^-58.1, 2^-64.5.
_SIN: Final = (
    1.5707963267948966,
    -0.6459640975062443,
    0.07969262624603957,
    -0.004681754132282415,
    0.00016044115029163048,
    -3.5986417543868745e-06,
    5.633721005314096e-08,
)
_COS: Final = (
    -1.2337005501361697,
    0.2536695079010468,
    -0.02086348076331257,
    0.0009192602741910677,
    -2.5202036788294498e-05,
    4.7106096695321593e-07,
    -6.32120209209315e-09,
)


def radius(r: U64) -> F64:
    """Return √(−2 ln u) for u = (r + ½) / 2^64, in steps that are part of the definition.

    1. d = float64(r) + 0.5, the conversion to nearest even; so u = d / 2^64 lies in [2^-65, 1].
    2. d = 2^k m with m in [√½, √2), by integers: t = bits(d) − bits(√½) + (64 << 52); k = (t >> 52) − 64;
       bits(m) = (t & (2^52 − 1)) + bits(√½). And n = 64 − k, so that −ln u = n ln 2 − ln m.
    3. f = m − 1; s = f / (2 + f); z = s s; p = z (L0 + z (L1 + … + z L6)); ln m = (s + s) + s p.
    4. e = n LN2_HIGH + (n LN2_LOW − ln m); the radius is √(e + e).
    """
    d = r.astype(np.float64) + 0.5
    t = d.view(np.uint64) - np.uint64(_SQRT_HALF_BITS) + np.uint64(64 * _EXPONENT_ONE)
    n = 128.0 - (t >> np.uint64(52)).astype(np.float64)
    m = ((t & np.uint64(_SIGNIFICAND)) + np.uint64(_SQRT_HALF_BITS)).view(np.float64)
    f = m - 1.0
    s = f / (2.0 + f)
    z = s * s
    p = z * _horner(_LOG, z)
    log_m = (s + s) + s * p
    e = n * _LN2_HIGH + (n * _LN2_LOW - log_m)
    return np.sqrt(e + e)


def unit_vectors(a: U64) -> tuple[F64, F64]:
    """Return (x, y), uniform on the unit circle, in steps that are part of the definition.

    1. Bits 10 … 61 of `a` are the significand of v in [1, 2); t = v − 1.5, exact, lies in [−½, ½).
    2. z = t t; y = t (S0 + z (S1 + … + z S6)), the sine of t π/2; x = 1 + z (C0 + z (C1 + … + z C6)), its
       cosine: a uniform point of the arc of ±45° around (1, 0).
    3. If bit 62 is set, x is negated; then, if bit 63 is set, x and y are exchanged: one of four such arcs,
       which together make the circle.
    """
    fraction = (a >> np.uint64(10)) & np.uint64(_SIGNIFICAND)
    t = (fraction | np.uint64(1023 * _EXPONENT_ONE)).view(np.float64) - 1.5
    z = t * t
    sine = t * _horner(_SIN, z)
    cosine = 1.0 + z * _horner(_COS, z)
    sign = (a & np.uint64(1 << 62)) << np.uint64(1)
    cosine = (cosine.view(np.uint64) ^ sign).view(np.float64)
    exchanged = a >= np.uint64(1 << 63)
    return np.where(exchanged, sine, cosine), np.where(exchanged, cosine, sine)


def _horner(coefficients: tuple[float, ...], z: F64) -> F64:
    """c0 + z (c1 + z (c2 + …)), from the inside: one product, one sum, both rounded, at each step."""
    value = z * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        value += c
        value *= z
    value += coefficients[0]
    return value


def normals(key: bytes, nonce: bytes, start: int, stop: int) -> Iterator[tuple[int, F64]]:
    """Yield (position, normals from there on), tile after tile, for positions [start, stop) of the stream."""
    end = -(-stop // GROUP_NORMALS)
    for first in range(start // GROUP_NORMALS, end, _TILE_GROUPS):
        last = min(first + _TILE_GROUPS, end)
        tile = _groups(key, nonce, first, last - first)
        low, high = max(start, first * GROUP_NORMALS), min(stop, last * GROUP_NORMALS)
        yield low, tile[low - first * GROUP_NORMALS : high - first * GROUP_NORMALS]


def _groups(key: bytes, nonce: bytes, first: int, count: int) -> F64:
    """All normals of `count` groups."""
    made = blocks(key, nonce, first * GROUP_BLOCKS, count * GROUP_BLOCKS)
    tile = np.empty((count, 4, 2, GROUP_BLOCKS))
    for p in range(4):
        r = radius(_joined(made[4 * p], made[4 * p + 1]))
        x, y = unit_vectors(_joined(made[4 * p + 2], made[4 * p + 3]))
        tile[:, p, 0] = (r * x).reshape(count, GROUP_BLOCKS)
        tile[:, p, 1] = (r * y).reshape(count, GROUP_BLOCKS)
    return tile.reshape(-1)


def _joined(low: U32, high: U32) -> U64:
    joined = high.astype(np.uint64)
    joined <<= np.uint64(32)
    joined |= low
    return joined


def add_gaussian_(
    x: NDArray[np.float32],
    sigma: float,
    *,
    key: bytes,
    nonce: bytes,
    offset: int = 0,
    threads: int | None = None,
) -> None:
    """Add Gaussian noise to `x`, in place: x_j = float32(float64(x_j) + sigma · normal(offset + j)).

    Parameters
    ----------
    x : ndarray of float32, any shape, C-contiguous and writable
        What gets noise; elements count in memory order.
    sigma : float
        Standard deviation of the noise, 0 or more.
    key, nonce : bytes of 32 and 12
        Which stream. Never use one pair twice for different data.
    offset : int
        The position of x_0 in the stream; ``offset + x.size`` may reach 2^35.
    threads : int, optional
        Accepted for the native twin, which uses so many; the bits do not depend on it.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. `x` is then unchanged.
    """
    flat = checks.writable_f32("x", x)
    sigma = checks.nonnegative("sigma", sigma)
    key, nonce = checks.stream(key, nonce)
    offset = checks.positions(offset, flat.size)
    checks.threads(threads)
    with np.errstate(all="ignore"):
        for position, tile in normals(key, nonce, offset, offset + flat.size):
            part = flat[position - offset : position - offset + tile.size]
            tile *= sigma
            tile += part
            part[...] = tile
