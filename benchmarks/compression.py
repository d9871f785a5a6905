"""What encodings cost and save: bytes up and down, and accuracy, with and without error feedback.

The last rows encode what workers fetch as well (`model.downlink`).

    python benchmarks/compression.py [--data digits|fashion-mnist] [--workers 10] [--rounds 30] [--seeds 3]

Synchronous rounds (FedAvg) of the demo's network and client app, every worker in every round, equal weights. Bytes
are those of payloads and of model files, without headers. There is no broker and no wire in it: encoding, error
feedback, exact sums and optimizer are the ones that brokers and workers use.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import msgspec
import numpy as np

from fedmq.cli.demo import data, network
from fedmq.cli.demo.app import app
from fedmq.cli.demo.settings import HIDDEN, settings
from fedmq.fedcore import kernels
from fedmq.fedcore.config import Aggregate
from fedmq.fedcore.encoded_model import encoded_size
from fedmq.fedcore.layout import Flat, Layout
from fedmq.fedcore.state_dict import delta, flatten, unflatten
from fedmq.worker.client import TaskContext
from fedmq.worker.compression import encoded
from fedmq.worker.feedback import Feedback

ROW = "| {:12} | {:>8} | {:>8} | {:>10} | {:>8} | {:>9} | {:>17} |"
ARMS = [
    ("f32", 1.0, False),
    ("f16", 1.0, False),
    ("f16", 1.0, True),
    ("bf16", 1.0, False),
    ("bf16", 1.0, True),
    ("i8", 1.0, False),
    ("i8", 1.0, True),
    ("topk", 0.1, False),
    ("topk", 0.1, True),
    ("topk", 0.01, False),
    ("topk", 0.01, True),
    ("f32", 1.0, False, "f16"),
    ("f32", 1.0, False, "bf16"),
    ("f16", 1.0, False, "f16"),
    ("topk", 0.1, True, "f16"),
    ("topk", 0.1, True, "bf16"),
]


class Arm(msgspec.Struct, frozen=True):
    """What is compared."""

    encoding: str
    density: float
    feedback: bool
    downlink: str = "f32"

    @property
    def name(self) -> str:
        return f"{self.encoding} {self.density:.0%}" if self.encoding == "topk" else self.encoding


class Result(msgspec.Struct, frozen=True):
    """Of one run: accuracy in per cent, and bytes of all rounds and workers."""

    accuracy: float
    up: int
    down: int


def update(arm: Arm, change: np.ndarray, kept: Feedback, task: bytes, version: int, seed: int) -> bytes:
    """The payload that a worker would send."""
    keep = Aggregate(density=arm.density).keep(change.size) if arm.encoding == "topk" else None
    if not arm.feedback:
        return b"".join(encoded(change, arm.encoding, seed, keep=keep))
    draft = kept.begin(task, "benchmark", b"layout", version, change)
    payload = b"".join(encoded(change, arm.encoding, seed, keep=keep, left_out=draft.write))
    draft.finish()
    kept.commit()
    return payload


def fetched(flat: Flat, encoding: str) -> Flat:
    """The model that a worker trains from, and takes its update from."""
    return kernels.decode(kernels.encode(flat, encoding), encoding, flat.size)


def run(arm: Arm, dataset: data.Dataset, options: argparse.Namespace, seed: int, folder: Path) -> Result:
    """One federation."""
    plain = settings(
        options.data, "sync", train_size=len(dataset.train), workers=options.workers, seed=seed
    ).plain
    weights = network.initial_weights(
        dataset.train.x.shape[1], classes=dataset.classes, hidden=HIDDEN[options.data], seed=seed
    )
    layout = Layout.of(weights)
    flat = flatten(layout, weights)
    table = {"epochs": plain.epochs, "batch": plain.batch, "lr": plain.lr, "versions": options.rounds}
    node = {"data": options.data, "seed": str(seed), "partition": options.partition}
    workers = [app(node | {"shard": f"{i + 1}/{options.workers}"}) for i in range(options.workers)]
    folders = [
        folder / f"{arm.name}-{arm.feedback}-{arm.downlink}-{seed}-{i}" for i in range(options.workers)
    ]
    for path in folders:
        path.mkdir()
    kept = [Feedback(path) for path in folders]
    up = down = 0
    for version in range(options.rounds):
        payloads = []
        base = fetched(flat, arm.downlink)
        for i, worker in enumerate(workers):
            drawn = int(np.random.SeedSequence([seed, i, version]).generate_state(1, np.uint64)[0])
            task = TaskContext(kind="fit", version=version, seed=drawn, config=table)
            fit = worker.fit(unflatten(layout, base.copy()), task)
            change = delta(layout, base, fit.weights)
            payloads.append(update(arm, change, kept[i], b"task", version, drawn))
            down += encoded_size(layout, arm.downlink)
        up += sum(map(len, payloads))
        mean = kernels.weighted_mean(payloads, [1.0] * len(payloads), encoding=arm.encoding)
        kernels.sgd_(flat, mean, lr=1.0)
    measured = network.measure(unflatten(layout, flat), dataset.test)
    return Result(100 * measured.accuracy, up, down)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(HIDDEN), default="digits")
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--partition", default="iid")
    options = parser.parse_args()
    dataset = data.load(options.data)
    images = f"{len(dataset.train)} training images"
    print(
        f"{options.data}, {images}, {options.workers} workers ({options.partition}), {options.rounds} rounds\n"
    )
    print(ROW.format("encoding", "feedback", "downlink", "up, KiB", "of f32", "down, KiB", "accuracy, %"))
    print(ROW.format(*("---" for _ in range(7))))
    whole = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for arm in (Arm(*one) for one in ARMS):
            runs = [run(arm, dataset, options, seed, Path(folder)) for seed in range(options.seeds)]
            found = [one.accuracy for one in runs]
            up = statistics.mean(one.up for one in runs)
            whole = whole or up
            spread = f"{statistics.median(found):.1f} ({min(found):.1f}–{max(found):.1f})"
            down = f"{runs[0].down / 1024:,.0f}"
            feedback = "yes" if arm.feedback else "no"
            print(
                ROW.format(
                    arm.name, feedback, arm.downlink, f"{up / 1024:,.0f}", f"{up / whole:.1%}", down, spread
                )
            )


if __name__ == "__main__":
    main()
