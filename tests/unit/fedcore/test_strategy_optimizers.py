"""Server optimizers: the config's tables, their state, and rates that depend on the whole step."""

import math
from typing import Any

import numpy as np
import pytest

from fedmq.fedcore import config
from fedmq.fedcore.strategy import optimizers
from fedmq.fedcore.strategy.optimizers import Mixing, ServerOptimizer

DELTA = np.array([0.5, -1.0, 0.0, 3.0], np.float32)
TABLES: list[Any] = [
    config.Sgd(lr=0.5),
    config.Momentum(lr=0.5, beta=0.9),
    config.Adagrad(lr=0.1),
    config.Adam(lr=0.1),
    config.Adam(lr=0.1, bias_correction=True),
    config.Yogi(lr=0.1),
    config.Fadas(lr=0.1),
]


def make(table: Any) -> ServerOptimizer:
    """One that steps along the combined update: all but FedAsync."""
    made = optimizers.make(table)
    assert isinstance(made, ServerOptimizer)
    return made


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_every_table_makes_an_optimizer_that_moves_along_the_update(table: Any) -> None:
    """State of the model's length, zeros first; a step goes where the delta points."""
    optimizer = make(table)
    params, state = np.zeros(4, np.float32), optimizer.init(4)
    assert [vector.tolist() for vector in state] == [[0.0] * 4] * len(optimizer.slots)
    optimizer.apply(params, state, DELTA, step=1)
    np.testing.assert_array_equal(np.sign(params), np.sign(DELTA))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_tiles_give_the_bits_of_the_whole(table: Any) -> None:
    """An aggregator may apply it tile by tile."""
    optimizer = make(table)
    rng = np.random.default_rng(0)
    whole, tiled = (np.ones(100, np.float32) for _ in range(2))
    state, parts = optimizer.init(100), optimizer.init(100)
    for step in (1, 2, 3):
        delta = rng.normal(size=100).astype(np.float32)
        optimizer.apply(whole, state, delta, step=step, tau_max=9)
        for at in (slice(0, 37), slice(37, 100)):
            optimizer.apply(tiled[at], [vector[at] for vector in parts], delta[at], step=step, tau_max=9)
    np.testing.assert_array_equal(whole, tiled)


def test_plain_averaging_is_sgd_with_a_rate_of_one() -> None:
    """FedAvg and FedBuff add the combined update."""
    params = np.ones(4, np.float32)
    make(config.Sgd()).apply(params, (), DELTA, step=1)
    np.testing.assert_array_equal(params, 1 + DELTA)


def test_momentum_remembers() -> None:
    """v = βv + d; w += ηv."""
    optimizer = make(config.Momentum(lr=1.0, beta=0.5))
    params, state = np.zeros(1, np.float32), optimizer.init(1)
    for step in (1, 2, 3):
        optimizer.apply(params, state, np.ones(1, np.float32), step=step)
    assert params[0] == 1 + 1.5 + 1.75


def test_bias_correction_is_adams() -> None:
    """With it the first step of Adam has the size of the rate, whatever the betas."""
    for beta1, beta2 in ((0.9, 0.99), (0.5, 0.999)):
        optimizer = make(config.Adam(lr=0.1, beta1=beta1, beta2=beta2, eps=1e-12, bias_correction=True))
        params, state = np.zeros(1, np.float32), optimizer.init(1)
        optimizer.apply(params, state, np.full(1, 7, np.float32), step=1)
        assert params[0] == pytest.approx(0.1, rel=1e-5)
    assert optimizer.rate(10**6, 0) == pytest.approx(0.1)


def test_fadas_slows_down_for_late_updates() -> None:
    """η up to the threshold, then min(η, 1/τ_max)."""
    rate = make(config.Fadas(lr=0.1, delay_threshold=5)).rate
    assert [rate(1, tau) for tau in (0, 5, 6, 20)] == [0.1, 0.1, 0.1, 0.05]
    assert make(config.Fadas(lr=1.0, delay_threshold=1)).rate(1, 4) == 0.25
    assert math.isclose(make(config.Sgd(lr=0.3)).rate(7, 100), 0.3)


def test_state_of_another_optimizer_is_refused() -> None:
    """A state folder of momentum does not continue as Adam."""
    with pytest.raises(ValueError, match="adam_ keeps 2 state vectors, got 1"):
        make(config.Adam()).apply(np.zeros(1, np.float32), [np.zeros(1, np.float32)], DELTA[:1], step=1)


class TestMixing:
    """FedAsync: w ← (1 − α s) w + α s (b + Δ)."""

    def test_by_hand(self) -> None:
        """w = 10, b = 8, Δ = 4, s = ½, α = ¾: 10 + ⅜ (12 − 10), and all of it is exact."""
        w = np.array([10, -10], np.float32)
        mixing = optimizers.make(config.FedAsync(alpha=0.75))
        assert mixing == Mixing(0.75)
        Mixing(0.75).apply(w, np.array([2, -2], np.float32), np.array([8, -8], np.float32), share=0.5)
        assert w.tolist() == [10.75, -10.75]

    def test_a_fresh_update_is_a_step_along_it(self) -> None:
        """Then b is w, and what is left is w + α Δ: sgd with a rate of α, to the bit."""
        rng = np.random.default_rng(5)
        w, d = (rng.normal(size=40_000).astype(np.float32) for _ in range(2))
        mixed, stepped = w.copy(), w.copy()
        Mixing(0.6).apply(mixed, d, w, share=1.0)
        make(config.Sgd(lr=0.6)).apply(stepped, (), d, step=1)
        np.testing.assert_array_equal(mixed, stepped)

    def test_alpha_of_one_forgets_the_model(self) -> None:
        """A fresh update replaces it by what was trained; a late one half as far, with s = ½."""
        w, base, x = np.full(1, 4, np.float32), np.full(1, 1, np.float32), 9.0
        Mixing(1.0).apply(w, np.full(1, 0.5 * (x - 1), np.float32), base, share=0.5)
        assert w.tolist() == [(4 + x) / 2]

    def test_its_bits_are_those_of_python(self) -> None:
        """One float64 expression in a fixed order, rounded to float32 once; pieces do not show."""
        rng = np.random.default_rng(6)
        w, base, d = (rng.normal(size=20_000).astype(np.float32) for _ in range(3))
        expected = [
            w + 0.6 * (0.3 * (b - w) + d)
            for w, b, d in zip(w.tolist(), base.tolist(), d.tolist(), strict=True)
        ]
        Mixing(0.6).apply(w, d, base, share=0.3)
        np.testing.assert_array_equal(w, np.array(expected).astype(np.float32))
