"""The contract of weighted_mean: three modes, each exactly what it says."""

import math
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.fedcore.codecs import ENCODINGS
from fedmq.fedcore.kernels import dyadic, frac_bits_for

KEY = bytes(32)

rows = st.lists(
    st.tuples(st.integers(0, 2**32), st.sampled_from(ENCODINGS), st.floats(0.01, 1000)),
    min_size=1,
    max_size=5,
)
sizes = st.sampled_from([0, 1, 5, 1024, 1025, 40_000])


def vector(seed: int, n: int) -> np.ndarray:
    """A repeatable float32 vector."""
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def encoded(kernels: ModuleType, updates: list, n: int) -> tuple[list[bytes], list[str], list[float], list]:
    """Payloads, their encodings, weights, and the values that they decode to."""
    names = [name for _, name, _ in updates]
    payloads = [kernels.encode(vector(seed, n), name, key=KEY) for seed, name, _ in updates]
    values = [kernels.decode(payload, name, n) for payload, name in zip(payloads, names, strict=True)]
    return payloads, names, [weight for _, _, weight in updates], values


@given(rows, sizes, st.none() | st.floats(0.5, 100))
@settings(max_examples=25)
def test_exact_is_an_accumulator_with_the_right_grid(
    kernels: ModuleType, updates: list, n: int, max_norm: float | None
) -> None:
    """F from the largest weight · norm after clipping; dyadic weights; divided by their sum."""
    payloads, names, weights, values = encoded(kernels, updates, n)
    made = kernels.weighted_mean(payloads, weights, encoding=names, max_norm=max_norm)

    bound = 0.0
    for weight, x in zip(weights, values, strict=True):
        norm = math.sqrt(kernels.sum_squares(x))
        factor = max_norm / norm if max_norm is not None and norm > max_norm else 1.0
        bound = max(bound, dyadic(weight) * factor * norm)
    total = kernels.Accumulator(n, frac_bits=frac_bits_for(bound, len(values)))
    for weight, x in zip(weights, values, strict=True):
        total.add(x, weight=weight, max_norm=max_norm)
    assert made.tobytes() == total.mean(math.fsum(dyadic(weight) for weight in weights)).tobytes()


@given(rows, st.randoms(use_true_random=False))
@settings(max_examples=15)
def test_exact_does_not_depend_on_the_order(kernels: ModuleType, updates: list, random: object) -> None:
    """Not even where F has to be derived."""
    payloads, names, weights, _ = encoded(kernels, updates, 3000)
    order = list(range(len(updates)))
    random.shuffle(order)
    shuffled = kernels.weighted_mean(
        [payloads[i] for i in order], [weights[i] for i in order], encoding=[names[i] for i in order]
    )
    assert kernels.weighted_mean(payloads, weights, encoding=names).tobytes() == shuffled.tobytes()


@given(rows, sizes, st.none() | st.floats(0.5, 100))
@settings(max_examples=25)
def test_f64_adds_in_order_in_float64(
    kernels: ModuleType, updates: list, n: int, max_norm: float | None
) -> None:
    """Row after row from +0, then one division, then float32."""
    payloads, names, weights, values = encoded(kernels, updates, n)
    sums, total = np.zeros(n), 0.0
    for weight, x in zip(weights, values, strict=True):
        norm = math.sqrt(kernels.sum_squares(x))
        factor = max_norm / norm if max_norm is not None and norm > max_norm else 1.0
        sums = sums + x.astype(np.float64) * (weight * factor)
        total += weight
    made = kernels.weighted_mean(payloads, weights, encoding=names, mode="f64", max_norm=max_norm)
    assert made.tobytes() == (sums / total).astype(np.float32).tobytes()


@given(rows, sizes)
@settings(max_examples=25)
def test_f32_adds_in_order_in_float32(kernels: ModuleType, updates: list, n: int) -> None:
    """Weights are divided by their sum first, and rounded to float32."""
    payloads, names, weights, values = encoded(kernels, updates, n)
    total = 0.0
    for weight in weights:
        total += weight
    sums = np.zeros(n, np.float32)
    for weight, x in zip(weights, values, strict=True):
        sums = sums + x * np.float32(weight / total)
    made = kernels.weighted_mean(payloads, weights, encoding=names, mode="f32")
    assert made.tobytes() == sums.tobytes()


