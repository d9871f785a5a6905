"""The private loop on numpy: exact sums, the noise that was promised, and what leaves the worker."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore import kernels
from fedmq.fedcore.errors import BudgetExhausted, ClientAppError, PrivacyError, TaskCancelled
from fedmq.fedcore.layout import Layout
from fedmq.fedcore.privacy.accounting import Spend
from fedmq.fedcore.state_dict import delta, flatten
from fedmq.worker.adapters.linear import LinearGradients, PrivateLinearApp
from fedmq.worker.client import check_fit
from fedmq.worker.privacy import GradientSum
from fedmq.worker.privacy.gradients import Trained, clipped_sum
from fedmq.worker.privacy.ledger import LEDGER, Ledger
from fedmq.worker.privacy.training import PrivateTraining, noisy_mean

from .private import Keys, all_rows, clipped_by_hand, plan, task

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3))
SOFTMAX = LinearGradients((X, RNG.integers(0, 4, 8)), kind="softmax", classes=4)
START = {"weight": RNG.normal(size=(4, 3)).astype(np.float32), "bias": np.zeros(4, np.float32)}
SUM = {"max_grad_norm": 0.5, "sampling_rate": 0.5}


@given(
    rows=st.integers(0, 5).flatmap(
        lambda b: st.lists(
            st.lists(st.floats(-1e3, 1e3, width=32), min_size=7, max_size=7), min_size=b, max_size=b
        )
    ),
    max_norm=st.floats(1e-3, 1e4),
)
def test_a_sum_is_the_sum_of_exactly_clipped_rows(rows: list[list[float]], max_norm: float) -> None:
    """As a plain loop in float64 has it, to the grid; no row weighs more than the clip norm; none is scaled up."""
    batch = np.array(rows, np.float32).reshape(-1, 7)
    sums, left_out = clipped_sum([batch[:2], batch[2:]], 7, max_grad_norm=max_norm)
    expected = sum(clipped_by_hand(batch.astype(np.float64), max_norm), np.zeros(7))
    np.testing.assert_allclose(sums.mean(1.0), expected, rtol=1e-6, atol=1e-8 * max_norm)
    assert left_out == 0
    unit = 2.0 ** kernels.frac_bits_for(max_norm, 1 << 24)
    for row in batch:
        alone, _ = clipped_sum([row[None]], 7, max_grad_norm=max_norm)
        assert math.sqrt(sum(int(v) ** 2 for v in alone.totals())) <= max_norm * unit


def test_a_row_that_is_not_finite_counts_as_zero() -> None:
    """NaN passes a comparison with the norm, and Inf makes NaN of everything; the others are summed."""
    rows = np.array([[1, 2], [math.nan, 0], [math.inf, 0], [3e38, 3e38], [-0.5, 1]], np.float32)
    sums, left_out = clipped_sum([rows], 2, max_grad_norm=10.0)
    assert left_out == 2
    np.testing.assert_allclose(sums.mean(1.0), np.array([0.5, 3]) + 10 / math.sqrt(2), rtol=1e-6)


def test_the_flat_vector_holds_what_is_trained_and_nothing_else() -> None:
    """There and back; other tensors and tied names go along."""
    trained = Trained({"b": (2, 2), "a": ()}, {"c": "b"})
    weights: dict[str, Any] = {
        "a": np.array(1.0),
        "b": np.ones((2, 2)),
        "c": np.ones((2, 2)),
        "k": np.array(7),
    }
    flat = trained.flatten(weights)
    assert (flat.dtype, flat.shape, trained.n) == (np.float32, (5,), 5)
    again = trained.unflatten(np.arange(5.0), weights)
    assert again["b"].tolist() == [[0, 1], [2, 3]]
    assert again["a"].shape == ()
    assert again["a"] == 4
    assert again["c"] is again["b"]
    assert again["k"] is weights["k"]


@pytest.mark.parametrize("kind", ["linear", "logistic", "softmax"])
def test_linear_gradients_are_what_calculus_says(kind: Any) -> None:
    """Each record's row is the difference quotient of its own loss."""
    y: Any = {"linear": RNG.normal(size=(8, 2)), "logistic": np.arange(8) % 2, "softmax": np.arange(8) % 3}[
        kind
    ]
    model = LinearGradients((X, y), kind=kind, classes=3 if kind == "softmax" else 0)
    flat = RNG.normal(size=model.trained.n).astype(np.float32)
    rows = all_rows(model, model.trained.unflatten(flat, {}))
    for i in range(8):
        one = LinearGradients((X[i : i + 1], y[i : i + 1]), kind=kind, classes=3 if kind == "softmax" else 0)

        def loss(at: np.ndarray[Any, Any], one: LinearGradients = one) -> float:
            return one.measure(one.trained.unflatten(at, {}))["loss"]

        for j in range(flat.size):
            step = np.zeros(flat.size)
            step[j] = 1e-4
            quotient = (loss(flat + step) - loss(flat - step)) / 2e-4
            assert rows[i, j] == pytest.approx(quotient, rel=1e-3, abs=1e-4)


