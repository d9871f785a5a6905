"""`fedmq bench privacy`: that what it trains with is the mechanism whose price it tells."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedmq.cli.bench.privacy import plot, record_level
from fedmq.cli.bench.privacy.arms import Found, arms
from fedmq.cli.bench.privacy.earlier import recall
from fedmq.cli.bench.privacy.linear import Linear
from fedmq.cli.bench.privacy.measure import measure
from fedmq.cli.bench.privacy.report import Run, document, facts
from fedmq.cli.bench.privacy.settings import DELTA, FULL, Private
from fedmq.cli.bench.privacy.worker_level import WorkerLevel, _Group, noise_for, train_crowd
from fedmq.cli.bench.strategies import settings
from fedmq.cli.demo.data import Dataset, Shard
from fedmq.cli.main import fedmq
from fedmq.cli.progress import view
from fedmq.fedcore.errors import ConfigError
from fedmq.fedcore.privacy.accounting import Spend, epsilon, gaussian_epsilon

from .garments import write_garments

PRIVATE = Private(epochs=2, batch=50, max_grad_norm=0.5, lr=1.0, momentum=0.5)


def shard(count: int, features: int = 6) -> Shard:
    rng = np.random.default_rng(count)
    return Shard(rng.standard_normal((count, features)).astype(np.float32), rng.integers(0, 3, count))


def one_by_one(shard: Shard, flat: np.ndarray, max_norm: float) -> np.ndarray:
    """The clipped sum as its definition says, in float64."""
    weights = flat.reshape(3, -1).astype(np.float64)
    total = np.zeros_like(weights)
    for x, y in zip(shard.x.astype(np.float64), shard.y, strict=True):
        logits = weights @ np.append(x, 1)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        p[y] -= 1
        gradient = np.outer(p, np.append(x, 1))
        total += gradient * min(1.0, max_norm / np.linalg.norm(gradient))
    return total.ravel()


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 100.0])
def test_a_clipped_sum_is_that_of_single_gradients(max_norm: float) -> None:
    """However many examples are taken at a time."""
    examples = shard(700)
    flat = np.random.default_rng(3).standard_normal(21).astype(np.float32)
    found = Linear(examples, 3).clipped_gradient_sum(flat, np.arange(700), max_norm=max_norm)
    assert np.allclose(found, one_by_one(examples, flat, max_norm), rtol=1e-4, atol=1e-4)


def test_one_example_moves_the_sum_by_the_clip_norm_at_most() -> None:
    """Which is the sensitivity that the noise is calibrated for."""
    examples = shard(40)
    head, flat = Linear(examples, 3), np.zeros(21, np.float32)
    everybody = head.clipped_gradient_sum(flat, np.arange(40), max_norm=0.2)
    for left_out in range(40):
        others = np.delete(np.arange(40), left_out)
        rest = head.clipped_gradient_sum(flat, others, max_norm=0.2)
        assert np.linalg.norm(everybody - rest) <= 0.2 * 1.0001


def test_a_plan_costs_what_was_asked_for_with_the_mean_counted() -> None:
    """No more, and hardly less; by the accountant, of everything that is released."""
    plan = record_level.plan(
        PRIVATE, 50, 3.0, centred=True
    )  # everybody in each step: the accountant is quick
    assert (plan.sampling_rate, plan.steps, plan.divisor) == (1.0, 2, 50.0)
    steps = Spend(plan.noise_multiplier, 1.0, 2)
    together = epsilon([steps, Spend(record_level.MEAN_NOISE)], DELTA)
    assert 2.99 < together <= 3.0
    assert plan.epsilon() == together > epsilon([steps], DELTA)


def sampled_plan() -> record_level.Plan:
    """Of 200 records in two workers."""
    return record_level.Plan(
        private=PRIVATE,
        sampling_rate=0.1,
        steps=20,
        divisor=20.0,
        noise_multiplier=1.5,
        mean_noise=record_level.MEAN_NOISE,
    )


def test_sampled_steps_and_the_mean_cost_what_the_library_says() -> None:
    """Composed by hand, from what runs."""
    import dp_accounting as dp
    from dp_accounting import pld

    accountant = pld.PLDAccountant()
    accountant.compose(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.5)), 20)
    accountant.compose(dp.GaussianDpEvent(record_level.MEAN_NOISE))
    assert sampled_plan().epsilon() == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-3)


@pytest.mark.parametrize("noise_in_each", [False, True])
def test_the_means_noise_is_that_of_the_longest_row(noise_in_each: bool) -> None:
    """z √width over N; and one of every worker's, where each adds its own."""
    shards = [Shard(np.zeros((100, 900), np.float32), np.zeros(100, np.int64)) for _ in range(2)]
    found = record_level._mean(shards, sampled_plan(), noise_in_each=noise_in_each, seed=0)
    expected = record_level.MEAN_NOISE * 30 / 200 * (2**0.5 if noise_in_each else 1)
    assert found.std() == pytest.approx(expected, rel=0.1)