@pytest.mark.parametrize("mode", ["exact", "f64", "f32"])
def test_every_mode_is_close_to_the_mean(kernels: ModuleType, mode: str) -> None:
    """Against numpy's average, to the accuracy of float32."""
    values = np.stack([vector(seed, 5000) for seed in range(9)])
    weights = np.arange(1, 10)
    made = kernels.weighted_mean(list(values), weights, mode=mode)
    assert made.dtype == np.float32
    assert made == pytest.approx(np.average(values.astype(np.float64), axis=0, weights=weights), abs=1e-6)


def test_clipping_bounds_the_pull_of_one_update(kernels: ModuleType) -> None:
    """A huge update counts no more than max_norm in any mode."""
    huge = np.full(4, 1e6, np.float32)
    for mode in ("exact", "f64", "f32"):
        made = kernels.weighted_mean([huge, np.zeros(4, np.float32)], [1, 1], mode=mode, max_norm=2.0)
        assert made == pytest.approx(np.full(4, 0.5), rel=1e-6)


def test_the_mean_can_be_written_where_the_caller_wants_it(kernels: ModuleType) -> None:
    """`out` is filled and returned."""
    out = np.zeros(3, np.float32)
    for mode in ("exact", "f64", "f32"):
        assert kernels.weighted_mean([np.ones(3, np.float32)], [2.0], mode=mode, out=out) is out
        assert out.tolist() == [1, 1, 1]
        out[:] = 0


@pytest.mark.parametrize("mode", ["exact", "f64", "f32"])
def test_a_payload_that_is_not_finite_is_refused_by_place(kernels: ModuleType, mode: str) -> None:
    """Where norms are needed or integers made; `out` keeps what it held."""
    bad = np.array([1, math.nan], np.float32)
    out = np.full(2, 7, np.float32)
    with pytest.raises(ValueError, match=r"payloads\[1\]"):
        kernels.weighted_mean([np.ones(2, np.float32), bad], [1, 1], mode=mode, max_norm=1.0, out=out)
    if mode == "exact":
        for frac_bits in (None, 20):
            with pytest.raises(ValueError, match=r"payloads\[1\]"):
                kernels.weighted_mean([np.ones(2, np.float32), bad], [1, 1], frac_bits=frac_bits, out=out)
    assert out.tolist() == [7, 7]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"payloads": []}, ValueError, "payloads"),
        ({"payloads": [np.ones(2, np.float32), np.ones(3, np.float32)]}, ValueError, r"payloads\[1\]"),
        ({"weights": [1.0]}, ValueError, "weights"),
        ({"weights": [0.0, 0.0]}, ValueError, "weights"),
        ({"weights": [1.0, -1.0]}, ValueError, r"weights\[1\]"),
        ({"weights": [math.nan, 1.0]}, ValueError, r"weights\[0\]"),
        ({"weights": [1.0, 2.0**33]}, ValueError, r"weights\[1\]"),
        ({"weights": [1e-9, 1e-9]}, ValueError, "weights"),
        ({"mode": "mean"}, ValueError, "mode"),
        ({"encoding": "f64"}, ValueError, "encoding"),
        ({"encoding": ["f32"]}, ValueError, "encoding"),
        ({"max_norm": 0.0}, ValueError, "max_norm"),
        ({"frac_bits": 101}, ValueError, "frac_bits"),
        ({"threads": 0}, ValueError, "threads"),
        ({"out": np.zeros(3, np.float32)}, ValueError, "out"),
        ({"out": np.zeros(2)}, TypeError, "out"),
    ],
)
def test_wrong_arguments_are_named(kernels: ModuleType, change: dict, error: type, match: str) -> None:
    """Each mistake has its type and names its argument."""
    arguments = {"payloads": [np.ones(2, np.float32)] * 2, "weights": [1.0, 1.0]} | change
    with pytest.raises(error, match=match):
        kernels.weighted_mean(arguments.pop("payloads"), arguments.pop("weights"), **arguments)
