"""Parity of the server optimizers that are compiled."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = st.one_of(st.sampled_from([0, 1, 7, 8, 9, 16385]), st.integers(0, 3000))


@given(SIZES, st.floats(0, 10), st.floats(0, 0.999), st.integers(0, 2**32), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_steps(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    same_bits: Callable[[Any, Any], None],
    n: int,
    lr: float,
    beta: float,
    seed: int,
    steps: int,
) -> None:
    """Parameters and state stay equal over several steps."""
    results = []
    for module in (native, reference):
        w, v = vector("normal", n, seed), vector("zeros", n, seed)
        for step in range(steps):
            module.momentum_(w, v, vector("wide", n, seed + step), lr=lr, beta=beta)
            module.sgd_(w, vector("normal", n, seed - step - 1 & 0xFFFFFFFF), lr=lr)
        results.append((w, v))
    for one, other in zip(*results, strict=True):
        same_bits(one, other)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_a_large_step(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    same_bits: Callable[[Any, Any], None],
    threads: int,
) -> None:
    """Above the size where threads start to work, too."""
    results = []
    for module in (native, reference):
        w, v = vector("normal", 300_001, 1), vector("normal", 300_001, 2)
        module.momentum_(w, v, vector("normal", 300_001, 3), lr=0.1, threads=threads)
        module.sgd_(w, vector("normal", 300_001, 4), lr=0.1, threads=threads)
        results.append((w, v))
    for one, other in zip(*results, strict=True):
        same_bits(one, other)