def test_rows_that_are_longer_than_the_noise_hides_are_refused() -> None:
    """The claim would be false."""
    shards = [Shard(np.full((3, 4), 1.1, np.float32), np.zeros(3, np.int64))]
    with pytest.raises(ValueError, match="norms of √4 at most"):
        record_level._mean(shards, sampled_plan(), noise_in_each=False, seed=0)


def test_without_a_budget_there_is_no_noise() -> None:
    """The same steps, and nothing to pay for."""
    plan = record_level.plan(PRIVATE, 1000, None, centred=True)
    assert (plan.noise_multiplier, plan.mean_noise, plan.steps) == (0.0, 0.0, 40)


@pytest.mark.parametrize(("in_each", "noises"), [(False, 1), (True, 9)])
def test_noise_is_drawn_once_or_by_each_worker(in_each: bool, noises: int) -> None:
    """Nine workers that each draw their own have three times the standard deviation of one."""
    plan = record_level.Plan(
        private=Private(epochs=1, batch=50, max_grad_norm=0.5, lr=1.0, momentum=0.0),
        sampling_rate=0.05,
        steps=1,
        divisor=50.0,
        noise_multiplier=2.0,
    )
    flat = np.zeros(40_000, np.float32)
    nothing = np.zeros(40_000, np.float32)
    record_level.gradient_steps(
        flat,
        lambda worker, sample, at: nothing,
        [100] * 9,
        plan,
        noise_in_each=in_each,
        seed=1,
        step=lambda number: None,
    )
    assert flat.std() == pytest.approx(2.0 * 0.5 / 50 * noises**0.5, rel=0.02)


def test_steps_without_noise_are_gradient_descent() -> None:
    """Whole batches, no clipping that bites: the plain sum, over D, with momentum."""
    examples = shard(30)
    head = Linear(examples, 3)
    plan = record_level.Plan(
        private=Private(epochs=2, batch=30, max_grad_norm=100.0, lr=0.5, momentum=0.9),
        sampling_rate=1.0,
        steps=2,
        divisor=30.0,
        noise_multiplier=0.0,
    )
    flat = np.zeros(21, np.float32)
    record_level.gradient_steps(
        flat,
        lambda worker, sample, at: head.clipped_gradient_sum(at, sample, max_norm=100.0),
        [30],
        plan,
        noise_in_each=False,
        seed=0,
        step=lambda number: None,
    )
    first = one_by_one(examples, np.zeros(21), 100.0) / 30
    second = one_by_one(examples, -0.5 * first, 100.0) / 30
    assert np.allclose(flat, -0.5 * first - 0.5 * (0.9 * first + second), atol=1e-5)


@pytest.mark.parametrize("versions", [1, 5, 20])
def test_worker_level_noise_composes_exactly(versions: int) -> None:
    """k releases with z are one with z/√k, and that is worth ε."""
    z = noise_for(3.0, DELTA, versions)
    assert gaussian_epsilon(z / versions**0.5, DELTA) == pytest.approx(3.0, rel=1e-6)
    assert gaussian_epsilon(z / versions**0.5, DELTA) <= 3.0


def blobs(count: int) -> Shard:
    y = np.arange(count) % 3
    x = np.random.default_rng(count).normal(0, 0.3, (count, 6)).astype(np.float32)
    x[np.arange(count), y] += 2
    return Shard(x, y.astype(np.int64))


def crowd(workers: int) -> WorkerLevel:
    return WorkerLevel(
        workers=workers, versions=5, max_norm=0.5, local_steps=5, local_lr=0.5, lr=1.0, momentum=0.0
    )


def test_the_more_workers_the_less_the_noise_hurts() -> None:
    """The same noise that leaves four workers nothing is nothing to four hundred."""
    dataset = Dataset("fashion-mnist", blobs(1200), blobs(300), classes=3)

    def accuracy(workers: int, noise: float) -> float:
        return train_crowd(dataset, crowd(workers), noise_multiplier=noise, seed=0, step=lambda number: None)

    assert accuracy(4, 0.0) > 0.95
    assert accuracy(400, 30.0) > 0.9
    assert accuracy(4, 30.0) < 0.8


