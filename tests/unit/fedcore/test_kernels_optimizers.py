"""The contract of the server optimizers: the papers' formulas, in float64, in place."""

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sizes = st.sampled_from([0, 1, 7, 16_384, 16_385])

HYPER = {
    "sgd_": {"lr": 0.3},
    "momentum_": {"lr": 0.3, "beta": 0.8},
    "adagrad_": {"lr": 0.1, "eps": 1e-3},
    "adam_": {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3},
    "yogi_": {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3},
    "fadas_": {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3},
}
STATES = {"sgd_": 0, "momentum_": 1, "adagrad_": 1, "adam_": 2, "yogi_": 2, "fadas_": 3}

Step = Callable[..., tuple[float, ...]]


def sgd(w: float, d: float, lr: float) -> tuple[float, ...]:
    return (w + lr * d,)


def momentum(w: float, v: float, d: float, lr: float, beta: float) -> tuple[float, ...]:
    v = beta * v + d
    return w + lr * v, v


def adagrad(w: float, v: float, d: float, lr: float, eps: float) -> tuple[float, ...]:
    v = v + d * d
    return w + (lr * d) / (math.sqrt(v) + eps), v


def adam(
    w: float, m: float, v: float, d: float, lr: float, beta1: float, beta2: float, eps: float
) -> tuple[float, ...]:
    m = beta1 * m + (1 - beta1) * d
    v = beta2 * v + (1 - beta2) * (d * d)
    return w + (lr * m) / (math.sqrt(v) + eps), m, v


def yogi(
    w: float, m: float, v: float, d: float, lr: float, beta1: float, beta2: float, eps: float
) -> tuple[float, ...]:
    m = beta1 * m + (1 - beta1) * d
    sign = (v > d * d) - (v < d * d)
    v = v - ((1 - beta2) * (d * d)) * sign
    return w + (lr * m) / (math.sqrt(v) + eps), m, v


def fadas(
    w: float, m: float, v: float, vhat: float, d: float, lr: float, beta1: float, beta2: float, eps: float
) -> tuple[float, ...]:
    m = beta1 * m + (1 - beta1) * d
    v = beta2 * v + (1 - beta2) * (d * d)
    vhat = max(vhat, v)
    return w + (lr * m) / (math.sqrt(vhat) + eps), m, v, vhat


FORMULAS: dict[str, Step] = {
    "sgd_": sgd,
    "momentum_": momentum,
    "adagrad_": adagrad,
    "adam_": adam,
    "yogi_": yogi,
    "fadas_": fadas,
}


@pytest.mark.parametrize("name", HYPER)
@given(seed=st.integers(0, 2**32), n=sizes)
@settings(max_examples=6)
def test_steps_are_the_formulas(kernels: ModuleType, name: str, seed: int, n: int) -> None:
    """Three steps, element by element in plain Python, with parameters and state stored as float32."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(n).astype(np.float32)]
    arrays += [np.zeros(n, np.float32) for _ in range(STATES[name])]
    places = rng.integers(0, max(n, 1), min(n, 50))
    for _ in range(3):
        before = [array[places] for array in arrays]
        delta = rng.standard_normal(n).astype(np.float32)
        getattr(kernels, name)(*arrays, delta, **HYPER[name])
        rows = zip(*(array.tolist() for array in before), delta[places].tolist(), strict=True)
        expected = [FORMULAS[name](*row, *HYPER[name].values()) for row in rows]
        for array, values in zip(arrays, zip(*expected, strict=True), strict=False):
            assert array[places].tolist() == np.array(values).astype(np.float32).tolist()


@pytest.mark.parametrize("name", HYPER)
def test_steps_go_where_the_delta_points(kernels: ModuleType, name: str) -> None:
    """The delta is trained − base: the model moves with it, not against it."""
    arrays = [np.zeros(3, np.float32) for _ in range(1 + STATES[name])]
    getattr(kernels, name)(*arrays, np.array([1, -1, 0], np.float32), **HYPER[name])
    assert np.sign(arrays[0]).tolist() == [1, -1, 0]


def test_defaults_are_the_papers(kernels: ModuleType) -> None:
    """β = 0.9; β1 = 0.9, β2 = 0.99, ε = 1e-3."""
    for name in ("momentum_", "adagrad_", "adam_", "yogi_", "fadas_"):
        delta = np.array([0.5, -2.0], np.float32)
        plain, explicit = ([np.ones(2, np.float32) for _ in range(1 + STATES[name])] for _ in range(2))
        getattr(kernels, name)(*plain, delta, lr=0.1)
        hyper = HYPER[name] | {"lr": 0.1} | ({"beta": 0.9} if name == "momentum_" else {})
        getattr(kernels, name)(*explicit, delta, **hyper)
        for a, b in zip(plain, explicit, strict=True):
            assert (a == b).all()


def test_parameters_may_have_any_shape(kernels: ModuleType) -> None:
    """A matrix is stepped like the vector of its elements."""
    w, d = np.zeros((3, 4), np.float32), np.ones((3, 4), np.float32)
    kernels.sgd_(w, d, lr=0.5)
    assert (w == 0.5).all()


@pytest.mark.parametrize("name", HYPER)
@pytest.mark.parametrize("wrong", ["length", "dtype", "read-only", "strided", "hyper"])
def test_a_wrong_argument_changes_nothing(kernels: ModuleType, name: str, wrong: str) -> None:
    """Whichever array or number it is, the error comes before the first write."""
    step = getattr(kernels, name)
    for place in range(STATES[name] + 2):
        arrays = [np.ones(4, np.float32) for _ in range(STATES[name] + 2)]
        hyper = dict(HYPER[name])
        error: type[Exception] = ValueError
        if wrong == "length":
            arrays[place] = np.ones(5, np.float32)
        elif wrong == "dtype":
            arrays[place], error = np.ones(4), TypeError
        elif wrong == "strided":
            arrays[place] = np.ones(8, np.float32)[::2]
        elif wrong == "read-only":
            if place == len(arrays) - 1:
                continue  # the delta is only read
            arrays[place].flags.writeable = False
        else:
            hyper[list(hyper)[place % len(hyper)]] = math.nan
        with pytest.raises(error):
            step(*arrays, **hyper)
        assert all((array == 1).all() for array in arrays)
