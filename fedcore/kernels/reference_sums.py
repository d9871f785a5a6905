"""Weighted sums of updates, exact and independent of their order: the definition.

Fixed point
-----------
Integers commute, floats do not. An update's element x_j (as `decode` gives it) is added as the int64

    q_j = rint(x_j · s)    (ties to even), or    q_j = trunc(x_j · s)    where `truncate` is set,

one float64 product with the *scale* s of the whole update, made once from float64 numbers, each step rounded
once:

1. The weight is made dyadic: w = rint(weight · 2^20) / 2^20. So sums of weights are exact, too (up to 2^33).
2. Only where `max_norm` is set: norm' = norm, or norm · (1 + 2^-32) where `truncate` is set; and if norm' >
   max_norm, then w = w · (max_norm / norm').
3. s = w · 2^F, which is exact (F is `frac_bits`) unless it is subnormal.

`truncate` is for privacy: with the surplus of 2^-32, far above the rounding of a norm (below 2^-33 up to 2^34
elements), an integer update cannot be longer than weight · max_norm · 2^F, not even by one rounding.

Ranges
------
- |x_j · s| < 2^51, or `ValueError`: adding 1.5 · 2^52 then rounds and converts. NaN and infinity fail the
  same test.
- The sum of the largest |q_j| of everything added (and ⌈9.5 σ 2^F⌉ for noise) stays below 2^63, or
  `ValueError`; no total can then overflow. `frac_bits_for` chooses F so that neither happens.
- What raises has added nothing.
- Updates that are added together (`add_all`) make room for 2^b each where every x_j · s, rounded, is in [−2^b, 2^b);
  b is at least 1 and at most 50, and the smallest for which all norms · s are below 2^b. So a kernel need not look at
  the values before it adds them. Where that does not hold, or there is no such room, they are added one by one.

Noise and mean
--------------
- Noise is q_j = rint(z_j · (σ · 2^F)), z_j the normal at position offset + j of the stream
  (`reference_noise`); it is added, or subtracted.
- mean_j = float32(float64(total_j) / (denominator · 2^F)): int64 to float64 and float64 to float32 to nearest
  even.
- −0 is not kept: an integer has none.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..codecs import Encoding
from . import reference_checks as checks
from .reference_codecs import decode_range
from .reference_noise import MAX_RADIUS, normals
from .reference_norms import norm_of

__all__ = ["Accumulator", "clip_factor", "dyadic", "frac_bits_for"]

MAX_FRAC_BITS: Final = 100
MIN_FRAC_BITS: Final = -200
OFFSET_STEP: Final = 1024

_VALUE_BITS: Final = 51
_CHECKED_BITS: Final = 50
_SUM_BITS: Final = 62
_WEIGHT_STEPS: Final = 2.0**20
_SURPLUS: Final = 1.0 + 2.0**-32
_INT64: Final = 2**63
_TILE: Final = 32 * 1024

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]


def frac_bits_for(bound: float, k: int, sigma: float = 0.0) -> int:
    """Return F, how many fractional bits a sum of updates is kept with.

    The largest F ≤ 100 with B · 2^F < 2^51 and (K · B + 9.5 σ) · 2^F < 2^62; 0 if B = σ = 0.

    Parameters
    ----------
    bound : float
        B, at least the largest weight · ‖update‖, finite.
    k : int
        K, how many updates are added at most.
    sigma : float
        Standard deviation of the noise, in the units of the updates.

    Raises
    ------
    TypeError, ValueError
        If an argument is negative, not finite, or of the wrong kind, or so large that F would be below −200.

    Examples
    --------
    >>> frac_bits_for(1.0, 10), frac_bits_for(1e6, 10)
    (50, 31)
    """
    bound = checks.nonnegative("bound", bound)
    k = checks.count("k", k, 0, 2**31)
    sigma = checks.nonnegative("sigma", sigma)
    if bound == 0.0 and sigma == 0.0:
        return 0
    # frexp(a) = (m, e) with a = m 2^e and ½ ≤ m < 1, so a 2^F < 2^b just when e + F ≤ b.
    room = [MAX_FRAC_BITS]
    if bound > 0.0:
        room.append(_VALUE_BITS - math.frexp(bound)[1])
    total = k * bound + MAX_RADIUS * sigma
    if not total < math.inf:
        raise ValueError(f"k * bound + 9.5 * sigma must be finite, not {k} * {bound} + 9.5 * {sigma}")
    if total > 0.0:
        room.append(_SUM_BITS - math.frexp(total)[1])
    if min(room) < MIN_FRAC_BITS:
        raise ValueError(f"bound {bound} or sigma {sigma} is too large for a sum in 63 bits")
    return min(room)


def dyadic(weight: float) -> float:
    """Return the weight that sums use: rounded to a multiple of 2^-20, ties to even.

    Raises
    ------
    TypeError, ValueError
        If the weight is no number, negative, not finite or above 2^32.
    """
    # round() of a float is rint: to nearest even, and exact.
    return round(checks.weight("weight", weight) * _WEIGHT_STEPS) / _WEIGHT_STEPS


def clip_factor(norm: float, max_norm: float, truncate: bool = False) -> float:
    """Return c ≤ 1, by which an update is multiplied so that its norm is at most `max_norm`."""
    if truncate:
        norm *= _SURPLUS
    return max_norm / norm if norm > max_norm else 1.0


class Accumulator:
    """The exact, order-independent weighted sum of encoded updates.

    Parameters
    ----------
    n : int
        How many values each update holds.
    frac_bits : int
        F, from −200 to 100: sums are kept in units of 2^-F. See `frac_bits_for`.
    offset : int
        The position of element 0 in the model, a multiple of 1024: where its noise starts in the stream. A
        tile of a larger sum gets the noise of just that part of the whole.
    threads : int, optional
        Accepted for the native twin; the bits do not depend on it.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.

    Examples
    --------
    >>> total = Accumulator(2, frac_bits=40)
    >>> total.add(np.array([1, 2], np.float32))
    >>> total.add(np.array([4, 5], np.float32), weight=0.5)
    >>> total.mean(1.5)
    array([2., 3.], dtype=float32)
    """

    def __init__(self, n: int, *, frac_bits: int, offset: int = 0, threads: int | None = None) -> None:
        self._n = checks.count("n", n, 0, 2**62)
        self._frac_bits = checks.count("frac_bits", frac_bits, MIN_FRAC_BITS, MAX_FRAC_BITS)
        self._unit = math.ldexp(1.0, self._frac_bits)
        self._offset = _checked_offset(offset)
        checks.threads(threads)
        self._totals: I64 = np.zeros(self._n, np.int64)
        self._reach = 0  # no total is farther from zero than this

    def add(
        self,
        payload: checks.Payload,
        *,
        encoding: str = "f32",
        weight: float = 1.0,
        norm: float | None = None,
        max_norm: float | None = None,
        truncate: bool = False,
    ) -> float | None:
        """Add weight · update.

        Parameters
        ----------
        payload : bytes-like
            The encoded update: `n` values.
        encoding : str
            Its encoding.
        weight : float
            Its weight, from 0 to 2^32, rounded to a multiple of 2^-20.
        norm : float, optional
            The norm of the *whole* update, where this is a tile of it. Only used together with `max_norm`.
        max_norm : float, optional
            Clip: scale the update so that its norm is at most this.
        truncate : bool
            Round toward zero, so that rounding cannot make an update longer than `max_norm`.

        Returns
        -------
        float or None
            The norm of the payload if it had to be computed, with `max_norm` set and no `norm` given.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as above, the payload holds a NaN or an infinity, or a value or the sum
            would leave its range. Nothing is then added.
        """
        name = checks.known_encoding(encoding)
        data = checks.encoded("payload", payload, name, self._n)
        scale = dyadic(weight)
        given = None if norm is None else checks.nonnegative("norm", norm)
        computed = None
        if max_norm is not None:
            max_norm = checks.positive("max_norm", max_norm)
            if given is None:
                given = computed = norm_of(data, name)
                if not given < math.inf:
                    raise ValueError("payload must be finite to be clipped; it holds a NaN or an infinity")
            scale *= clip_factor(given, max_norm, truncate)
        scale *= self._unit
        self._admit(data, name, scale, truncate)
        self._fold(data, name, scale, truncate)
        return computed

    def add_all(
        self,
        payloads: Sequence[checks.Payload],
        weights: Sequence[float],
        norms: Sequence[float],
        *,
        encoding: str | Sequence[str] = "f32",
        max_norm: float | None = None,
        truncate: bool = False,
    ) -> None:
        """Add Σ weight_k · update_k, all of it or nothing.

        The sum is what `add` makes of them, one after the other. The native twin reads each payload once, where `add`
        reads it twice, and moves the sum through memory once for all of them.

        Parameters
        ----------
        payloads : sequence of bytes-like
            One or more encoded updates of `n` values each. Nothing is kept of them.
        weights : sequence of float
            One for each, from 0 to 2^32, rounded to a multiple of 2^-20.
        norms : sequence of float
            The norm of each *whole* update, where these are tiles of them. Where `max_norm` is set, they are what
            is clipped by; and they tell how large values may be. Values that are larger are found out.
        encoding : str or sequence of str
            One encoding for all, or one for each.
        max_norm : float, optional
            Clip: scale each update so that its norm is at most this.
        truncate : bool
            Round toward zero, so that rounding cannot make an update longer than `max_norm`.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as above, a payload holds a NaN or an infinity, or a value or the sum would leave
            its range. Nothing is then added.

        Examples
        --------
        >>> total = Accumulator(2, frac_bits=40)
        >>> total.add_all([np.float32([3, 4]), np.float32([6, 8])], [1, 0.5], [5, 10])
        >>> total.mean(1.5)
        array([4.       , 5.3333335], dtype=float32)
        """
        names = checks.encodings(encoding, len(payloads))
        if not names:
            raise ValueError("payloads must hold at least one payload, not none")
        data = [checks.encoded(f"payloads[{i}]", payloads[i], names[i], self._n) for i in range(len(names))]
        factors = [dyadic(w) for w in checks.one_each("weights", weights, len(data), checks.weight)]
        given = checks.one_each("norms", norms, len(data), checks.nonnegative)
        if max_norm is not None:
            max_norm = checks.positive("max_norm", max_norm)
            factors = [w * clip_factor(g, max_norm, truncate) for w, g in zip(factors, given, strict=True)]
        scales = [w * self._unit for w in factors]
        rows = list(zip(data, names, scales, strict=True))
        bound = max(g * s for g, s in zip(given, scales, strict=True))
        bits = max(math.frexp(bound)[1], 1) if bound < 2.0**_CHECKED_BITS else _CHECKED_BITS
        room = len(rows) << bits
        if self._reach + room < _INT64 and all(_is_within(bits, *row, self._n, truncate) for row in rows):
            self._reach += room
        else:
            self._admit_all(rows, truncate)
        for row in rows:
            self._fold(*row, truncate)

    def _admit_all(self, rows: Sequence[tuple[Bytes, Encoding, float]], truncate: bool) -> None:
        before = self._reach
        for i, row in enumerate(rows):
            try:
                self._admit(*row, truncate)
            except ValueError as error:
                self._reach = before
                raise ValueError(f"payloads[{i}]: {error}") from None

    def _admit(self, data: Bytes, encoding: Encoding, scale: float, truncate: bool) -> None:
        """Check an update's values and make room for them."""
        low, high = _extremes(data, encoding, self._n)
        largest = (high if high > -low else -low) * scale
        if not largest < 2.0**_VALUE_BITS:
            raise ValueError(
                f"payload must be finite and weight * value * 2^{self._frac_bits} below 2^{_VALUE_BITS}, "
                f"frac_bits being {self._frac_bits}; the largest is {largest}"
            )
        self._extend(math.trunc(largest) if truncate else round(largest), "payload")

    def _fold(self, data: Bytes, encoding: Encoding, scale: float, truncate: bool) -> None:
        integral = np.trunc if truncate else np.rint
        for start in range(0, self._n, _TILE):
            stop = min(start + _TILE, self._n)
            v = decode_range(data, encoding, start, stop).astype(np.float64)
            v *= scale
            integral(v, out=v)
            self._totals[start:stop] += v.astype(np.int64)

    def _extend(self, by: int, what: str) -> None:
        """Make room for integers up to `by` in size."""
        if self._reach + by >= _INT64:
            raise ValueError(
                f"{what} must not let the sum leave 63 bits; with frac_bits {self._frac_bits} it could, "
                "so use fewer (frac_bits_for)"
            )
        self._reach += by

    def add_noise(self, sigma: float, *, key: checks.Payload, nonce: checks.Payload) -> None:
        """Add rounded Gaussian noise to the sum.

        Parameters
        ----------
        sigma : float
            Standard deviation, 0 or more, in the units of the updates.
        key, nonce : bytes of 32 and 12
            Which stream; this sum takes its positions from `offset` on.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as above, or the noise could make the sum leave its range. The sum is then
            unchanged.
        """
        self._noise(checks.nonnegative("sigma", sigma), key, nonce)

    def subtract_noise(self, sigma: float, *, key: checks.Payload, nonce: checks.Payload) -> None:
        """Take away what `add_noise` with the same arguments adds, to the bit: −rint(x) is rint(−x).

        Parameters
        ----------
        sigma : float
            Standard deviation, 0 or more, in the units of the updates.
        key, nonce : bytes of 32 and 12
            Which stream; this sum takes its positions from `offset` on.

        Raises
        ------
        TypeError, ValueError
            As `add_noise`. The sum is then unchanged.
        """
        self._noise(-checks.nonnegative("sigma", sigma), key, nonce)

    def _noise(self, sigma: float, key: checks.Payload, nonce: checks.Payload) -> None:
        scale = sigma * self._unit
        key, nonce = checks.stream(key, nonce)
        checks.positions(self._offset, self._n)
        if not abs(scale) < 2.0**_SUM_BITS:
            raise ValueError(f"sigma must be below 2^({_SUM_BITS} - frac_bits), not {abs(sigma)}")
        self._extend(math.ceil(MAX_RADIUS * abs(scale)), "sigma")
        for position, v in normals(key, nonce, self._offset, self._offset + self._n):
            v *= scale
            np.rint(v, out=v)
            start = position - self._offset
            self._totals[start : start + v.size] += v.astype(np.int64)

    def mean(self, denominator: float, out: F32 | None = None) -> F32:
        """Return the sum divided by `denominator`, as float32.

        Parameters
        ----------
        denominator : float
            Finite and above 0. The sum of the dyadic weights makes it the weighted mean.
        out : ndarray of float32, n elements, optional
            Where to write it.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as above. `out` is then unchanged.
        """
        divisor = checks.positive("denominator", denominator) * self._unit
        if not 0.0 < divisor < math.inf:
            raise ValueError(f"denominator must leave denominator * 2^frac_bits finite, not {denominator}")
        result = checks.out_f32(out, self._n)
        with np.errstate(all="ignore"):
            for start in range(0, self._n, _TILE):
                v = self._totals[start : start + _TILE].astype(np.float64)
                v /= divisor
                result[start : start + _TILE] = v
        return result if out is None else out

    def merge(self, other: "Accumulator") -> None:
        """Add what another accumulator of the same `n`, `frac_bits` and `offset` holds.

        Raises
        ------
        TypeError, ValueError
            If it is another kind of sum, or the sum of both could leave its range. Nothing is then added.
        """
        if not isinstance(other, Accumulator):
            raise TypeError(f"other must be an Accumulator of this backend, not {type(other).__name__}")
        mine = (self._n, self._frac_bits, self._offset)
        its = (other._n, other._frac_bits, other._offset)
        if mine != its:
            raise ValueError(f"other must have (n, frac_bits, offset) = {mine}, not {its}")
        self._extend(other._reach, "other")
        self._totals += other._totals

    def reset(self, offset: int = 0) -> None:
        """Make the sum zero again, and that of another tile, which starts at `offset`.

        Raises
        ------
        TypeError, ValueError
            If that is no multiple of 1024. The sum is then unchanged.
        """
        self._offset = _checked_offset(offset)
        self._totals[:] = 0
        self._reach = 0

    def totals(self) -> I64:
        """Return a copy of the sum, int64[n], in units of 2^-frac_bits."""
        return self._totals.copy()