@pytest.mark.parametrize("images", [4, 9])
def test_workers_side_by_side_train_as_one_alone_would(images: int) -> None:
    """Plain gradient descent on all images of each, however few or many images there are for six pixels."""
    shards = [blobs(images * (worker + 2)).take(np.arange(images)) for worker in range(3)]
    model = np.random.default_rng(1).standard_normal((3, 7)).astype(np.float32)
    found = _Group(shards).updates(model, crowd(3))
    for shard, update in zip(shards, found, strict=True):
        trained = model.astype(np.float64)
        x = np.column_stack([shard.x, np.ones(images)])
        for _ in range(5):
            logits = x @ trained.T
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(images), shard.y] -= 1
            trained -= 0.5 / images * p.T @ x
        assert np.allclose(update, (trained - model).ravel(), atol=1e-5)


def imagined(kinds: tuple[str, ...]) -> Run:
    """Of every arm of some kinds, as if it had run."""
    run = Run(setting=FULL, seeds=3, data="garments", measured_on="few")
    run.found.extend(
        Found(arm=arm, accuracies=[0.7, 0.8, 0.9], noise_multiplier=2.0 if arm.epsilon else 0.0)
        for arm in arms(FULL)
        if arm.kind in kinds
    )
    return run


HEAD = ("head", "once", "each")


def test_what_an_earlier_run_wrote_is_not_run_again(tmp_path: Path) -> None:
    """Not even features are computed; parts come together in the order of the table."""
    files = [tmp_path / "crowds.json", tmp_path / "head.json"]
    for file, kinds in zip(files, (("worker",), HEAD), strict=True):
        file.write_text(json.dumps(document(imagined(kinds))))
    again = imagined(())
    no_images = Dataset("garments", blobs(3), blobs(3), classes=3)
    known = recall(files, facts(again))
    with view() as shown:
        measure(
            again,
            ("once", "each", "worker"),
            no_images,
            settings.FULL,
            cache=None,
            shown=shown,
            earlier=known,
        )
    assert document(again) == document(imagined((*HEAD, "worker")))


def test_budgets_may_be_measured_one_by_one(tmp_path: Path) -> None:
    """A file of another --epsilon is of use; one of other settings is not."""
    file = tmp_path / "privacy.json"
    file.write_text(json.dumps(document(imagined(("worker",)))))
    other = imagined(())
    other.setting = msgspec.structs.replace(FULL, epsilons=(2.0,))
    assert len(recall([file], facts(other))) == 24
    other.setting = msgspec.structs.replace(FULL, once=PRIVATE)
    with pytest.raises(ConfigError, match="other setting"):
        recall([file], facts(other))


@pytest.mark.parametrize("kinds", [("central", "federated", "pixels"), ("worker",), ("once", "worker")])
def test_every_part_has_its_picture(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    """Record-level, worker-level, or both."""
    plot.draw(imagined(kinds), tmp_path / "privacy.png")
    assert (tmp_path / "privacy.png").read_bytes().startswith(b"\x89PNG")


def bench(folder: Path, *options: str) -> Result:
    command = ["bench", "privacy", "--quick", "--data-dir", str(folder), *options]
    return CliRunner().invoke(fedmq, command, catch_exceptions=False)


def test_the_whole_command_on_tiny_images(tmp_path: Path) -> None:
    """Every arm, every figure that a reader needs to check the claim, and the picture."""
    plot = tmp_path / "privacy.png"
    folder = write_garments(tmp_path / "garments")
    result = bench(folder, "--json", "-", "--plot", str(plot))
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    kinds = [each["arm"]["kind"] for each in found["arms"]]
    assert kinds == ["central", "federated", "pixels", "head", "once", "each"] + ["worker"] * 4
    for each in found["arms"]:
        assert 0 <= each["median"] <= 1
        assert (each["arm"]["epsilon"] is None) == (each["noise_multiplier"] == 0)
        assert each["spent"] <= (each["arm"]["epsilon"] or 0)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_part_of_it_and_other_budgets(tmp_path: Path) -> None:
    """Worker-level needs neither features nor the accounting library."""
    result = bench(write_garments(tmp_path / "garments"), "--only", "worker", "--epsilon", "8,2")
    assert result.exit_code == 0, result.output
    assert "worker-level" in result.stdout
    assert "record-level" not in result.stdout
    assert [line.split()[4] for line in result.stdout.splitlines() if line.startswith("softmax")] == [
        "none", "8", "2", "none", "8", "2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"), [(("--only", "some"), "network, once"), (("--epsilon", "0"), "list of numbers")]
)
def test_a_wrong_option_says_what_it_may_be(tmp_path: Path, options: tuple[str, str], says: str) -> None:
    """Before anything is read."""
    result = bench(tmp_path, *options)
    assert result.exit_code == 2
    assert says in result.output


def test_images_that_are_not_here(tmp_path: Path, fedmq: Any) -> None:
    """One line that says how to get them."""
    code, _, err = fedmq("bench", "privacy", "--data-dir", tmp_path)
    assert code == 2
    assert "apt install dataset-fashion-mnist" in err
