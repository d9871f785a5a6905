"""FedAvg and the server optimizers beside Flower's strategies, round by round on the same results.

Flower's are float32 in their sums and states, so they agree to a few roundings. Where the arithmetic differs, a test
says how: FedAdam corrects its bias with the exponent of the round after.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from fedmq.fedcore import config, kernels
from fedmq.fedcore.strategy import optimizers, rules

from .flower import Code, FitRes, Status, aggregate, ndarrays_to_parameters, parameters_to_ndarrays
from .flower import strategy as flower

F32 = NDArray[np.float32]

START = np.random.default_rng(1).normal(size=50).astype(np.float32)
ROUNDS = 6


def trained(round_: int, w: F32) -> list[tuple[F32, int]]:
    """What three clients make of a model: their weights and numbers of examples."""
    rng = np.random.default_rng(round_)
    return [((w + rng.normal(size=50) * 0.1).astype(np.float32), n) for n in (600, 50, 10)]


def ours(table: Any, change: Callable[[Any], Any] = lambda optimizer: optimizer) -> list[F32]:
    """The versions that our parts make."""
    optimizer = change(optimizers.make(table))
    w, state, mean = START.copy(), optimizer.init(50), rules.Mean("examples")
    made = []
    for step in range(1, ROUNDS + 1):
        results = trained(step, w)
        shares = [mean.share(examples=n, tau=0) for _, n in results]
        total = kernels.Accumulator(50, frac_bits=30)
        for share, (x, _) in zip(shares, results, strict=True):
            total.add(x - w, weight=share.weight)
        optimizer.apply(w, state, total.mean(rules.denominator(shares)), step=step)
        made.append(w.copy())
    return made


def theirs(kind: Any, **options: Any) -> list[F32]:
    """The versions that a strategy of Flower's makes."""
    strategy = kind(
        initial_parameters=ndarrays_to_parameters([START]),
        fit_metrics_aggregation_fn=lambda metrics: {},
        **options,
    )
    w, made = START, []
    for round_ in range(1, ROUNDS + 1):
        results: list[tuple[Any, FitRes]] = [
            (None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters([x]), n, {}))
            for x, n in trained(round_, w)
        ]
        parameters, _ = strategy.aggregate_fit(round_, results, [])
        (array,) = parameters_to_ndarrays(parameters)
        w = array.astype(np.float32)
        made.append(w)
    return made


def compare(found: list[F32], expected: list[F32]) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_fedavg() -> None:
    """The same mean."""
    (expected,) = zip(*[aggregate.aggregate([([x], n) for x, n in trained(1, START)])], strict=True)
    np.testing.assert_allclose(ours(config.Sgd())[0], expected[0], rtol=1e-5, atol=1e-6)
    compare(ours(config.Sgd()), theirs(flower.FedAvg))


def test_fedavgm() -> None:
    """The same; its pseudo-gradient is −d."""
    compare(
        ours(config.Momentum(lr=0.7, beta=0.8)),
        theirs(flower.FedAvgM, server_learning_rate=0.7, server_momentum=0.8),
    )


def test_fedadagrad() -> None:
    """The same; ε is called tau."""
    compare(ours(config.Adagrad(lr=0.1, eps=1e-3)), theirs(flower.FedAdagrad, eta=0.1, tau=1e-3))


def test_fedyogi() -> None:
    """The same: neither corrects its bias."""
    options = {"eta": 0.02, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-3}
    compare(ours(config.Yogi(lr=0.02, beta1=0.8, beta2=0.95)), theirs(flower.FedYogi, **options))


OPTIONS = {"eta": 0.02, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-3}


def test_fedadam_corrects_with_the_next_rounds_exponent() -> None:
    """Where they differ: Flower's first round has √(1 − β₂²) / (1 − β₁²), Adam's paper (and we) β₂ and β₁."""
    table = config.Adam(lr=0.02, beta1=0.8, beta2=0.95, bias_correction=True)

    def later(optimizer: optimizers.ServerOptimizer) -> optimizers.ServerOptimizer:
        rate = optimizer.rate
        return msgspec.structs.replace(optimizer, rate=lambda step, tau: rate(step + 1, tau))

    expected = theirs(flower.FedAdam, **OPTIONS)
    compare(ours(table, later), expected)
    first = (1 - 0.95**2) ** 0.5 / (1 - 0.8**2) / ((1 - 0.95) ** 0.5 / (1 - 0.8))
    ratio = (expected[0] - START) / (ours(table)[0] - START)
    assert np.median(ratio) == pytest.approx(first, rel=1e-3)


def test_fedadam_without_correction_is_the_papers() -> None:
    """Where they differ: algorithm 2 of 2003.00295 corrects nothing, and that is our default."""
    plain = ours(config.Adam(lr=0.02, beta1=0.8, beta2=0.95))
    factor = (1 - 0.95**2) ** 0.5 / (1 - 0.8**2)
    flowers = theirs(flower.FedAdam, **OPTIONS)
    assert np.median((flowers[0] - START) / (plain[0] - START)) == pytest.approx(factor, rel=1e-3)
