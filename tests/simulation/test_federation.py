"""Nothing is lost, whatever happens: whole federations on virtual time, each under another seed.

``FEDMQ_SEEDS=5000`` runs more of them, ``FEDMQ_SEEDS=17-17`` one again, in this process. ``make soak`` runs new
ones until it is stopped.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from . import scenario
from .federation import run
from .scenario import Kind
from .soak import check

ROOT = Path(__file__).parents[2]
SEEDS = 2_000
BLOCK = 200
FULL_SHARE = 10
"""One in so many seeds is run as a full cohort as well."""
HERE = 20
"""So many seeds are run in this process, where a debugger sees them."""


def seeds() -> range:
    """What FEDMQ_SEEDS says: how many, or from which to which."""
    first, dash, last = os.environ.get("FEDMQ_SEEDS", str(SEEDS)).partition("-")
    return range(int(first), int(last) + 1) if dash else range(int(first))


def blocks(seeds: range, size: int) -> list[range]:
    """The seeds in pieces, whose tests each end in time."""
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


def run_all(kind: Kind, seeds: range) -> None:
    """All must go well; two processes run many."""
    if len(seeds) <= HERE:
        for seed in seeds:
            check(kind, seed)
        return
    command = [sys.executable, "-m", "tests.simulation.soak", "--kind", kind, "--processes", "2"]
    span = ["--seeds", f"{seeds[0]}-{seeds[-1]}"]
    done = subprocess.run([*command, *span], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", blocks(seeds(), BLOCK), ids=str)
def test_every_federation_finishes_and_loses_nothing(block: range) -> None:
    """Crashes, power cuts, broken networks, operators, all at once: `Audit` says what must hold."""
    run_all("draw", block)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", blocks(seeds()[: max(len(seeds()) // FULL_SHARE, 1)], BLOCK), ids=str)
def test_a_full_cohort_makes_the_same_versions_with_and_without_faults(block: range) -> None:
    """A synchronous federation that waits for everybody gives, byte for byte, what it would have given undisturbed."""
    run_all("full", block)


def test_an_undisturbed_cohort_is_complete() -> None:
    """Else the comparison would prove nothing."""
    federation = run(scenario.full_cohort(3, faults=False))
    names = sorted(worker.name for worker in federation.workers)
    assert all(
        made[1] == [(name, 0) for name in names] for v, made in federation.audit.contents().items() if v
    )


def test_a_seed_always_runs_the_same_way() -> None:
    """Else no failure could be looked at twice."""
    first, second = (run(scenario.draw(7)) for _ in range(2))
    assert first.trace == second.trace
    assert first.schedule.now == second.schedule.now
    assert first.broker.rows == second.broker.rows


def test_a_seed_runs_the_same_way_in_every_process() -> None:
    """Whatever the order in which Python's sets are walked there."""
    code = (
        "from tests.simulation import scenario; from tests.simulation.federation import run; import xxhash\n"
    )
    code += "f = run(scenario.draw(11)); print(f.schedule.now, list(f.trace), f.faults.counts)"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(found) == 1


def test_the_faults_happen() -> None:
    """A simulation in which nothing goes wrong would prove nothing."""
    federations = [run(scenario.draw(seed)) for seed in range(40)]
    counts: Counter[str] = Counter()
    for federation in federations:
        counts.update(federation.faults.counts)
    kinds = {
        "broker stopped", "connection broken", "half a message", "kill: broker", "kill: worker", "one-way loss",
        "operator: evict", "operator: pause", "partition", "power cut: broker", "power cut: worker",
        "repeated message", "slow link", "stall", "worker paused", "worker stopped",
    }  # fmt: skip
    assert {kind for kind in kinds if counts[kind] < 2} == set()
    assert sum(federation.network.broken for federation in federations) > 40
    assert sum(federation.audit.refolded for federation in federations) > 0