def test_without_noise_to_speak_of_a_step_is_the_clipped_mean(tmp_path: Path) -> None:
    """w − lr · Σ clip(g) / D, D the constant and not the size of the batch."""
    training = PrivateTraining(
        plan(noise_multiplier=1e-9, sampling_rate=1.0, divisor=5.0, max_grad_norm=0.3), lr=0.2
    )
    fit = training.fit(SOFTMAX, START, task(tmp_path))
    rows = all_rows(SOFTMAX, START)
    expected = SOFTMAX.trained.flatten(START) - 0.2 * sum(clipped_by_hand(rows, 0.3), np.zeros(16)) / 5
    np.testing.assert_allclose(SOFTMAX.trained.flatten(fit.weights), expected, atol=1e-6)


def test_many_noisy_steps_have_the_mean_and_the_variance_of_dp_sgd() -> None:
    """E = q Σ clip(g) / D; the variance is the noise's, (zS/D)², and the coins', q(1 − q) Σ clip(g)² / D²."""
    chosen = plan(noise_multiplier=0.8, max_grad_norm=0.5, sampling_rate=0.3, divisor=2.0)
    flat, keys, steps = SOFTMAX.trained.flatten(START), Keys(1), 8000
    drawn = np.array([noisy_mean(SOFTMAX, flat, chosen, random=keys) for _ in range(steps)], np.float64)
    clipped = np.array(list(clipped_by_hand(all_rows(SOFTMAX, START), 0.5)))
    mean = 0.3 * clipped.sum(axis=0) / 2
    variance = ((0.8 * 0.5) ** 2 + 0.3 * 0.7 * np.square(clipped).sum(axis=0)) / 4
    assert (np.abs(drawn.mean(axis=0) - mean) / np.sqrt(variance / steps)).max() < 5
    assert np.abs(drawn.var(axis=0) / variance - 1).max() < 6 * math.sqrt(2 / steps)
    assert len(set(keys.drawn)) == 2 * steps, "a key of its own for every sample and for every noise"


def test_an_empty_batch_is_a_step_like_any_other(tmp_path: Path) -> None:
    """Noise over the divisor; nobody can tell that nobody was there. Also a worker without records steps."""
    nobody = LinearGradients((np.zeros((0, 3)), np.zeros(0, np.int64)), kind="softmax", classes=4)
    chosen = plan(sampling_rate=1e-12, divisor=2.0, max_grad_norm=0.5, noise_multiplier=2.0)
    for model in (SOFTMAX, nobody):
        flat, keys = SOFTMAX.trained.flatten(START), Keys(2)
        drawn = np.array([noisy_mean(model, flat, chosen, random=keys) for _ in range(500)])
        assert abs(drawn.std() / 0.5 - 1) < 5 / math.sqrt(2 * drawn.size)
        PrivateTraining(plan()).fit(model, START, task(tmp_path))
    assert Ledger(tmp_path).spent() == [Spend(1.0, 0.5, 2)]


