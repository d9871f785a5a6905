"""Fashion-MNIST as features that no data chose: scattering, then group norm of each example.

70,000 images become 70,000 × 3,969 numbers (1.1 GB) in about a minute of one core; with a folder to keep them in, once.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import xxhash

from fedmq.fedcore.errors import ConfigError

from ...demo.data import Dataset, Features, Shard
from . import scattering

__all__ = ["GROUPS", "featured", "group_norm"]

GROUPS: Final = 27
"""Of three channels each; what Tramèr & Boneh found best for such features."""
_EPSILON: Final = 1e-5
_PART: Final = 1000
"""Images that a thread takes at a time."""

Done = Callable[[int, int], None]
"""Takes how many images of how many are done."""


def featured(dataset: Dataset, *, cache: Path | None, done: Done) -> Dataset:
    """The same data set with 3,969 features in the place of its 784 pixels.

    Parameters
    ----------
    dataset : Dataset
        Of 28 × 28 pixels.
    cache : path, optional
        A folder: what was computed is kept there, and found again.
    done : callable

    Raises
    ------
    ConfigError
        When the images have another size, or the folder cannot be written.
    """
    if dataset.train.x.shape[1] != scattering.SIDE**2:
        raise ConfigError(f"scattering takes images of 28 x 28 pixels, and {dataset.name} has others")
    total = len(dataset.train) + len(dataset.test)
    train = _kept(dataset.train, cache, lambda count: done(count, total))
    test = _kept(dataset.test, cache, lambda count: done(len(train) + count, total))
    return Dataset(dataset.name, Shard(train, dataset.train.y), Shard(test, dataset.test.y), dataset.classes)


def group_norm(features: Features, groups: int = GROUPS) -> Features:
    """Each example's groups of channels with mean 0 and variance 1: of it alone, no statistic of others enters.

    Parameters
    ----------
    features : float32[n, channels, …]
    groups : int
        Divides the number of channels.

    Returns
    -------
    float32[n, ·]
        One row an example.

    References
    ----------
    Wu & He, *Group Normalization*, arXiv:1803.08494.
    """
    values = features.reshape(len(features), groups, -1)
    values = values - values.mean(axis=-1, keepdims=True)
    variance = np.mean(values * values, axis=-1, keepdims=True)
    values /= np.sqrt(variance + np.float32(_EPSILON))
    rows: Features = values.reshape(len(features), -1)
    return rows


def _kept(shard: Shard, cache: Path | None, done: Callable[[int], None]) -> Features:
    if cache is None:
        return _computed(shard.x, done)
    # Of these images, and of this code: other features than it makes would be trained on in silence.
    recipe = b"".join(Path(str(module)).read_bytes() for module in (__file__, scattering.__file__))
    images = xxhash.xxh3_64_hexdigest(np.ascontiguousarray(shard.x).data)
    file = cache / f"scattering-{images}-{xxhash.xxh3_64_hexdigest(recipe)}.npy"
    if file.is_file():
        kept: Features = np.load(file)
        done(len(shard))
        return kept
    new = file.with_suffix(".new")
    try:
        with new.open(
            "wb"
        ) as out:  # before a minute of work, so that a folder that takes none is told of now
            found = _computed(shard.x, done)
            np.save(out, found)
        new.replace(file)
    except OSError as error:
        raise ConfigError(f"--cache {cache}: cannot be written: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)
    return found


def _computed(images: Features, done: Callable[[int], None]) -> Features:
    width = scattering.CHANNELS * scattering.PLACES**2
    out = np.empty((len(images), width), np.float32)

    def part(start: int) -> None:
        # Pixels are −1 … 1 in the demo; here 0 is black, as where these features come from.
        pixels = (images[start : start + _PART] + np.float32(1)) / np.float32(2)
        out[start : start + _PART] = group_norm(scattering.scattering(pixels))

    starts = range(0, len(images), _PART)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # FFTs release the interpreter
        for start, _ in zip(starts, pool.map(part, starts), strict=True):
            done(min(start + _PART, len(images)))
    return out
