"""What the benchmarks measure against does what it says; see csrc/roofline.cpp."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("n", [0, 5, 300_001])
def test_every_word_is_read(
    native: ModuleType, vector: Callable[..., Any], count: int, n: int, threads: int
) -> None:
    """The checksum is the sum of all words modulo 2^32."""
    payloads = [vector("anything", n, seed) for seed in range(count)]
    total = sum(int(x.view(np.uint32).sum(dtype=np.uint64)) for x in payloads)
    assert native._read4(payloads, threads=threads) == total % 2**32


def test_a_copy_is_a_copy(
    native: ModuleType, vector: Callable[..., Any], same_bits: Callable[[Any, Any], None]
) -> None:
    """All of it; and only between arrays of one size."""
    x = vector("normal", 300_001, 1)
    copied = np.zeros_like(x)
    native._copy(copied, x, threads=2)
    same_bits(copied, x)
    with pytest.raises(ValueError, match="src"):
        native._copy(copied, x[1:])