def test_both_backends_give_the_same_bits() -> None:
    """Clip, sum, noise and mean, with the same keys."""
    flat = SOFTMAX.trained.flatten(START)
    results = []
    for backend in ("python", kernels.backend):
        with kernels.use(backend):
            results.append(noisy_mean(SOFTMAX, flat, plan(), random=Keys(3)).tobytes())
    assert results[0] == results[1]


def test_a_local_fit_is_a_number_of_steps_and_says_nothing_else(tmp_path: Path) -> None:
    """All steps of the task, committed at once; no metrics, and of the records only the public number."""
    training = PrivateTraining(plan(steps_per_task=3), random=Keys(4))
    fit = check_fit(training.fit(SOFTMAX, START, task(tmp_path)), START)
    assert (fit.examples, fit.metrics) == (8, {})
    assert Ledger(tmp_path).spent() == [Spend(1.0, 0.5, 3)]
    flat = SOFTMAX.trained.flatten(START)
    keys = Keys(4)
    for _ in range(3):
        flat -= np.float32(0.1) * noisy_mean(SOFTMAX, flat, training.privacy, random=keys)  # type: ignore[arg-type]
    np.testing.assert_array_equal(SOFTMAX.trained.flatten(fit.weights), flat)


def test_the_same_task_twice_is_spent_twice_and_drawn_twice(tmp_path: Path) -> None:
    """Whatever seed the broker gives: a second release is other noise, and is counted."""
    training = PrivateTraining(plan())
    first, second = (training.fit(SOFTMAX, START, task(tmp_path, seed=5)) for _ in range(2))
    assert not np.array_equal(first.weights["bias"], second.weights["bias"])
    assert Ledger(tmp_path).spent() == [Spend(1.0, 0.5, 2)]


def test_what_is_committed_is_committed_before_a_record_is_read(tmp_path: Path) -> None:
    """A training that fails at its first gradient has spent its steps."""

    class Fails(LinearGradients):
        def rows(self, flat: Any, indices: Any) -> Any:
            assert Ledger(tmp_path).spent() == [Spend(1.0, 1.0, 2)]
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        PrivateTraining(plan(sampling_rate=1.0, steps_per_task=2)).fit(
            Fails((X, np.zeros(8)), kind="linear"),
            {"weight": np.zeros((1, 3), np.float32), "bias": np.zeros(1, np.float32)},
            task(tmp_path),
        )
    assert Ledger(tmp_path).spent() == [Spend(1.0, 1.0, 2)]


def test_a_cancelled_task_stays_spent(tmp_path: Path) -> None:
    """It leaves between two steps; who cancels could else have the noise drawn again."""
    with pytest.raises(TaskCancelled):
        PrivateTraining(plan(steps_per_task=5)).fit(SOFTMAX, START, task(tmp_path, is_cancelled=lambda: True))
    assert Ledger(tmp_path).spent() == [Spend(1.0, 0.5, 5)]


def test_beyond_the_cap_there_is_no_fit_but_evaluation_goes_on(tmp_path: Path) -> None:
    """The app's answer is `privacy_budget`; public test data is measured all the same."""
    test = (X, np.arange(8) % 4)
    app = PrivateLinearApp(
        (X, np.arange(8) % 4), kind="softmax", classes=4, privacy=plan(max_steps=2), test=test, lr=0.5
    )
    weights = app.initial()
    for _ in range(2):
        weights = app.fit(weights, task(tmp_path)).weights
    for _ in range(2):
        with pytest.raises(BudgetExhausted, match=r"^privacy_budget: 2 steps"):
            app.fit(weights, task(tmp_path))
    assert app.kinds == ("fit", "evaluate")
    measured = app.evaluate(weights, task(tmp_path))
    assert set(measured.metrics) == {"loss", "accuracy"}


def test_nothing_is_trained_without_a_folder_for_the_ledger() -> None:
    """In either mode."""
    for privacy in (plan(), GradientSum(max_grad_norm=1.0, sampling_rate=0.5)):
        with pytest.raises(PrivacyError, match="needs a state folder"):
            PrivateTraining(privacy).fit(SOFTMAX, START, task(None))


