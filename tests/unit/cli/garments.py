"""A tiny fashion-mnist that no museum would take: four IDX files of blobs, a place and a size for each class."""

import gzip
import struct
from pathlib import Path

import numpy as np


def write_garments(folder: Path, *, train: int = 300, test: int = 100) -> Path:
    """Write the four files; classes are easy to tell apart."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(5)
    for part, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 30, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            row, column = 3 + 5 * (label % 5), 4 + 12 * (label // 5)
            image[row : row + 5, column : column + 9] += 200
        _write(folder / f"{part}-images-idx3-ubyte.gz", 0x0803, images.astype(np.uint8))
        _write(folder / f"{part}-labels-idx1-ubyte.gz", 0x0801, labels.astype(np.uint8))
    return folder


def _write(path: Path, magic: int, values: np.ndarray) -> None:
    header = struct.pack(f">I{values.ndim}I", magic, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), 1))
