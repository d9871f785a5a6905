"""The demo's images: two real data sets, and how they are dealt out to workers.

* ``digits``: 1,797 handwritten digits of 8 × 8 pixels (UCI, Alpaydin & Kaynak), in a file that comes with
  scikit-learn. The file is read without importing scikit-learn, which would take longer than the training.
* ``fashion-mnist``: 70,000 articles of clothing of 28 × 28 pixels (Zalando), four IDX files from Debian's
  package ``dataset-fashion-mnist`` or a folder that the user names.

Rules that hold here:

* Pixels are scaled by a constant to −1 … 1. Statistics of the training data would have to be paid for in the
  private arm.
* Which images are test images never changes: fashion-mnist says so itself, of digits every class gives a fifth,
  picked by a fixed seed. Nothing is ever tuned on them, see `settings`.
* How a partition deals out the training images depends on (labels, workers, scheme, seed) alone: each worker
  process finds its own shard by itself.
"""

import gzip
import importlib.util
import math
import struct
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedmq.fedcore.errors import ConfigError

__all__ = ["DATA_SETS", "DataName", "Dataset", "Shard", "load", "partition", "split"]

DataName = Literal["digits", "fashion-mnist"]
DATA_SETS: Final[tuple[DataName, ...]] = ("digits", "fashion-mnist")

FASHION_FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
_DIGITS_FILE: Final = Path("datasets", "data", "digits.csv.gz")
_SPLIT_SEED: Final = 20_250_101
_TEST_SHARE: Final = 0.2
_UBYTE_IMAGES, _UBYTE_LABELS = 0x0803, 0x0801  # IDX magic numbers: unsigned bytes in 3 dimensions and in 1

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


class Shard(msgspec.Struct, frozen=True):
    """Labelled images: `x` float32[n, features] in −1 … 1, `y` int64[n] in 0 … 9."""

    x: Features
    y: Labels

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: NDArray[np.int64]) -> "Shard":
        """The images at `indices`."""
        return Shard(self.x[indices], self.y[indices])


class Dataset(msgspec.Struct, frozen=True):
    """A data set, with what is for training and what for the last measurement."""

    name: DataName
    train: Shard
    test: Shard
    classes: int = 10


def load(name: str, *, data_dir: str | Path | None = None) -> Dataset:
    """Read a data set from this machine's disk; nothing is downloaded.

    Parameters
    ----------
    name : {"digits", "fashion-mnist"}
        Which one.
    data_dir : path, optional
        The folder of fashion-mnist's four IDX files, plain or gzipped.

    Raises
    ------
    ConfigError
        When `name` is unknown, or the files are missing or damaged; the message says how to get them.
    """
    match name:
        case "digits":
            return _digits()
        case "fashion-mnist":
            return _fashion_mnist(Path(data_dir) if data_dir is not None else FASHION_FOLDER)
        case _:
            raise ConfigError(f"unknown data {name!r}; choose from {', '.join(DATA_SETS)}")


def partition(labels: Labels, *, workers: int, scheme: str = "iid", seed: int = 0) -> list[NDArray[np.int64]]:
    """Deal out examples to workers.

    Parameters
    ----------
    labels : int64[n]
        Of the training images.
    workers : int
        1 … n.
    scheme : str
        ``iid``: shuffled and dealt evenly. ``dirichlet:ALPHA``: each class is divided in proportions drawn from
        a Dirichlet distribution; the smaller ALPHA, the fewer workers hold a class (Hsu et al.,
        arXiv:1909.06335).
    seed : int
        The same seed deals the same shards.

    Returns
    -------
    list of int64[·]
        Sorted indices, one array a worker. Disjoint, complete, none empty.

    Raises
    ------
    ConfigError
        When there are more workers than examples, or the scheme is unknown.
    """
    if not 1 <= workers <= len(labels):
        raise ConfigError(f"{len(labels)} examples can be dealt to 1 … {len(labels)} workers, not {workers}")
    rng = np.random.default_rng([seed, workers])
    if scheme == "iid":
        return [np.sort(part) for part in np.array_split(rng.permutation(len(labels)), workers)]
    owner = _dirichlet_owners(labels, workers, _concentration(scheme), rng)
    return [np.flatnonzero(owner == worker) for worker in range(workers)]


