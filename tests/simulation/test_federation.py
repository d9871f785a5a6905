"""Nothing is lost, whatever happens: whole federations on virtual time, each under another seed.

``FEDMQ_SEEDS=5000`` runs more of them, ``FEDMQ_SEEDS=17-17`` one again.
"""

import os

import pytest

from . import scenario
from .federation import run

SEEDS = 100


def seeds() -> range:
    """What FEDMQ_SEEDS says: how many, or from which to which."""
    first, dash, last = os.environ.get("FEDMQ_SEEDS", str(SEEDS)).partition("-")
    return range(int(first), int(last) + 1) if dash else range(int(first))


@pytest.mark.parametrize("seed", seeds())
def test_every_federation_finishes_and_loses_nothing(seed: int) -> None:
    """Crashes between any two actions, broken connections, operators: `Audit` says what must hold."""
    federation = run(scenario.draw(seed))
    assert max(federation.audit.versions) == federation.scenario.config.stop.versions


@pytest.mark.parametrize("seed", seeds()[::3])
def test_a_full_cohort_makes_the_same_versions_with_and_without_faults(seed: int) -> None:
    """A synchronous federation that waits for everybody gives what it would have given undisturbed."""
    disturbed = run(scenario.full_cohort(seed, faults=True))
    undisturbed = run(scenario.full_cohort(seed, faults=False))
    assert disturbed.audit.contents() == undisturbed.audit.contents()
    names = sorted(worker.name for worker in disturbed.workers)
    assert undisturbed.audit.contents()[1] == [(name, 0) for name in names]


def test_a_seed_always_runs_the_same_way() -> None:
    """Else no failure could be looked at twice."""
    first, second = (run(scenario.draw(7)) for _ in range(2))
    assert first.trace == second.trace
    assert first.schedule.now == second.schedule.now
    assert first.broker.disk.rows == second.broker.disk.rows


def test_the_faults_happen() -> None:
    """A simulation in which nothing goes wrong would prove nothing."""
    federations = [run(scenario.draw(seed)) for seed in range(10)]
    assert sum(federation.killed for federation in federations) > 10
    assert sum(federation.network.broken for federation in federations) > 10
