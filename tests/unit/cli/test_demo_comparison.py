"""The demo's settings make federations that the broker takes, and reach what the project promises."""

from typing import Any

import msgspec
import pytest

from fedmq.cli.demo import comparison, data
from fedmq.cli.demo.app import app
from fedmq.cli.demo.settings import DELTA, EPSILON, DemoSettings, Plain, settings
from fedmq.fedcore import config
from fedmq.fedcore.errors import ConfigError
from fedmq.fedcore.privacy.accounting import Spend, epsilon

DIGITS = data.load("digits")
NOISE = 6.334  # what `calibrated_noise` gives; test_the_noise_is_calibrated_from_the_budget holds it to that


def chosen(mode: str = "sync", **options: Any) -> DemoSettings:
    """Settings for digits."""
    return settings("digits", mode, train_size=len(DIGITS.train), **options)


@pytest.mark.parametrize("name", data.DATA_SETS)
@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("workers", [1, 2, 5, 50])
def test_the_tables_are_a_valid_federation(name: str, mode: str, workers: int) -> None:
    """Both arms' files are read without complaint, whatever was chosen."""
    made = settings(name, mode, train_size=1000, workers=workers)
    plain = config.parse(made.federation(), base_dir=".")
    assert plain.mode.kind == mode
    assert plain.privacy is None
    private = config.parse(made.private_federation(), base_dir=".")
    assert private.privacy is not None
    assert private.mode.kind == "sync"
    assert private.stop.versions == private.privacy.steps
    assert (private.privacy.epsilon, private.privacy.delta) == (EPSILON, DELTA)


def test_the_asynchronous_buffer_never_waits_for_everybody() -> None:
    """Half of the workers make a version, so that it cannot stall for want of workers."""
    assert [chosen("async", workers=n).buffer for n in (1, 2, 3, 5, 10)] == [1, 1, 2, 3, 5]


def test_in_synchronous_mode_the_cohort_is_all_workers() -> None:
    """No over-selection, no deadline: the same rounds every time."""
    mode = config.parse(chosen(workers=7).federation(), base_dir=".").mode
    assert isinstance(mode, config.SyncMode)
    assert (mode.min_available, mode.clients_per_round, mode.over_selection, mode.deadline_s) == (
        7,
        0,
        1.0,
        0.0,
    )


def test_nodes_are_what_the_app_takes() -> None:
    """Counted from one, as people count."""
    made = chosen(partition="dirichlet:0.5", seed=3)
    assert made.node(2) == {"data": "digits", "shard": "3/5", "partition": "dirichlet:0.5", "seed": "3"}
    assert len(app(made.node(4)).train_shard) >= 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": "cifar"}, "choose from digits"),
        ({"mode": "both"}, "choose async or sync"),
        ({"workers": 0}, "workers must be"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_out_of_range_are_refused(options: Any, says: str) -> None:
    """By what there is to choose from."""
    with pytest.raises(ConfigError, match=says):
        settings(**{"data": "digits", "mode": "sync", "train_size": 1000, **options})


def test_the_noise_is_calibrated_from_the_budget() -> None:
    """ε = 3 at δ = 1e-5 for the planned steps, and hardly less."""
    noise = comparison.calibrated_noise(chosen())
    assert noise == pytest.approx(NOISE, abs=2e-3)
    private = chosen().private
    spent = epsilon([Spend(noise, private.sampling_rate, private.steps)], DELTA)
    assert 0.99 * EPSILON < spent <= EPSILON


def test_the_three_arms_reach_what_is_promised() -> None:
    """Centralised ≥ 97 %, federated within 1.5 points of it, private ≥ 90 %, on images nobody trained on."""
    made = chosen()
    apps = [app(made.node(i)) for i in range(5)]
    central = comparison.centralized(DIGITS, made).accuracy
    assert central >= 0.97
    assert comparison.federated(DIGITS, made, apps).accuracy >= central - 0.015
    assert comparison.federated(DIGITS, chosen("async"), apps).accuracy >= central - 0.015
    assert comparison.federated_private(DIGITS, made, apps, noise_multiplier=NOISE).accuracy >= 0.90


def test_a_federation_of_skewed_shards_still_learns() -> None:
    """Dirichlet 0.5: some workers have never seen some digits."""
    made = chosen("async", partition="dirichlet:0.5", seed=1)
    apps = [app(made.node(i)) for i in range(5)]
    assert comparison.federated(DIGITS, made, apps).accuracy >= 0.95


def test_a_run_can_be_repeated() -> None:
    """To the bit, with the same seed, in the asynchronous reference as well."""
    made = chosen("async", workers=2)
    plain = Plain(versions=3, epochs=1, batch=64, lr=0.1, central_epochs=1, central_lr=0.1)
    short = msgspec.structs.replace(made, plain=plain)
    runs = [comparison.federated(DIGITS, short, [app(short.node(i)) for i in range(2)]) for _ in range(2)]
    assert runs[0] == runs[1]
    assert comparison.centralized(DIGITS, short) == comparison.centralized(DIGITS, short)
