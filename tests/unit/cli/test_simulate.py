"""`fedmq simulate`: virtual time, and what it says about a crowd."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fedmq.broker.events import Commit, Reply
from fedmq.broker.rows import PauseRow
from fedmq.cli.main import fedmq
from fedmq.cli.simulate import crowd, distributions, engine
from fedmq.cli.simulate.engine import Simulation
from fedmq.cli.simulate.promises import Promises
from fedmq.cli.simulate.schedule import Line, Schedule
from fedmq.fedcore.config import AsyncMode, SyncMode, parse
from fedmq.fedcore.errors import ConfigError, FedmqError

SMALL = ("--workers", "30", "--versions", "5", "--buffer", "4", "--concurrency", "4")


def simulate(*options: str) -> dict[str, Any]:
    """The figures of a run."""
    result = run(*options, "--json", "-")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def run(*options: str) -> Result:
    return CliRunner().invoke(fedmq, ["simulate", *options])


def without_this_computer(figures: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on how fast the test runs."""
    return {name: value for name, value in figures.items() if name not in ("wall_s", "mind_us")}


def test_a_crowd_makes_its_versions() -> None:
    """As many as were asked for, of as many updates as a buffer takes."""
    found = simulate(*SMALL)
    assert (found["workers"], found["versions"], found["mode"]) == (30, 5, "async")
    assert found["updates"] >= 20
    assert found["half_s"] < found["virtual_s"]
    assert found["updates_per_s"] == pytest.approx(found["updates"] / found["virtual_s"])


def test_a_seed_gives_the_same_figures() -> None:
    """Another seed gives others."""
    options = (*SMALL, "--availability", "0.5:1min", "--dropout", "0.2")
    first, again, other = simulate(*options), simulate(*options), simulate(*options, "--seed", "1")
    assert without_this_computer(first) == without_this_computer(again)
    assert without_this_computer(first) != without_this_computer(other)


def test_slow_devices_take_longer() -> None:
    """Every fit ten times as long: the federation about ten times as long."""
    quick, slow = simulate(*SMALL, "--speed", "10s"), simulate(*SMALL, "--speed", "100s")
    assert 5 < slow["virtual_s"] / quick["virtual_s"] < 12


def test_transfers_take_time_where_there_is_a_bandwidth() -> None:
    """A model of 10 MiB at 1 MiB/s is ten seconds each way."""
    options = (*SMALL, "--speed", "1s")
    free = simulate(*options)
    narrow = simulate(*options, "--bandwidth", "1MiB", "--model-size", "10MiB")
    assert narrow["virtual_s"] > free["virtual_s"] + 5 * 20 - 20


def test_devices_that_die_come_back() -> None:
    """Their tasks go to others meanwhile, and the federation finishes."""
    found = simulate(*SMALL, "--dropout", "0.5")
    assert found["versions"] == 5
    assert found["died"] > 0


def test_devices_that_are_mostly_off_are_waited_for() -> None:
    """Half of the time is at least twice the time."""
    always, half = simulate(*SMALL), simulate(*SMALL, "--availability", "0.2:30s")
    assert half["versions"] == 5
    assert half["virtual_s"] > always["virtual_s"]


def test_rounds_are_simulated_as_well() -> None:
    """Nobody's update is stale in a round."""
    found = simulate("--mode", "sync", "--workers", "20", "--versions", "4", "--buffer", "5")
    assert (found["mode"], found["versions"], found["staleness_p99"]) == ("sync", 4, 0)


def test_a_federations_own_config_is_followed(tmp_path: Path) -> None:
    """Its mode, and where it stops."""
    file = tmp_path / "federation.toml"
    file.write_text('[mode]\nkind = "async"\nbuffer = 3\nconcurrency = 6\n[stop]\nversions = 7\n')
    found = simulate(str(file), "--workers", "10")
    assert (found["versions"], found["beat_s"]) == (7, 10.0)
    assert found["busy_mean"] <= 6
    assert simulate(str(file), "--workers", "10", "--versions", "3", "--beat", "1min")["beat_s"] == 60.0


@pytest.mark.parametrize(
    ("mode", "privacy"),
    [
        ('kind = "async"\nbuffer = 4', "max_participations = 3"),
        (
            'kind = "sync"\nmin_available = 10\ndeadline_s = 600.0',
            "sampling_rate = 0.5\nsteps = 4\ndivisor = 5.0\nwait_for = 'deadline'\n"
            "[privacy.adaptive_clip]\ncount_noise = 5.0",
        ),
    ],
    ids=["arrivals", "coin"],
)
def test_a_private_config_is_followed(tmp_path: Path, mode: str, privacy: str) -> None:
    """Workers come as often as they may, or where a coin takes them, which falls the same way under a seed."""
    file = tmp_path / "federation.toml"
    worker = 'unit = "worker"\nepsilon = 8.0\ndelta = 1e-5\nclip_norm = 1.0\nnoise_multiplier = 9.0'
    file.write_text(
        f'[model]\ninitial = "my_app:App"\n[mode]\n{mode}\n[stop]\nversions = 4\n[privacy]\n{worker}\n{privacy}\n'
    )
    found = simulate(str(file), "--workers", "10")
    assert (found["versions"], found["virtual_s"] >= 2400) == (4, "deadline_s" in mode)
    assert found["updates"] >= 16 if "async" in mode else 5 < found["updates"] < 35
    assert without_this_computer(simulate(str(file), "--workers", "10")) == without_this_computer(found)


