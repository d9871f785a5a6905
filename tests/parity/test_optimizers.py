"""Parity of the server optimizers."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

STATES = {"sgd_": 0, "momentum_": 1, "adagrad_": 1, "adam_": 2, "yogi_": 2, "fadas_": 3}
SIZES = st.one_of(st.sampled_from([0, 1, 7, 8, 9, 15, 16, 17, 16385]), st.integers(0, 3000))
KINDS = st.sampled_from(["normal", "wide", "ties", "zeros", "anything"])

BETA = st.one_of(st.sampled_from([0.0, 0.9, 0.99, 1 - 2**-53]), st.floats(0, 1, exclude_max=True))
HYPER = {
    "lr": st.one_of(st.sampled_from([0.0, 1.0, 1e300]), st.floats(0, 10)),
    "eps": st.one_of(st.sampled_from([5e-324, 1e-8, 1e-3]), st.floats(0, 1, exclude_min=True)),
    "beta": BETA,
    "beta1": BETA,
    "beta2": BETA,
}
NAMES = {
    "sgd_": ("lr",),
    "momentum_": ("lr", "beta"),
    "adagrad_": ("lr", "eps"),
    "adam_": ("lr", "beta1", "beta2", "eps"),
    "yogi_": ("lr", "beta1", "beta2", "eps"),
    "fadas_": ("lr", "beta1", "beta2", "eps"),
}


@pytest.mark.parametrize("name", STATES)
@given(data=st.data(), n=SIZES, seed=st.integers(0, 2**31), shift=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_steps(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    unaligned: Callable[[bytes, int], memoryview],
    same_bits: Callable[[Any, Any], None],
    name: str,
    data: st.DataObject,
    n: int,
    seed: int,
    shift: int,
) -> None:
    """Three steps over any numbers, special ones too, wherever the arrays lie."""
    hyper = {key: data.draw(HYPER[key], key) for key in NAMES[name]}
    kinds = [data.draw(KINDS, "state") for _ in range(1 + STATES[name])]
    deltas = [data.draw(KINDS, "delta") for _ in range(3)]
    start = [vector(kind, n, seed + i) for i, kind in enumerate(kinds)]
    one = [np.frombuffer(unaligned(x.tobytes(), shift + i), np.float32) for i, x in enumerate(start)]
    other = [x.copy() for x in start]
    for step, kind in enumerate(deltas):
        delta = vector(kind, n, seed + 10 + step)
        getattr(native, name)(*one, delta, **hyper)
        getattr(reference, name)(*other, delta, **hyper)
        for a, b in zip(one, other, strict=True):
            same_bits(a, b)


@pytest.mark.parametrize("name", ["adam_", "yogi_", "fadas_"])
@given(
    st.floats(1e-4, 1),
    st.floats(0.5, 0.999),
    st.floats(0.5, 0.9999),
    st.integers(1, 6),
    st.integers(0, 2**31),
)
@settings(max_examples=20, deadline=None)
def test_steps_with_the_bias_corrected(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    same_bits: Callable[[Any, Any], None],
    name: str,
    lr: float,
    beta1: float,
    beta2: float,
    steps: int,
    seed: int,
) -> None:
    """A caller corrects the bias by the lr of each step, from state that starts at zero."""
    one, other = ([np.zeros(500, np.float32) for _ in range(1 + STATES[name])] for _ in range(2))
    for t in range(1, steps + 1):
        corrected = lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
        delta = vector("wide", 500, seed + t)
        getattr(native, name)(*one, delta, lr=corrected, beta1=beta1, beta2=beta2)
        getattr(reference, name)(*other, delta, lr=corrected, beta1=beta1, beta2=beta2)
    for a, b in zip(one, other, strict=True):
        same_bits(a, b)


def test_the_sign_of_yogi_has_three_values_and_keeps_a_nan(
    native: ModuleType, reference: ModuleType, same_bits: Callable[[Any, Any], None]
) -> None:
    """v above, at and below d², −0 against 0, and infinities whose difference is no number."""
    v = np.array([4, 4, 4, 0.0, -0.0, np.inf, np.inf, np.nan], np.float32)
    d = np.array([1, 2, 3, 0.0, 0.0, np.inf, 1, 1], np.float32)
    results = []
    for module in (native, reference):
        w, m, second = np.zeros(8, np.float32), np.zeros(8, np.float32), v.copy()
        module.yogi_(w, m, second, d, lr=0.1, beta2=0.5)
        results.append((w, m, second))
    for a, b in zip(*results, strict=True):
        same_bits(a, b)
    assert results[0][2][:3].tolist() == [3.5, 4.0, 8.5]
    assert np.signbit(results[0][2][3:5]).tolist() == [False, True]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", STATES)
def test_threads_share_a_large_step(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    same_bits: Callable[[Any, Any], None],
    name: str,
    threads: int,
) -> None:
    """Above the size where threads start to work, too."""
    results = []
    for module in (native, reference):
        arrays = [np.abs(vector("normal", 300_001, i)) for i in range(1 + STATES[name])]
        getattr(module, name)(*arrays, vector("normal", 300_001, 9), lr=0.1, threads=threads)
        results.append(arrays)
    for one, other in zip(*results, strict=True):
        same_bits(one, other)


@pytest.mark.parametrize("name", STATES)
def test_mistakes_are_told_alike(native: ModuleType, reference: ModuleType, name: str) -> None:
    """Each wrong number or array has the same type of error, which names it, and nothing was written."""
    count = 2 + STATES[name]
    read_only = np.ones(4, np.float32)
    read_only.flags.writeable = False
    good = dict.fromkeys(NAMES[name], 0.5)
    calls = [
        ([np.ones(4, np.float32) for _ in range(count)], good | {key: bad})
        for key in good
        for bad in (-1.0, np.nan, "1")
    ]
    for place in range(count):
        for wrong in (np.ones(5, np.float32), np.ones(4), [1.0] * 4, np.ones(8, np.float32)[::2], read_only):
            if place == count - 1 and wrong is read_only:
                continue  # the delta is only read
            arrays: list[Any] = [np.ones(4, np.float32) for _ in range(count)]
            arrays[place] = wrong
            calls.append((arrays, good))
    calls.append(([np.ones(4, np.float32) for _ in range(count)], good | {"threads": 0}))
    for arrays, hyper in calls:
        with pytest.raises((TypeError, ValueError)) as expected:
            getattr(reference, name)(*arrays, **hyper)
        with pytest.raises(expected.type) as found:
            getattr(native, name)(*arrays, **hyper)
        assert str(found.value).split()[0] == str(expected.value).split()[0]
        assert all((np.asarray(array) == 1).all() for array in arrays)
