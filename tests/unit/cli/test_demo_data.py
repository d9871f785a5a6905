"""The demo's images: where they come from, how they are split, how they are dealt out."""

import gzip
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.cli.demo import data
from fedmq.fedcore.errors import ConfigError


def idx(magic: int, shape: tuple[int, ...], values: bytes) -> bytes:
    """An IDX file."""
    return magic.to_bytes(4, "big") + struct.pack(f">{len(shape)}I", *shape) + values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """fashion-mnist with six training images and two test images of 2 × 2 pixels; one file of it gzipped."""
    for part, n in (("train", 6), ("t10k", 2)):
        images = idx(0x0803, (n, 2, 2), bytes(range(4 * n)))
        labels = idx(0x0801, (n,), bytes(i % 2 for i in range(n)))
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(images)
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return tmp_path


def test_digits_are_scikit_learns() -> None:
    """The same images and labels as its loader gives, scaled by a constant, none twice, none lost."""
    from sklearn.datasets import load_digits

    theirs = load_digits()
    ours = data.load("digits")
    x = np.concatenate([ours.train.x, ours.test.x]) * 8 + 8
    y = np.concatenate([ours.train.y, ours.test.y])
    rows = sorted(map(tuple, np.column_stack([x, y]).tolist()))
    assert rows == sorted(map(tuple, np.column_stack([theirs.data, theirs.target]).tolist()))
    assert (ours.train.x.min(), ours.train.x.max()) == (-1, 1)
    assert ours.train.x.dtype == np.float32


def test_a_fifth_of_every_class_is_for_the_test() -> None:
    """And it is the same fifth every time."""
    first, second = data.load("digits"), data.load("digits")
    np.testing.assert_array_equal(first.test.x, second.test.x)
    for label in range(10):
        held, rest = (first.test.y == label).sum(), (first.train.y == label).sum()
        assert held == round(0.2 * (held + rest))


def test_reading_digits_does_not_import_scikit_learn() -> None:
    """That would take longer than the training, in every worker."""
    code = (
        "import sys; from fedmq.cli.demo import data; data.load('digits'); "
        "sys.exit('sklearn' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_fashion_mnist_is_read_from_a_folder(folder: Path) -> None:
    """Plain or gzipped; pixels in −1 … 1, rows in order."""
    dataset = data.load("fashion-mnist", data_dir=folder)
    assert dataset.train.x.shape == (6, 4)
    assert dataset.test.x.shape == (2, 4)
    assert dataset.train.x.dtype == np.float32
    np.testing.assert_allclose(dataset.train.x[1], np.array([4, 5, 6, 7]) / 127.5 - 1, rtol=1e-6)
    assert dataset.train.y.tolist() == [0, 1, 0, 1, 0, 1]


def test_missing_files_are_told_how_to_get_them(tmp_path: Path) -> None:
    """One line: the package, or the option."""
    with pytest.raises(ConfigError, match=r"apt install dataset-fashion-mnist.*--data-dir") as raised:
        data.load("fashion-mnist", data_dir=tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[:3],
        lambda raw: b"",
        lambda raw: b"\0\0\x0d\x03" + raw[4:],
        lambda raw: raw + b"\0",
    ],
)
def test_a_damaged_file_is_refused(folder: Path, damage: Any) -> None:
    """Truncated, empty, of another type, too long."""
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ConfigError, match="not the IDX file"):
        data.load("fashion-mnist", data_dir=folder)


def test_a_broken_gzip_and_uneven_files_are_refused(folder: Path) -> None:
    """Whatever is wrong with the files is one clear line."""
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(0x0801, (3,), bytes(3))))
    with pytest.raises(ConfigError, match="2 images but 3 labels"):
        data.load("fashion-mnist", data_dir=folder)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(ConfigError, match="cannot read"):
        data.load("fashion-mnist", data_dir=folder)


def test_unknown_data_is_told_what_there_is() -> None:
    """The names."""
    with pytest.raises(ConfigError, match="choose from digits, fashion-mnist"):
        data.load("mnist")


@given(
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=200),
    scheme=st.one_of(st.just("iid"), st.floats(1e-6, 1e3).map(lambda a: f"dirichlet:{a}")),
    seed=st.integers(0, 2**31),
    draw=st.data(),
)
def test_every_example_goes_to_exactly_one_worker_and_none_is_empty(
    labels: list[int], scheme: str, seed: int, draw: st.DataObject
) -> None:
    """Whatever the scheme, also where it would leave a worker without data."""
    workers = draw.draw(st.integers(1, len(labels)))
    parts = data.partition(np.array(labels), workers=workers, scheme=scheme, seed=seed)
    assert len(parts) == workers
    assert min(map(len, parts)) >= 1
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))


def test_a_partition_follows_from_its_seed() -> None:
    """Each process finds its own shard by itself; another seed deals others."""
    labels = data.load("digits").train.y
    for scheme in ("iid", "dirichlet:0.5"):
        first, again, other = (data.partition(labels, workers=5, scheme=scheme, seed=s) for s in (1, 1, 2))
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_iid_is_even_and_dirichlet_is_skewed() -> None:
    """A small alpha gives most of a class to few workers."""
    labels = data.load("digits").train.y
    sizes = [len(part) for part in data.partition(labels, workers=7)]
    assert max(sizes) - min(sizes) <= 1

    def largest_share(scheme: str) -> float:
        parts = data.partition(labels, workers=5, scheme=scheme)
        counts = np.array([np.bincount(labels[part], minlength=10) for part in parts])
        return float((counts.max(axis=0) / counts.sum(axis=0)).mean())

    assert largest_share("iid") < 0.35 < largest_share("dirichlet:0.5")
    assert largest_share("dirichlet:0.05") > 0.8
    assert largest_share("dirichlet:1000") < 0.3


@pytest.mark.parametrize(
    "scheme",
    ["", "random", "dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:-1", "dirichlet:nan", "iid:1"],
)
def test_an_unknown_partition_is_told_what_there_is(scheme: str) -> None:
    """It is quoted, with the two forms."""
    with pytest.raises(ConfigError, match='it may be "iid" or "dirichlet:ALPHA"'):
        data.partition(np.zeros(10, np.int64), workers=2, scheme=scheme)


@pytest.mark.parametrize("workers", [0, -1, 11])
def test_there_are_at_most_as_many_workers_as_examples(workers: int) -> None:
    """Everybody gets one at least."""
    with pytest.raises(ConfigError, match=f"not {workers}"):
        data.partition(np.zeros(10, np.int64), workers=workers)


def test_a_split_is_stratified_and_disjoint() -> None:
    """What hyperparameters are tuned on: cut out of the training images."""
    train = data.load("digits").train
    rest, cut = data.split(train, share=0.25, seed=3)
    assert len(rest) + len(cut) == len(train)
    assert math.isclose(len(cut) / len(train), 0.25, abs_tol=0.01)
    assert not set(map(bytes, rest.x)) & set(map(bytes, cut.x)) - {bytes(x) for x in duplicates(train.x)}


def duplicates(x: data.Features) -> list[Any]:
    """Rows that the data set itself holds twice."""
    rows, counts = np.unique(x, axis=0, return_counts=True)
    return list(rows[counts > 1])