def _checked_offset(offset: int) -> int:
    checks.count("offset", offset, 0, 2**62)
    if offset % OFFSET_STEP:
        raise ValueError(f"offset must be a multiple of {OFFSET_STEP}, not {offset}")
    return offset


def _extremes(data: Bytes, encoding: Encoding, n: int) -> tuple[float, float]:
    """The smallest and the largest value, or 0; NaN if there is a NaN."""
    low = high = np.float32(0)
    for start in range(0, n, _TILE):
        x = decode_range(data, encoding, start, min(start + _TILE, n))
        low, high = np.minimum(low, x.min()), np.maximum(high, x.max())
    return float(low), float(high)


def _is_within(bits: int, data: Bytes, encoding: Encoding, scale: float, n: int, truncate: bool) -> bool:
    """Whether all integers of an update are in [−2^bits, 2^bits).

    As it is seen by the addition that rounds them: 2^52 + 2^bits moves what is in range to [2^52, 2^52 + 2^(bits + 1)).
    """
    low, high = (x * scale for x in _extremes(data, encoding, n))
    if truncate:
        low, high = float(np.trunc(low)), float(np.trunc(high))
    offset = 2.0**52 + 2.0**bits
    return low + offset >= 2.0**52 and high + offset < 2.0**52 + 2.0 ** (bits + 1)
