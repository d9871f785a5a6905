"""What federations are compared with: the same network, trained on all images in one place."""

import numpy as np

from ...demo import network
from ...demo.app import cosine
from ...demo.data import Dataset

__all__ = ["centralized"]


def centralized(dataset: Dataset, *, epochs: int, lr: float, batch: int, seed: int) -> float:
    """Train with a rate that falls from `lr` along a cosine; the accuracy on the test images."""
    weights = network.initial_weights(dataset.train.x.shape[1], classes=dataset.classes, seed=seed)
    rng = np.random.default_rng([seed, 0xCE17])
    for epoch in range(epochs):
        network.train(weights, dataset.train, epochs=1, batch=batch, lr=cosine(lr, epoch, epochs), rng=rng)
    return network.measure(weights, dataset.test).accuracy
