"""Correlated noise as the kernels draw it: its covariance, and the same streams again in later versions."""

import os

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmq.fedcore import kernels as default
from fedmq.fedcore.privacy.correlated import Bisr, Participation
from fedmq.fedcore.privacy.mechanisms import NOISE_NONCE

VERSIONS, N, FRAC_BITS = 12, 64 * 1024, 40
MECHANISM = Bisr(
    bandwidth=4,
    noise_multiplier=1.5,
    participation=Participation(versions=VERSIONS, most=3, separation=4),
)


def drawn(keys: list[bytes], *, start: int = 0, stop: int = N) -> NDArray[np.int64]:
    """The noise of the version whose key is the last, on elements from `start` to `stop`, as integers."""
    total = default.Accumulator(stop - start, frac_bits=FRAC_BITS, offset=start)
    for sigma, key in MECHANISM.terms(MECHANISM.deviation, keys[::-1]):
        add = total.add_noise if sigma >= 0 else total.subtract_noise
        add(abs(sigma), key=key, nonce=NOISE_NONCE)
    return total.totals()


@pytest.fixture(scope="module")
def noise() -> NDArray[np.float64]:
    """T versions of N elements, each key drawn once."""
    keys = [os.urandom(32) for _ in range(VERSIONS)]
    integers = [drawn(keys[: version + 1]) for version in range(VERSIONS)]
    return np.stack(integers) / 2.0**FRAC_BITS


def test_the_covariance_is_that_of_the_matrix(noise: NDArray[np.float64]) -> None:
    """σ² C⁻¹ C⁻ᵀ, every entry within six standard errors."""
    inverse = np.zeros((VERSIONS, VERSIONS))
    for j, c in enumerate(MECHANISM.coefficients):
        inverse += np.diag(np.full(VERSIONS - j, c), -j)
    expected = MECHANISM.deviation**2 * inverse @ inverse.T
    found = noise @ noise.T / N
    error = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / N)
    assert (np.abs(found - expected) < 6 * error).all()
    assert (np.abs(found - np.diag(np.diag(expected))) > 6 * error).any(), (
        "the test could not tell them apart"
    )


def test_sums_have_the_error_that_is_claimed(noise: NDArray[np.float64]) -> None:
    """What the model holds after each version."""
    measured = np.sqrt(np.mean(np.cumsum(noise, axis=0) ** 2, axis=1))
    np.testing.assert_allclose(measured, MECHANISM.model_error(), rtol=6 / np.sqrt(2 * N))


def test_what_is_filtered_back_is_white(noise: NDArray[np.float64]) -> None:
    """C times the noise is the Z that the claim is about: independent, all of one variance."""
    inverse = np.zeros((VERSIONS, VERSIONS))
    for j, c in enumerate(MECHANISM.coefficients):
        inverse += np.diag(np.full(VERSIONS - j, c), -j)
    white = np.linalg.solve(inverse, noise) / MECHANISM.deviation
    np.testing.assert_allclose(white @ white.T / N, np.eye(VERSIONS), atol=6 * np.sqrt(2 / N))


def test_tiles_and_backends_give_the_same_integers() -> None:
    """A stream is drawn again in a later version by position, a tile at a time."""
    keys = [bytes([i]) * 32 for i in range(5)]
    whole = drawn(keys)
    tile = drawn(keys, start=16 * 1024, stop=20 * 1024)
    assert (whole[16 * 1024 : 20 * 1024] == tile).all()
    with default.use("python"):
        assert (drawn(keys, start=16 * 1024, stop=20 * 1024) == tile).all()
