"""`fedmq privacy plan`: z, what it costs, what it does to a model; and no plan where noise would be all."""

import json

import pytest

from fedmq.broker.mechanism import mechanism
from fedmq.fedcore import config
from fedmq.fedcore.privacy.correlated_level import CorrelatedWorkerLevel
from fedmq.fedcore.privacy.participation import participations_epsilon
from fedmq.fedcore.privacy.sampled_workers import SampledWorkers

BUDGET = ("--epsilon", 8, "--delta", 1e-5)
ENOUGH = ("--workers", 200, "--buffer", 20, "--versions", 100, *BUDGET)
FEW = ("--workers", 5, "--buffer", 5, "--versions", 20, *BUDGET)


def test_it_says_the_noise_and_what_it_really_costs(fedmq) -> None:
    """Two decimals of z; its own ε, not the budget's."""
    code, out, err = fedmq("privacy", "plan", *ENOUGH)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "noise multiplier 1.90, rounded up" in text
    assert "100 versions of 20 out of 200 workers, each in 10 at most" in text
    assert "exact composition of 10 Gaussian releases" in text
    assert "0.095 a coordinate" in text


def test_the_tables_are_a_config_of_that_plan(fedmq) -> None:
    """What is printed can be pasted: the broker reads it, and finds its own noise to be enough."""
    out = fedmq("privacy", "plan", *ENOUGH)[1]
    read = config.parse(out.split("for federation.toml\n")[1])
    assert isinstance(read.privacy, config.WorkerPrivacy)
    assert read.privacy.max_participations == 10
    assert mechanism(read).noise_multiplier == 1.9
    assert mechanism(read).denominator == 20


def test_what_the_broker_does_not_do_has_no_table(fedmq) -> None:
    """Rounds that a draw takes."""
    rounds = ("--workers", 1000, "--versions", 10, "--mode", "sync", "--clients-per-round", 100)
    out = fedmq("privacy", "plan", *rounds, *BUDGET)[1]
    assert "[privacy]\n" not in out
    assert "no [privacy] table" in out


def test_json_has_every_figure(fedmq) -> None:
    """Unrounded, with the verdict."""
    found = json.loads(fedmq("privacy", "plan", *ENOUGH, "--json")[1])
    assert found["noise_multiplier"] == 1.9
    assert found["epsilon"] == participations_epsilon(1.9, 10, 1e-5)
    assert found["verdict"] == "fine"


def test_few_workers_are_refused_and_told_how_many_it_takes(fedmq) -> None:
    """Exit code 8, with the figures still there."""
    code, out, err = fedmq("privacy", "plan", *FEW)
    assert code == 8
    assert "DROWNED" in out
    assert err.startswith("fedmq: refused: with 5 workers worker-level privacy at epsilon 8 is noise")
    assert "it takes 52 workers, 52 of them in a version" in err
    code, out, _ = fedmq("privacy", "plan", *FEW, "--json")
    assert (code, json.loads(out)["workers_needed"]) == (8, 52)


def test_a_delta_that_gives_a_worker_away_is_warned_of(fedmq) -> None:
    """δ = 1/N is kept by publishing one worker's data."""
    out = fedmq("privacy", "plan", *ENOUGH, "--delta", 0.005)[1]
    assert "WARNING" in out
    assert "WARNING" not in fedmq("privacy", "plan", *ENOUGH)[1]


def test_rounds_may_be_sampled_or_whole(fedmq) -> None:
    """A coin, a draw, or everybody; what a coin decides can be pasted, and is enough noise for the broker."""
    rounds = (
        "privacy",
        "plan",
        "--workers",
        1000,
        "--versions",
        50,
        "--mode",
        "sync",
        "--epsilon",
        1,
        "--delta",
        1e-5,
    )
    coin = fedmq(*rounds, "--sampling-rate", 0.1)[1]
    draw = json.loads(fedmq(*rounds, "--clients-per-round", 100, "--json")[1])
    everybody = fedmq(*rounds)[1]
    assert "a secret coin takes 100 of 1000 workers on average" in " ".join(coin.split())
    assert draw["participation"] == "fixed"
    noise = []
    for out, rate in ((coin, 0.1), (everybody, 1.0)):
        read = config.parse(out.split("for federation.toml\n")[1])
        assert isinstance(read.privacy, config.SampledPrivacy)
        assert (read.privacy.sampling_rate, read.privacy.steps, read.privacy.divisor) == (
            rate,
            50,
            rate * 1000,
        )
        noise.append(mechanism(read).noise_multiplier)
    assert noise[0] < draw["noise_multiplier"] < noise[1]


