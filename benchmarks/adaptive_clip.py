"""What a wrong clip norm costs, and what one that follows the updates makes of it.

    python benchmarks/adaptive_clip.py [--epsilon 8] [--seeds 3] [--images 20000]

The thousand workers of `fedmq bench privacy --only worker` (softmax regression on Fashion-MNIST, 20 versions with
every worker in each) begin with a clip norm S that is ten times too small, as tuned for the benchmark, and ten times
too large; it stays, or it moves to the median by the broker's own rule, slowly (η = 0.2) or fast (η = 1), under the
same ε in all. There is no broker and no wire in it.
"""

import argparse
import statistics

import msgspec

from fedmq.cli.bench.privacy.settings import DELTA, FULL
from fedmq.cli.bench.privacy.worker_level import noise_for, train_crowd
from fedmq.cli.bench.strategies.measure import images
from fedmq.fedcore.privacy.adaptive import AdaptiveClipping

ROW = "| {:>12} | {:>12} | {:>18} | {:>18} |"


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--epsilon", type=float, default=8.0)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--images", type=int, default=20_000)
    args = options.parse_args()
    crowd = FULL.crowds[-1]
    dataset = images(None, most=args.images, validation=False)
    z = noise_for(args.epsilon, DELTA, crowd.versions)
    print(
        f"{crowd.workers} workers, {crowd.versions} versions, z = {z:.3f}; accuracy in %, median of {args.seeds}"
    )
    print(ROW.format("first S", "constant", "adapted, rate 0.2", "adapted, rate 1"))
    for factor in (0.1, 1.0, 10.0):
        setting = msgspec.structs.replace(crowd, max_norm=crowd.max_norm * factor)
        found = []
        for rate in (None, 0.2, 1.0):
            rule = (
                None
                if rate is None
                else AdaptiveClipping(quantile=0.5, rate=rate, count_noise=crowd.workers / 20)
            )
            runs = [
                100
                * train_crowd(
                    dataset, setting, noise_multiplier=z, seed=seed, step=lambda _: None, adaptive=rule
                )
                for seed in range(args.seeds)
            ]
            found.append(f"{statistics.median(runs):.1f}")
        print(ROW.format(f"{setting.max_norm:g}", *found), flush=True)


if __name__ == "__main__":
    main()
