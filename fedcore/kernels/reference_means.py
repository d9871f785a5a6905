"""Weighted means of whole updates: the exact one, and two inexact ones to compare it with.

Rules
-----
- ``exact`` adds like `reference_sums.Accumulator`, with dyadic weights, and divides by their sum.
- The other modes add rows k in the order given, from +0; W = Σ weight_k, one after the other; c_k is 1 or the
  clipping factor of `reference_sums`. Their weights are not rounded.

  - ``f64``: (Σ float64(x_kj) · (weight_k · c_k)) / W in float64, then float32;
  - ``f32``: Σ x_kj · s_k in float32, s_k = float32((weight_k · c_k) / W).

- Where F has to be derived, B is the largest (weight_k · c_k) · norm_k; no value can be larger, since each of
  these products is monotone.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..codecs import Encoding
from . import reference_checks as checks
from .reference_codecs import decode_range
from .reference_norms import norm_of
from .reference_sums import Accumulator, clip_factor, dyadic, frac_bits_for

__all__ = ["weighted_mean"]

_TILE: Final = 32 * 1024

F32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def weighted_mean(
    payloads: Sequence[checks.Payload],
    weights: Sequence[float] | NDArray[np.floating],
    *,
    encoding: str | Sequence[str] = "f32",
    mode: str = "exact",
    frac_bits: int | None = None,
    max_norm: float | None = None,
    out: F32 | None = None,
    threads: int | None = None,
) -> F32:
    """Return Σ weight_k · update_k / Σ weight_k, as float32.

    Parameters
    ----------
    payloads : sequence of bytes-like
        One or more encoded updates of the same number of values.
    weights : sequence of float
        One for each, from 0 to 2^32, not all 0 (``exact`` rounds them to multiples of 2^-20).
    encoding : str or sequence of str
        One encoding for all, or one for each.
    mode : {"exact", "f64", "f32"}
        ``exact`` does not depend on the order of the payloads; the others do, by roundings.
    frac_bits : int, optional
        F of the exact sum. Without it `frac_bits_for` derives it from the norms, which reads the payloads
        twice.
    max_norm : float, optional
        Clip every update to this norm.
    out : ndarray of float32, n elements, optional
        Where to write the mean.
    threads : int, optional
        Accepted for the native twin; the bits do not depend on it.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above; in ``exact`` mode and with `max_norm` also if a payload holds a NaN or
        an infinity. `out` is then unchanged.

    Examples
    --------
    >>> weighted_mean([np.float32([1, 2]), np.float32([4, 8])], [2, 1])
    array([2., 4.], dtype=float32)
    """
    rows, n = checks.payloads_of_one_size(payloads, encoding)
    given = checks.one_each("weights", weights, len(rows), checks.weight)
    if mode not in ("exact", "f64", "f32"):
        raise ValueError(f"mode must be exact, f64 or f32, not {mode!r}")
    if max_norm is not None:
        max_norm = checks.positive("max_norm", max_norm)
    checks.threads(threads)
    result = checks.out_f32(out, n)
    checks.disjoint_output(result, rows)

    if mode == "exact":
        given = [dyadic(w) for w in given]
    total = _plain_sum(given)
    if not total > 0.0:
        raise ValueError(f"weights must not all be 0{' when rounded to 2^-20' if mode == 'exact' else ''}")
    norms = None
    if max_norm is not None or (mode == "exact" and frac_bits is None):
        norms = _finite_norms(rows)
    factors = [1.0] * len(rows)
    if norms is not None and max_norm is not None:
        factors = [clip_factor(norm, max_norm) for norm in norms]

    if mode == "exact":
        if frac_bits is None and norms is not None:
            bound = max(w * c * norm for w, c, norm in zip(given, factors, norms, strict=True))
            frac_bits = frac_bits_for(bound, len(rows))
        _exact_mean(rows, given, norms, max_norm, frac_bits, total, result)
    elif mode == "f64":
        scales = [w * c for w, c in zip(given, factors, strict=True)]
        _float_mean(rows, scales, total, np.float64, result)
    else:
        scales = [w * c / total for w, c in zip(given, factors, strict=True)]
        _float_mean(rows, scales, 1.0, np.float32, result)
    return result if out is None else out


def _plain_sum(values: Sequence[float]) -> float:
    """One after the other; the built-in sum of newer Pythons compensates its roundings."""
    total = 0.0
    for value in values:
        total += value
    return total


def _finite_norms(rows: Sequence[tuple[Bytes, Encoding]]) -> list[float]:
    norms = [norm_of(data, name) for data, name in rows]
    for i, norm in enumerate(norms):
        if not norm < math.inf:
            raise ValueError(f"payloads[{i}] must be finite; it holds a NaN or an infinity")
    return norms


def _exact_mean(
    rows: Sequence[tuple[Bytes, Encoding]],
    weights: Sequence[float],
    norms: Sequence[float] | None,
    max_norm: float | None,
    frac_bits: int | None,
    denominator: float,
    out: F32,
) -> None:
    sums = Accumulator(out.size, frac_bits=0 if frac_bits is None else frac_bits)
    for i, (data, name) in enumerate(rows):
        norm = None if norms is None else norms[i]
        try:
            sums.add(data, encoding=name, weight=weights[i], norm=norm, max_norm=max_norm)
        except ValueError as error:
            raise ValueError(f"payloads[{i}]: {error}") from None
    sums.mean(denominator, out)


def _float_mean(
    rows: Sequence[tuple[Bytes, Encoding]],
    scales: Sequence[float],
    divisor: float,
    kind: type[np.float64] | type[np.float32],
    out: F32,
) -> None:
    with np.errstate(all="ignore"):
        for start in range(0, out.size, _TILE):
            stop = min(start + _TILE, out.size)
            sums = np.zeros(stop - start, kind)
            for (data, name), scale in zip(rows, scales, strict=True):
                x = decode_range(data, name, start, stop).astype(kind)
                np.multiply(x, kind(scale), out=x)
                np.add(sums, x, out=sums)
            np.divide(sums, kind(divisor), out=sums)
            out[start:stop] = sums