def test_correlated_noise_says_what_has_to_be_kept(fedmq) -> None:
    """The separation that its ε assumes."""
    code, out, _ = fedmq("privacy", "plan", *ENOUGH, "--correlated", "--bandwidth", 4)
    assert code == 0
    assert "bandwidth 4; 5 versions from one participation of a worker to the next" in " ".join(out.split())
    read = config.parse(out.split("for federation.toml\n")[1])
    assert isinstance(read.privacy, config.WorkerPrivacy)
    assert read.privacy.correlated == config.Correlated(versions=100, min_separation=5, bandwidth=4)
    found = mechanism(read)
    assert isinstance(found, CorrelatedWorkerLevel)
    assert found.noise.participation.times == 10


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((*ENOUGH, "--max-participations", 9), 8, "allow 10 each, or make 90 versions"),
        (("--workers", 5, "--versions", 3, *BUDGET), 2, "--mode async needs --buffer"),
        ((*ENOUGH, "--sampling-rate", 0.1), 2, "workers that come by themselves are no sample"),
        ((*ENOUGH, "--mode", "sync"), 2, "go with --mode async"),
        ((*ENOUGH, "--bandwidth", 4), 2, "go with --correlated"),
        ((*ENOUGH[:-2],), 2, "Missing option '--delta'"),
    ],
)
def test_what_cannot_be_planned(fedmq, args: tuple[object, ...], code: int, message: str) -> None:
    """One line, with what could be instead."""
    found = fedmq("privacy", "plan", *args)
    assert found[:2] == (code, "")
    assert message in found[2]
    assert found[2].count("\n") == 1


@pytest.mark.parametrize("name", ["plan", "report"])
def test_help_teaches(fedmq, name: str) -> None:
    """A paragraph, and an example to copy."""
    code, out, _ = fedmq("privacy", name, "--help")
    assert code == 0
    assert f"fedmq privacy {name}" in out.split("Example:")[1].split("Options:")[0]


def test_a_clip_norm_that_follows_the_updates_is_planned_and_pasted(fedmq) -> None:
    """The same z for both sums, more noise on the one; the broker finds the same of what is pasted."""
    code, out, err = fedmq("privacy", "plan", *ENOUGH, "--buffer", 40, "--adaptive-clip")
    assert (code, err) == (0, "")
    assert "noise 2 on the count of updates" in " ".join(out.split())
    made = mechanism(config.parse(out.split("for federation.toml\n")[1]))
    constant, adaptive = (
        json.loads(fedmq("privacy", "plan", *ENOUGH, "--buffer", 40, *more, "--json")[1])
        for more in ((), ("--adaptive-clip",))
    )
    assert adaptive["noise_multiplier"] == constant["noise_multiplier"] == made.noise_multiplier
    assert adaptive["deviation"] == pytest.approx(made.sigma, rel=1e-12)
    assert adaptive["noise_share"] > constant["noise_share"]


def test_rounds_by_a_coin_have_a_clip_norm_that_follows_the_updates(fedmq) -> None:
    """A 20th of the expected sample is the count's noise, in the plan and for the broker."""
    rounds = ("--workers", 100, "--versions", 10, "--mode", "sync", "--sampling-rate", 1.0, *BUDGET)
    out = fedmq("privacy", "plan", *rounds, "--adaptive-clip")[1]
    assert "noise 5 on the count of updates" in " ".join(out.split())
    made = mechanism(config.parse(out.split("for federation.toml\n")[1]))
    planned = json.loads(fedmq("privacy", "plan", *rounds, "--adaptive-clip", "--json")[1])
    assert isinstance(made, SampledWorkers)
    assert made.clip.counted == (1.0, planned["count_noise"])
    assert (made.noise_multiplier, made.sigma) == (
        planned["noise_multiplier"],
        pytest.approx(planned["deviation"]),
    )


def test_a_count_that_would_cost_everything_is_refused(fedmq) -> None:
    """It says how many updates a version takes."""
    code, _, err = fedmq("privacy", "plan", *ENOUGH, "--epsilon", 4, "--adaptive-clip")
    assert code == 8
    assert "takes more than 34.2 of them in a version" in err
    assert "constant clip norm" in fedmq("privacy", "plan", *ENOUGH, "--adaptive-clip", "--correlated")[2]
