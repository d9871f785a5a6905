"""Features that no data chose: the scattering transform of an image, in numpy.

A linear model on them is as good as a small network on pixels, and its gradients have few directions that matter, so
that the noise of differential privacy hurts it little (Tramèr & Boneh, arXiv:2011.11660).

    S₀ = x ∗ φ        S₁ = |x ∗ ψ₁| ∗ φ        S₂ = ||x ∗ ψ₁| ∗ ψ₂| ∗ φ

φ is a Gaussian, ψ are Morlet wavelets of J = 2 octaves and L = 8 directions; S₂ takes the pairs whose second wavelet
is the coarser one. So 1 + 16 + 64 = 81 channels, each a mean over a neighbourhood of every fourth pixel: 7 × 7.

Rules that hold here:

* The filters depend on nothing but J and L. No statistic of the data enters: it would have to be paid for.
* Images of 28 × 28 are reflected at their edges to 32 × 32, so that the periodic convolutions of an FFT wrap around
  into what looks like the picture, and the 7 × 7 places lie symmetrically in it.
* float32 throughout: one image gives the same features alone and in a batch.

References
----------
Bruna & Mallat, *Invariant Scattering Convolution Networks*, arXiv:1203.1513. Oyallon & Mallat, *Deep
Roto-Translation Scattering*, arXiv:1412.8659.
"""

import functools
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["CHANNELS", "PLACES", "SIDE", "scattering"]

SIDE: Final = 28
"""Pixels, each way."""
PLACES: Final = 7
"""Places at which there are features, each way."""
OCTAVES: Final = 2
DIRECTIONS: Final = 8
CHANNELS: Final = 1 + OCTAVES * DIRECTIONS + DIRECTIONS**2

_PADDED: Final = 32
_EDGE: Final = (_PADDED - SIDE) // 2
_STRIDE: Final = 2**OCTAVES
_WIDTH: Final = 0.8  # of a wavelet of the first octave, in pixels
_FREQUENCY: Final = 0.75 * np.pi  # its centre
_SLANT: Final = 4 / DIRECTIONS  # its width along the waves over that across them
_BATCH: Final = 64  # images at a time: what is between the transforms stays in the processor's cache

Images = NDArray[np.float32]


class _Filters(msgspec.Struct, frozen=True):
    """In the frequency domain: [direction, 32, 32] for each octave; and the means over neighbourhoods as matrices."""

    fine: NDArray[np.float32]
    coarse: NDArray[np.float32]
    places: NDArray[np.float32]
    """[7, 32]: φ at every fourth pixel; a Gaussian in two dimensions is one in each."""
    half_places: NDArray[np.float32]
    """[7, 16]: the same for pictures of half the size."""


def scattering(images: Images) -> Images:
    """The features of images.

    Parameters
    ----------
    images : float32[n, 784] or float32[n, 28, 28]

    Returns
    -------
    float32[n, 81, 7, 7]
        Channel 0 is S₀, channels 1 … 16 are S₁ by octave and direction, then S₂ by first and second direction.
    """
    images = np.asarray(images, np.float32).reshape(-1, SIDE, SIDE)
    out = np.empty((len(images), CHANNELS, PLACES, PLACES), np.float32)
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        _transform(np.pad(part, ((0, 0), (_EDGE, _EDGE), (_EDGE, _EDGE)), mode="reflect"), out[start:])
    return out


def _transform(x: Images, out: Images) -> None:
    filters = _filters()
    out = out[: len(x)]
    spectrum = np.fft.fft2(x)
    out[:, 0] = _means(x, filters.places)
    fine = np.abs(np.fft.ifft2(spectrum[:, None] * filters.fine))
    out[:, 1 : 1 + DIRECTIONS] = _means(fine, filters.places)
    coarse = np.abs(np.fft.ifft2(_halved(spectrum[:, None] * filters.coarse)))
    out[:, 1 + DIRECTIONS : 1 + 2 * DIRECTIONS] = _means(coarse, filters.half_places)
    of_fine = np.fft.fft2(fine)
    for first in range(DIRECTIONS):
        second = np.abs(np.fft.ifft2(_halved(of_fine[:, first, None] * filters.coarse)))
        at = 1 + (OCTAVES + first) * DIRECTIONS
        out[:, at : at + DIRECTIONS] = _means(second, filters.half_places)


def _means(pictures: NDArray[Any], places: NDArray[np.float32]) -> NDArray[Any]:
    means: NDArray[Any] = places @ pictures @ places.T
    return means


def _halved(spectrum: NDArray[Any]) -> NDArray[Any]:
    """The spectrum of every second pixel: frequencies that become the same are added."""
    half = _PADDED // 2
    rows = spectrum[..., :half, :] + spectrum[..., half:, :]
    folded: NDArray[Any] = (rows[..., :half] + rows[..., half:]) * np.float32(0.25)
    return folded


@functools.cache
def _filters() -> _Filters:
    angles = [np.pi * direction / DIRECTIONS for direction in range(DIRECTIONS)]
    octaves = [np.stack([_morlet(octave, angle) for angle in angles]) for octave in range(OCTAVES)]
    width = _WIDTH * 2 ** (OCTAVES - 1)
    return _Filters(
        fine=octaves[0],
        coarse=octaves[1],
        places=_gaussian_rows(_PADDED, width, _STRIDE),
        half_places=_gaussian_rows(_PADDED // 2, width / 2, _STRIDE // 2),
    )


def _morlet(octave: int, angle: float) -> NDArray[np.float32]:
    """The spectrum of a Morlet wavelet: a wave under a Gaussian, less what gives it the mean zero."""
    wave = _gabor(octave, angle, _FREQUENCY / 2**octave)
    envelope = _gabor(octave, angle, 0.0)
    wavelet = wave - envelope * (wave.sum() / envelope.sum())
    spectrum: NDArray[np.float64] = np.fft.fft2(wavelet).real  # the wavelet is Hermitian around pixel 0
    return spectrum.astype(np.float32)


def _gabor(octave: int, angle: float, frequency: float) -> NDArray[np.complex128]:
    """A plane wave under a Gaussian that is elongated along its crests, periodic in 32 × 32, centred at pixel 0."""
    width = _WIDTH * 2**octave
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    curvature = turn @ np.diag([1.0, _SLANT**2]) @ turn.T / (2 * width**2)
    total = np.zeros((_PADDED, _PADDED), np.complex128)
    for row_shift in (-2, -1, 0, 1, 2):
        for column_shift in (-2, -1, 0, 1, 2):
            row, column = (
                np.mgrid[:_PADDED, :_PADDED] + _PADDED * np.array([row_shift, column_shift])[:, None, None]
            )
            exponent = (
                curvature[0, 0] * row**2 + 2 * curvature[0, 1] * row * column + curvature[1, 1] * column**2
            )
            along = row * np.cos(angle) + column * np.sin(angle)
            total += np.exp(-exponent + 1j * frequency * along)
    total *= _SLANT / (2 * np.pi * width**2)
    return total


def _gaussian_rows(size: int, width: float, stride: int) -> NDArray[np.float32]:
    """A row for each place: the weights of the `size` pixels around it, which sum to 1; periodic."""
    first = _EDGE * size // _PADDED + stride // 2  # the middle of the image's first block
    places = first + stride * np.arange(PLACES)
    away = np.arange(size)[None, :] - places[:, None]
    away = (away + size // 2) % size - size // 2
    weights = np.exp(-(away**2) / (2 * width**2))
    rows: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return rows.astype(np.float32)
