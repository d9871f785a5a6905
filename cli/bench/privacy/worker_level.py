"""Worker-level privacy: what all that one worker holds is hidden behind, and how many workers that takes.

    w ← w + η ( Σ clip_S(Δᵢ) + N(0, (z S)²) ) / K

Each of K workers trains for a while and sends its update; the broker clips it to S and adds the noise once a version.
Neighbours differ by one worker, so that the sensitivity of the sum is S however much data a worker has. Arrivals are
no secret coin, so nothing is amplified: a worker that has a part in k versions pays for k Gaussian releases, which is
exactly one with z/√k.

The noise is the same whether ten workers are added or ten thousand; what is added is not. So this table goes by the
number of workers. The images are dealt out evenly: more workers have fewer each.

The model is softmax regression: the noise grows with √parameters, and it has the fewest.
"""

import math
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedmq.fedcore import kernels
from fedmq.fedcore.config import Momentum
from fedmq.fedcore.privacy.accounting import gaussian_epsilon, gaussian_noise
from fedmq.fedcore.privacy.adaptive import AdaptiveClipping, centred_count
from fedmq.fedcore.privacy.mechanisms import NOISE_NONCE, noise_key
from fedmq.fedcore.strategy import optimizers

from ...demo.data import Dataset, Shard, partition

__all__ = ["WorkerLevel", "noise_for", "train_crowd"]

_TOGETHER = 200
"""Workers whose models are trained in one go."""

Flat = NDArray[np.float32]
Step = Callable[[int], None]


class WorkerLevel(msgspec.Struct, frozen=True, kw_only=True):
    """How a crowd trains.

    Parameters
    ----------
    workers : int
        K.
    versions : int
        k: every worker has a part in each.
    max_norm : float
        S.
    local_steps : int
        Of a worker, on all its images at a time.
    local_lr : float
    lr, momentum : float
        The server's.
    """

    workers: int
    versions: int
    max_norm: float
    local_steps: int
    local_lr: float
    lr: float
    momentum: float


def noise_for(budget: float, delta: float, versions: int) -> float:
    """z with which so many releases of a worker's updates cost ε: exact Gaussian composition.

    Examples
    --------
    >>> round(noise_for(1.0, 1e-5, 10), 1)
    11.8
    """
    z = gaussian_noise(budget, delta) * math.sqrt(versions)
    while gaussian_epsilon(z / math.sqrt(versions), delta) > budget:
        z = math.nextafter(z, math.inf)
    return z


def train_crowd(
    dataset: Dataset,
    setting: WorkerLevel,
    *,
    noise_multiplier: float,
    seed: int,
    step: Step,
    adaptive: AdaptiveClipping | None = None,
) -> float:
    """Train on so many workers; the accuracy on the test images.

    With `adaptive` the clip norm begins with S and follows the updates; z is then what both sums cost together.
    """
    workers = setting.workers
    dealt = partition(dataset.train.y, workers=workers, seed=seed)
    crowd = list(_grouped([dataset.train.take(own) for own in dealt]))
    features, classes = dataset.train.x.shape[1], dataset.classes
    flat = np.zeros((features + 1) * classes, np.float32)
    optimizer = optimizers.make(Momentum(lr=setting.lr, beta=setting.momentum))
    state = optimizer.init(flat.size)
    clip_norm = setting.max_norm
    own_noise = noise_multiplier if adaptive is None else adaptive.update_noise(noise_multiplier)
    master = b"fedmq bench privacy".ljust(24) + seed.to_bytes(8, "little")
    for version in range(1, setting.versions + 1):
        step(version)
        sigma = own_noise * clip_norm
        total = kernels.Accumulator(flat.size, frac_bits=kernels.frac_bits_for(clip_norm, workers, sigma))
        norms = [
            total.add(update, max_norm=clip_norm, truncate=True) or 0.0
            for group in crowd
            for update in group.updates(flat.reshape(classes, -1), setting)
        ]
        key = noise_key(master, version=version, frozen=workers.to_bytes(32, "little"))
        if sigma:
            total.add_noise(sigma, key=key, nonce=NOISE_NONCE)
        if adaptive is not None:
            count = adaptive.noisy(centred_count(norms, clip_norm), key)
            clip_norm = adaptive.next_clip_norm(clip_norm, count=count, denominator=float(workers))
        optimizer.apply(flat, state, total.mean(float(workers)), step=version)
    logits = _logits(flat.reshape(classes, -1), dataset.test.x)
    return float((logits.argmax(axis=1) == dataset.test.y).mean())


class _Group:
    """Workers of as many images, who train side by side: small products are slow alone.

    All that a step on all of a worker's images needs to know of them is each one's product with each other, since
    what it adds to the model is a sum of images. With fewer images than pixels those products are fewer numbers.
    """

    def __init__(self, shards: list[Shard]) -> None:
        self._x: Flat = np.stack([shard.x for shard in shards])
        self._y = np.stack([shard.y for shard in shards])
        few = self._x.shape[1] < self._x.shape[2]
        self._products: Flat | None = self._x @ self._x.swapaxes(1, 2) if few else None

    def updates(self, model: Flat, setting: WorkerLevel) -> Flat:
        """Each worker's trained − base, one row a worker."""
        rate = np.float32(setting.local_lr / self._x.shape[1])
        logits = _logits(model, self._x)
        steps = np.zeros_like(logits)
        for _ in range(setting.local_steps):
            gap = rate * _gaps(logits, self._y)
            steps += gap
            logits -= self._seen(gap) + gap.sum(axis=1, keepdims=True)
        updates: Flat = np.empty((len(self._x), *model.shape), np.float32)
        np.matmul(-steps.swapaxes(1, 2), self._x, out=updates[..., :-1])
        updates[..., -1] = -steps.sum(axis=1)
        flat: Flat = updates.reshape(len(updates), -1)
        return flat

    def _seen(self, gap: Flat) -> Flat:
        """x xᵀ gap: what a step of these weights on the images does to their logits."""
        if self._products is not None:
            near: Flat = self._products @ gap
            return near
        seen: Flat = self._x @ (self._x.swapaxes(1, 2) @ gap)
        return seen


def _grouped(shards: list[Shard]) -> Iterator[_Group]:
    for size in sorted({len(shard) for shard in shards}):
        same = [shard for shard in shards if len(shard) == size]
        for start in range(0, len(same), _TOGETHER):
            yield _Group(same[start : start + _TOGETHER])


def _logits(models: Flat, x: Flat) -> Flat:
    logits: Flat = x @ models[..., :-1].swapaxes(-1, -2) + models[..., -1][..., None, :]
    return logits


def _gaps(logits: Flat, y: NDArray[np.int64]) -> Flat:
    """softmax − onehot, for each worker's images."""
    gap: Flat = np.exp(logits - logits.max(axis=-1, keepdims=True))
    gap /= gap.sum(axis=-1, keepdims=True)
    np.put_along_axis(gap, y[..., None], np.take_along_axis(gap, y[..., None], -1) - np.float32(1), -1)
    return gap
