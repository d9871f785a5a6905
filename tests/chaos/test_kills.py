"""Broker and workers are killed (SIGKILL) at random moments, a hundred times in a long round.

Asynchronously, the model is the sum of what the journal says was accepted. Synchronously, with everybody in every
round and a fixed seed, every version has the bytes that an undisturbed run gives it.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..integration.federation import Federation, Tables, events
from . import marked
from .marked import MARKED, Recovery, judge
from .rounds import times
from .tally import Tally

KILLS = times(20, 100)
ROUNDS_KILLS = times(4, 100)
WORKERS = 3
ROUNDS: Tables = {
    "federation": {"seed": 11},
    "mode": {"kind": "sync", "min_available": WORKERS, "deadline_s": 0.0},
    "optimizer": {"kind": "momentum", "lr": 0.5, "beta": 0.9},
    "network": {"beat_s": 0.2, "lease_s": 1.0},
    "storage": {"keep": 3},
}


def kill_at_random(
    f: Federation, rng: random.Random, kills: int, tally: Tally, mode: str, restart: Callable[[int], None]
) -> None:
    """Kill the broker or a worker, again and again; half of the time before anybody has recovered."""
    killed = []
    for _ in range(kills):
        time.sleep(rng.uniform(0.0, 0.5))
        victim = rng.choice(["broker", *f.workers])
        if rng.random() < 0.4:
            victim = "broker"
        killed.append(victim)
        if victim == "broker":
            assert f.broker is not None
            f.broker.kill()
            time.sleep(rng.choice([0, 0, 0.5]))
            recovery = Recovery(f)
            f.start_broker()
        else:
            f.workers[victim].kill()
            recovery = Recovery(f, victim)
            restart(int(victim[1:]))
        fault = f"{'broker' if victim == 'broker' else 'worker'} killed (SIGKILL), {mode}"
        tally.injected(fault, recovery.wait() if rng.random() < 0.5 else None)
    print("killed:", " ".join(killed))


@pytest.mark.timeout(120 + 15 * KILLS)
def test_an_asynchronous_federation_is_killed(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    """No update whose acceptance was said is lost, and none is counted twice: see `marked`."""
    with Federation(tmp_path, MARKED) as f:
        marked.start(f)
        kill_at_random(f, rng, KILLS, tally, "asynchronous", lambda number: marked.start_worker(f, number))
        marked.finish(f)
        verdict = judge(f, rng)
        assert verdict.told > KILLS, "few were told anything: this shows little"
        tally.judged(
            [f"{who} killed (SIGKILL), asynchronous" for who in ("broker", "worker")],
            verdict.lost,
            verdict.twice,
        )


@pytest.mark.timeout(180 + 15 * ROUNDS_KILLS)
@pytest.mark.parametrize("n", [10_000, 20_000], ids=["inline", "spooled"])
def test_a_synchronous_federation_is_killed(tmp_path: Path, rng: random.Random, tally: Tally, n: int) -> None:
    """Every version, byte for byte, is that of a run that nobody disturbed."""
    with Federation(tmp_path / "killed", ROUNDS) as f:

        def start_worker(number: int, delay: float = 0.05) -> None:
            name = f"w{number}"
            f.start_worker(name, "tiny:App", "--log-format", "json", number=number, n=n, delay=delay)

        f.start_broker()
        for number in range(1, WORKERS + 1):
            start_worker(number)
        f.wait_for_version(1)
        kill_at_random(f, rng, ROUNDS_KILLS, tally, "synchronous", start_worker)
        f.wait_for_more(2)
        f.cli("stop", "--finish")
        f.finish()
        digests = [row["digest"] for row in f.history()]
        versions = len(digests) - 1
        told = [
            event["task"]
            for worker in f.workers.values()
            for event in events(worker)
            if event["event"] == "update accepted" and event["kind"] == "fit" and "result" not in event
        ]
        rows = f.query("SELECT task, worker, buffer, version FROM updates")
        lost = len(set(told) - {task.hex() for task, *_ in rows})
        twice = len(told) - len(set(told)) + len(rows) - len({(who, buffer) for _, who, buffer, _ in rows})
        made = [version for *_, version in rows if version is not None]
        print(f"{versions} versions, {len(made)} of {len(rows)} updates in them, lost {lost}, twice {twice}")
        assert (lost, twice, len(made)) == (0, 0, WORKERS * versions)
        # The operator may end it between two updates of a round: what was accepted is in that round, and nowhere else.
        for *_, buffer, version in rows:
            assert version == buffer + 1 if version is not None else buffer == versions
        tally.judged([f"{who} killed (SIGKILL), synchronous" for who in ("broker", "worker")], lost, twice)
    assert undisturbed(tmp_path / "undisturbed", n, versions) == digests


def undisturbed(folder: Path, n: int, versions: int) -> list[str]:
    """The digest of every version of a run in peace."""
    with Federation(folder, {**ROUNDS, "stop": {"versions": versions}}) as f:
        f.start_broker()
        for number in range(1, WORKERS + 1):
            f.start_worker(f"w{number}", number=number, n=n)
        f.finish(60.0 + versions)
        return [row["digest"] for row in f.history()]
