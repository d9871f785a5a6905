"""Broker or worker stand still for longer than a lease (SIGSTOP), as a laptop that sleeps does, and come back.

What is asked: the others go on without a worker that is gone, its task goes to somebody else where the mode says so,
and what it delivers when it is back counts once, or not at all. Workers of a broker that is gone keep what they
finished, and deliver it later.
"""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ..integration.federation import Federation, Tables, events, wait_for
from . import marked
from .marked import BUFFER, MARKED, Recovery, judge, wait_for_updates, wait_until_all_are_back
from .rounds import times
from .tally import Tally

STOPS = times(1, 5)
LEASE_S = float(MARKED["network"]["lease_s"])
BROKER = "broker stopped for three leases (SIGSTOP)"
WORKER = "worker stopped for three leases (SIGSTOP)"


def wait_until_gone(f: Federation, worker: str) -> None:
    """Two leases of silence, and what it had is free."""
    wait_for(
        f"{worker} is gone",
        lambda: ("gone", worker) in {(w["state"], w["name"]) for w in f.status()["workers"]},
    )


@pytest.mark.timeout(180 + 60 * STOPS)
def test_asynchronous(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    """Workers and the broker are stopped in turn; everything that was acknowledged counts once."""
    with Federation(tmp_path, MARKED) as f:
        marked.start(f)
        for _ in range(STOPS):
            name = f"w{rng.randint(1, 4)}"
            time.sleep(rng.uniform(0.0, 0.3))
            f.workers[name].send(signal.SIGSTOP)
            wait_until_gone(f, name)
            wait_for_updates(f, BUFFER)
            time.sleep(LEASE_S)
            recovery = Recovery(f, name)
            f.workers[name].send(signal.SIGCONT)
            tally.injected(WORKER, recovery.wait())
            assert f.workers[name].code is None, "it is the same process"

            assert f.broker is not None
            time.sleep(rng.uniform(0.0, 0.3))
            f.broker.send(signal.SIGSTOP)
            time.sleep(3 * LEASE_S)
            recovery = Recovery(f)
            f.broker.send(signal.SIGCONT)
            tally.injected(BROKER, recovery.wait())
            # It now reads what had been sent to it meanwhile, also by workers that have hung up since.
            time.sleep(1.5 * LEASE_S)
            wait_until_all_are_back(f)
        marked.finish(f)
        verdict = judge(f, rng)
        tally.judged([BROKER, WORKER], verdict.lost, verdict.twice)


def test_a_task_goes_to_somebody_else(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    """Two of three workers make a round; one is stopped while it trains. The third takes its place, and its late
    update is stale: a round takes one update for a place, and never a second one."""
    tables: Tables = {
        "mode": {"kind": "sync", "min_available": 2, "clients_per_round": 2, "deadline_s": 0.0},
        "network": {"beat_s": 0.2, "lease_s": LEASE_S},
    }
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        with f.together():
            for number in (1, 2, 3):
                f.start_worker(f"w{number}", "tiny:App", "--log-format", "json", number=number, delay=0.3)

        name = stopped_in_a_round(f)
        f.wait_for_more(2)
        recovery = Recovery(f, name)
        f.workers[name].send(signal.SIGCONT)
        tally.injected(WORKER, recovery.wait())
        f.wait_for_more(1)
        f.cli("stop", "--finish")
        f.finish()

        versions = len(f.history()) - 1
        rows = f.query("SELECT version, worker FROM updates WHERE version IS NOT NULL")
        twice = len(rows) - len(set(rows))
        tally.judged([WORKER], 2 * versions - len(set(rows)), twice)
        places = [version for version in range(1, versions + 1) for _ in (1, 2)]
        assert sorted(version for version, _ in set(rows)) == places
        assert twice == 0
        said = {event["event"] for event in events(f.workers[name])}
        assert said & {"update rejected", "task cancelled"}, (
            "the round that went on without it took its update"
        )


def stopped_in_a_round(f: Federation) -> str:
    """Stop a worker so that a round goes on without it; one whose update was on its way already is let go again."""

    def training() -> Any:
        return next((w["name"] for w in f.status()["workers"] if w["state"] == "training"), None)

    for _ in range(10):
        name = str(wait_for("somebody trains", training))
        f.workers[name].send(signal.SIGSTOP)
        wait_until_gone(f, name)
        if f.query(f"SELECT 1 FROM left_out WHERE worker = '{name}' AND reason = 'silent for two leases'"):
            return name
        current = f.status()["round"]
        if current is not None and current["asked"] > 2:  # open still, with a substitute
            return name
        f.workers[name].send(signal.SIGCONT)
        wait_until_all_are_back(f)
    raise AssertionError("no worker could be stopped while it trained")
