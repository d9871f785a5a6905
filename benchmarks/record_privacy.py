"""What noise in each worker costs against noise once: DP-SGD on handwritten digits, both ways.

    python benchmarks/record_privacy.py [--workers 5] [--epsilon 3] [--seeds 5]

One softmax layer, T = 80 steps, q = 0.5, S = 0.5, momentum 0.5, IID shards. "once": every worker sends a sum of
clipped gradients, one noise is added to their sum. "each": every worker adds its own full noise to its mean, so that
nobody else need be trusted, and the means are averaged. Both keep the same (ε, δ = 1e-5) for every record. There is
no broker and no wire in it: the engine is the workers', the arithmetic is the broker's.
"""

import argparse
import math
import os
import statistics

import msgspec
import numpy as np

from fedmq.cli.demo import data
from fedmq.fedcore.privacy.mechanisms import NOISE_NONCE
from fedmq.worker.adapters.linear import LinearGradients
from fedmq.worker.privacy import LocalPrivacy
from fedmq.worker.privacy.gradients import clipped_sum
from fedmq.worker.privacy.sampling import KEY_BYTES, poisson_sample
from fedmq.worker.privacy.training import noisy_mean

STEPS, RATE, CLIP, LR, MOMENTUM = 80, 0.5, 0.5, 2.0, 0.5
ROW = "{:28} {:>8} {:>17}"


def noise_once(models: list[LinearGradients], flat: np.ndarray, plan: LocalPrivacy) -> np.ndarray:
    """One step's gradient: exact sums of all workers' clipped gradients, merged, with one noise."""
    whole = None
    for model in models:
        sample = poisson_sample(os.urandom(KEY_BYTES), model.records, RATE)
        rows = model.rows(flat, sample)
        sums, _ = clipped_sum(rows, flat.size, max_grad_norm=CLIP, sigma=plan.sigma)
        if whole is None:
            whole = sums
        else:
            whole.merge(sums)
    whole.add_noise(plan.sigma, key=os.urandom(KEY_BYTES), nonce=NOISE_NONCE)
    return whole.mean(plan.divisor)


def noise_each(models: list[LinearGradients], flat: np.ndarray, plan: LocalPrivacy) -> np.ndarray:
    """One step's gradient: the mean of what each worker would send, its own noise in it."""
    own = msgspec.structs.replace(plan, divisor=plan.divisor / len(models))
    return np.mean([noisy_mean(model, flat, own) for model in models], axis=0)


def accuracy(step, models: list[LinearGradients], test: LinearGradients, plan: LocalPrivacy) -> float:
    """Of the model after all steps, in per cent."""
    flat = np.zeros(test.trained.n, np.float32)
    velocity = np.zeros_like(flat)
    for _ in range(STEPS):
        velocity = MOMENTUM * velocity + step(models, flat, plan)
        flat -= np.float32(LR) * velocity
    return 100 * test.measure(test.trained.unflatten(flat, {}))["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    digits = data.load("digits")
    test = LinearGradients((digits.test.x, digits.test.y), kind="softmax", classes=10)
    plan = LocalPrivacy(
        epsilon=options.epsilon,
        delta=1e-5,
        max_grad_norm=CLIP,
        sampling_rate=RATE,
        divisor=RATE * len(digits.train),
        max_steps=STEPS,
    ).calibrated()
    without = msgspec.structs.replace(plan, epsilon=None, noise_multiplier=1e-9)
    noise = f"epsilon {options.epsilon:g}, z {plan.spend.noise_multiplier:g}"
    print(f"{len(digits.train)} images, {options.workers} workers, {noise}")
    print(ROW.format("test accuracy, %", "median", "lowest … highest"))
    arms = [
        ("no noise", noise_once, without),
        ("noise once", noise_once, plan),
        ("noise in each worker", noise_each, plan),
    ]
    for name, step, used in arms:
        found = []
        for seed in range(options.seeds):
            dealt = data.partition(digits.train.y, workers=options.workers, seed=seed)
            shards = [digits.train.take(indices) for indices in dealt]
            models = [LinearGradients((s.x, s.y), kind="softmax", classes=10) for s in shards]
            found.append(accuracy(step, models, test, used))
        assert all(map(math.isfinite, found))
        print(ROW.format(name, f"{statistics.median(found):.1f}", f"{min(found):.1f} … {max(found):.1f}"))


if __name__ == "__main__":
    main()