def test_a_config_that_never_ends_needs_versions(tmp_path: Path) -> None:
    """Else the simulation would not end either."""
    file = tmp_path / "federation.toml"
    file.write_text('[mode]\nkind = "async"\n')
    result = run(str(file), "--workers", "10")
    assert isinstance(result.exception, ConfigError)
    assert "say --versions" in str(result.exception)


def test_digits_are_learned() -> None:
    """With --train digits the devices really train, and the broker really folds."""
    found = simulate("--train", "digits", "--workers", "10", "--versions", "12", "--buffer", "5")
    assert found["accuracy"] > 0.8


def test_the_report_is_for_people_where_no_json_is_asked_for() -> None:
    """One fact a line."""
    result = run(*SMALL)
    assert result.exit_code == 0
    for word in ("federation", "versions", "updates", "staleness", "messages", "this run"):
        assert f"\n{word}" in f"\n{result.stdout}"


def test_a_federation_that_cannot_go_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too long without a version: the broker's own reason, and what would help."""
    monkeypatch.setattr(engine, "STUCK_S", 3600.0)
    config = parse(
        '[mode]\nkind = "sync"\nmin_available = 5\n[stop]\nversions = 2\n[network]\nbeat_s = 3600\nlease_s = 86400\n'
    )
    instant = distributions.parse("fixed:1s")
    few = crowd.Crowd(workers=3, speed=instant, latency=instant, fsync=instant)
    simulation = Simulation(crowd.fitted(config, None, "noop"), few)
    with pytest.raises(FedmqError, match=r"60\.0 min of virtual time"):
        simulation.run(lambda version, updates, now: None)


@pytest.mark.parametrize(
    ("text", "mean"),
    [
        ("10s", 10.0),
        ("fixed:500ms", 0.5),
        ("uniform:1min,3min", 120.0),
        ("exponential:2h", 7200.0),
        ("lognormal:10s,0.5", 10 * math.exp(0.125)),
    ],
)
def test_a_distribution_has_the_mean_that_it_says(text: str, mean: float) -> None:
    """What is drawn from it agrees."""
    found = distributions.parse(text)
    draw = found.sampler(random.Random(1))
    assert found.mean == pytest.approx(mean)
    assert sum(draw() for _ in range(20_000)) / 20_000 == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gamma:1,2", "is no distribution"),
        ("lognormal:10s", "is no distribution"),
        ("soon", "is no number"),
        ("10parsec", "is no number"),
        ("exponential:0", "must be above 0"),
        ("uniform:5s,1s", "is below"),
    ],
)
def test_what_is_no_distribution_is_refused(text: str, says: str) -> None:
    """With what was written, and what may be."""
    with pytest.raises(ConfigError, match=says):
        distributions.parse(text)


@pytest.mark.parametrize("text", ["0", "1.5", "often", "0.5:soon"])
def test_what_is_no_availability_is_refused(text: str) -> None:
    """A share of the time is above 0 and at most 1."""
    with pytest.raises(ConfigError, match="--availability"):
        crowd.availability(text)


def test_a_crowd_beats_less_often() -> None:
    """A hundred thousand workers' BEATs every ten seconds would be all that a broker hears."""

    def made(workers: int, mode: str = "async") -> Any:
        return crowd.default_config(workers, 10, mode=mode, buffer=None, concurrency=None, beat_s=None)

    assert (made(100).network.beat_s, made(100_000).network.beat_s) == (10.0, 200.0)
    assert isinstance(made(10).mode, AsyncMode)
    assert isinstance(made(10, "sync").mode, SyncMode)


def test_time_jumps_from_one_thing_to_the_next() -> None:
    """What is due at one time happens in the order in which it was asked for."""
    schedule, seen = Schedule(), list[tuple[str, float]]()
    for name, at in (("c", 2.0), ("a", 1.0), ("b", 1.0)):
        schedule.at(at, lambda name=name: seen.append((name, schedule.now)))  # type: ignore[misc]
    while schedule.step():
        pass
    assert seen == [("a", 1.0), ("b", 1.0), ("c", 2.0)]


def test_a_line_keeps_order_whatever_the_delays() -> None:
    """A quick item waits for the slow one before it; a stall delays all, and a cut loses what is under way."""
    schedule, seen = Schedule(), list[tuple[int, float]]()
    delays = iter((5.0, 0.1, 0.1, 0.1))
    line: Line[int] = Line(schedule, lambda: next(delays), lambda item: seen.append((item, schedule.now)))
    line.put(1)
    line.put(2)
    line.stall(7.0)
    while schedule.step():
        pass
    assert seen == [(1, 7.0), (2, 7.0)]
    line.put(3, busy_s=2.0)
    line.put(4)
    line.cut()
    while schedule.step():
        pass
    assert len(seen) == 2


def test_promises_are_kept_in_order() -> None:
    """A commit without rows waits for those before it, and is carried out at once where there are none."""
    done: list[int] = []
    promises = Promises(
        lambda actions: done.extend(action.token for action in actions if isinstance(action, Reply))
    )

    def commit(token: int, *, rows: bool) -> Commit:
        return Commit((PauseRow(paused=True),) if rows else (), (Reply(token, {}),))

    assert not promises.add(commit(0, rows=False))
    assert done == [0]
    assert promises.add(commit(1, rows=True))
    assert not promises.add(commit(2, rows=False))
    assert promises.add(commit(3, rows=True))
    assert (done, len(promises)) == ([0], 3)
    promises.keep(1)
    assert done == [0, 1, 2]
    promises.keep(1)
    assert (done, len(promises)) == ([0, 1, 2, 3], 0)