def test_a_gradient_sum_is_what_the_broker_adds(tmp_path: Path) -> None:
    """Δ = −Σ clip(g) over a sample, unrounded however large the weights, with no noise, metrics or count."""
    weights = {name: array + np.float32(1000) for name, array in START.items()}
    rate_one = task(tmp_path, config={**SUM, "sampling_rate": 1})
    fit = check_fit(PrivateTraining(GradientSum()).fit(SOFTMAX, weights, rate_one), weights)
    assert (fit.examples, fit.metrics) == (1, {})
    layout = Layout.of(weights)
    update = delta(layout, flatten(layout, weights), fit.weights)
    total = sum(clipped_by_hand(all_rows(SOFTMAX, weights), 0.5), np.zeros(16))
    expected = flatten(layout, SOFTMAX.trained.unflatten(-total, weights))
    np.testing.assert_allclose(update, expected, rtol=1e-6, atol=1e-9)
    assert not (tmp_path / LEDGER).exists(), "the broker's ledger counts these"


def test_a_gradient_sum_that_is_asked_for_again_is_the_same(tmp_path: Path) -> None:
    """After a crash, by a restored broker, with another seed; another version or model has other coins."""

    def update(start: dict[str, Any], **changes: Any) -> Any:
        fit = PrivateTraining(GradientSum(**SUM)).fit(SOFTMAX, start, task(tmp_path, **changes))
        return SOFTMAX.trained.flatten(fit.weights)

    first = update(START, version=3)
    np.testing.assert_array_equal(first, update(START, version=3, seed=9))
    samples = {update(START, version=v).tobytes() for v in range(20)}
    assert len(samples) > 10


def test_gradients_that_are_not_finite_are_told_in_the_log_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The fit goes on as if the record were not there."""
    broken = X.copy()
    broken[2] = np.nan
    model = LinearGradients((broken, np.zeros(8)), kind="linear")
    weights = {"weight": np.zeros((1, 3), np.float32), "bias": np.zeros(1, np.float32)}
    with caplog.at_level(logging.WARNING, "fedmq.worker"):
        fit = PrivateTraining(plan(sampling_rate=1.0)).fit(model, weights, task(tmp_path))
    check_fit(fit, weights)
    assert "not finite count as zero" in caplog.text


@pytest.mark.parametrize("lr", [0, -1, float("nan"), "0.1", True])
def test_a_rate_that_is_none_is_refused_before_anything_is_spent(tmp_path: Path, lr: Any) -> None:
    """The [task] table overrides the app's."""
    with pytest.raises(ClientAppError, match="lr must be a positive number"):
        PrivateTraining(plan()).fit(SOFTMAX, START, task(tmp_path, config={"lr": lr}))
    assert Ledger(tmp_path).spent() == []


@pytest.mark.parametrize(
    ("data", "more", "says"),
    [
        ((X, np.zeros(8)), {"kind": "hinge"}, "kind must be one of linear, logistic, softmax"),
        ((X, np.zeros(8)), {"kind": "softmax"}, "softmax needs 2 or more"),
        ((X, np.zeros(8)), {"kind": "linear", "classes": 3}, "the others none"),
        ((X, np.zeros(8)), {"kind": "softmax", "classes": 3}, "y must hold whole numbers 0 … 2"),
        ((X, np.full(8, 3)), {"kind": "softmax", "classes": 3}, "y must hold whole numbers 0 … 2"),
        ((X, np.full(8, 2)), {"kind": "logistic"}, "y must hold 0 or 1"),
        ((X, np.zeros(7)), {"kind": "linear"}, r"data must be x\[n, features\] and y\[n\]"),
        ((X[0], np.zeros(3)), {"kind": "linear"}, "data must be"),
        ((X, np.array(["a"] * 8)), {"kind": "linear"}, "y must be numbers"),
    ],
)
def test_data_that_fits_no_model_is_refused_when_the_app_is_made(data: Any, more: Any, says: str) -> None:
    """Naming what is expected."""
    with pytest.raises(ClientAppError, match=says):
        PrivateLinearApp(data, privacy=plan(), **more)