def split(shard: Shard, *, share: float, seed: int) -> tuple[Shard, Shard]:
    """Cut a `share` out of each class at random: the rest, and what was cut out."""
    rng = np.random.default_rng(seed)
    cut: list[NDArray[np.int64]] = []
    for label in np.unique(shard.y):
        members = rng.permutation(np.flatnonzero(shard.y == label))
        cut.append(members[: round(share * len(members))])
    out = np.sort(np.concatenate(cut))
    rest = np.setdiff1d(np.arange(len(shard)), out)
    return shard.take(rest), shard.take(out)


def _concentration(scheme: str) -> float:
    kind, _, value = scheme.partition(":")
    try:
        alpha = float(value) if kind == "dirichlet" else math.nan
    except ValueError:
        alpha = math.nan
    if not 0 < alpha < math.inf:
        raise ConfigError(f'partition is "{scheme}"; it may be "iid" or "dirichlet:ALPHA" with ALPHA > 0')
    return alpha


def _dirichlet_owners(
    labels: Labels, workers: int, alpha: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(workers, alpha))
        if not np.isfinite(
            shares
        ).all():  # a tiny alpha underflows to 0/0: the whole class goes to one worker
            shares = np.eye(workers)[rng.integers(workers)]
        cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for index, part in enumerate(np.split(members, cuts)):
            owner[part] = index
    # A worker without data cannot take part: whoever has most gives one away.
    counts = np.bincount(owner, minlength=workers)
    for worker in np.flatnonzero(counts == 0):
        richest = int(counts.argmax())
        owner[rng.choice(np.flatnonzero(owner == richest))] = worker
        counts[richest] -= 1
        counts[worker] += 1
    return owner


def _digits() -> Dataset:
    spec = importlib.util.find_spec("sklearn")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    file = Path(folders[0], _DIGITS_FILE) if folders else None
    if file is None or not file.is_file():
        raise ConfigError(
            "the digits come with scikit-learn, which is not installed: pip install fedmq[sklearn]"
        )
    with gzip.open(file, "rt") as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.float32)
    everything = Shard(table[:, :-1] / np.float32(8) - np.float32(1), table[:, -1].astype(np.int64))
    train, test = split(everything, share=_TEST_SHARE, seed=_SPLIT_SEED)
    return Dataset("digits", train, test)


def _fashion_mnist(folder: Path) -> Dataset:
    return Dataset("fashion-mnist", train=_idx_shard(folder, "train"), test=_idx_shard(folder, "t10k"))


def _idx_shard(folder: Path, part: str) -> Shard:
    images, labels = _idx(folder, f"{part}-images-idx3-ubyte", _UBYTE_IMAGES), _labels(folder, part)
    if len(images) != len(labels):
        raise ConfigError(f"fashion-mnist in {folder}: {len(images)} images but {len(labels)} labels")
    return Shard(images, labels)


def _labels(folder: Path, part: str) -> Labels:
    return _idx(folder, f"{part}-labels-idx1-ubyte", _UBYTE_LABELS).astype(np.int64)


def _idx(folder: Path, name: str, magic: int) -> NDArray[Any]:
    """Read an IDX file of unsigned bytes: images become float32[n, pixels], labels stay what they are."""
    plain, zipped = folder / name, folder / f"{name}.gz"
    try:
        raw = plain.read_bytes() if plain.exists() else gzip.decompress(zipped.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"fashion-mnist: no {name}[.gz] in {folder}; on Debian: apt install dataset-fashion-mnist; "
            "elsewhere give the folder of its four IDX files with --data-dir"
        ) from None
    except (OSError, EOFError) as error:
        raise ConfigError(f"fashion-mnist: cannot read {zipped}: {error}") from error
    dimensions = magic & 0xFF
    header = 4 + 4 * dimensions
    shape = struct.unpack_from(f">{dimensions}I", raw, 4) if len(raw) >= header else (0,)
    if raw[:4] != magic.to_bytes(4, "big") or len(raw) != header + math.prod(shape):
        raise ConfigError(f"fashion-mnist: {folder / name} is not the IDX file that it should be")
    values = np.frombuffer(raw, np.uint8, offset=header)
    if dimensions == 1:
        return values
    return (values.reshape(shape[0], -1) / np.float32(127.5) - np.float32(1)).astype(np.float32)
