"""Plans: the noise of a budget, what it does to a model, how many workers it takes, and what cannot be."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.privacy.accounting import Spend, epsilon
from fedmq.fedcore.privacy.participation import fixed_size_epsilon, participations_epsilon
from fedmq.fedcore.privacy.planning import Arrivals, Fixed, Plan, Poisson, plan

DELTA = 1e-5


def planned(how: Any = None, **keys: Any) -> Plan:
    values: dict[str, Any] = {"workers": 200, "versions": 100, "epsilon_target": 8.0, "delta": DELTA}
    return plan(how or Arrivals(buffer=20), **(values | keys))


def test_arrivals_are_accounted_by_how_often_a_worker_comes() -> None:
    """100 versions of 20 out of 200 workers: ten each, z = 1.90, and the ε of that z."""
    found = planned()
    assert (found.most, found.noise_multiplier) == (10, 1.90)
    assert found.epsilon == participations_epsilon(1.90, 10, DELTA)
    assert 7.9 < found.epsilon <= 8.0


def test_lengths_follow_from_z_and_the_buffer() -> None:
    """z/K a coordinate, √n of it in all, √T more in the model."""
    found = planned(parameters=10_000)
    assert found.noise_per_coordinate == pytest.approx(1.90 / 20)
    assert found.noise_norm == pytest.approx(100 * 1.90 / 20)
    assert found.noise_after_all == pytest.approx(100 * 1.90 / 20 * 10)
    assert found.noise_share == pytest.approx(found.noise_after_all / 100)
    assert found.signal_to_noise_best == pytest.approx(20 / 190)
    assert found.signal_to_noise_unrelated == pytest.approx(20 / 190 / math.sqrt(20))


def test_noise_is_as_long_as_is_said() -> None:
    """Drawn and measured: one version's, and what a hundred leave."""
    found = planned(parameters=5_000)
    rng = np.random.default_rng(3)
    noise = rng.normal(0, found.noise_multiplier, (100, 5_000)) / 20
    assert np.linalg.norm(noise[0]) == pytest.approx(found.noise_norm, rel=0.05)
    assert np.linalg.norm(noise.sum(axis=0)) == pytest.approx(found.noise_after_all, rel=0.05)


def test_five_workers_are_drowned_and_fifty_are_not() -> None:
    """The plan says how many it takes; as many are then at the level that was asked for."""
    few = planned(Arrivals(buffer=5), workers=5, versions=20)
    assert few.verdict == "drowned"
    assert few.largest_model < 650
    enough = planned(Arrivals(buffer=few.cohort_needed), workers=few.workers_needed, versions=20)
    assert enough.verdict == "fine"
    assert few.noise_level * 0.9 < enough.noise_share <= few.noise_level
    assert 40 < few.workers_needed < 60


def test_the_share_is_one_at_the_largest_model() -> None:
    """With one parameter more it is not below."""
    largest = planned().largest_model
    assert planned(parameters=largest).noise_share <= 1 < planned(parameters=largest + 1).noise_share


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 25), st.integers(1, 12), st.integers(1, 6))
def test_what_is_feasible_can_be_scheduled(
    workers: int, versions: int, buffer: int, most: int, separation: int
) -> None:
    """A plan is refused just when serving whoever came least and longest ago gets stuck."""
    how = Arrivals(buffer=buffer, most=most, bandwidth=1, separation=separation)
    try:
        planned(how, workers=workers, versions=versions)
    except PrivacyError:
        accepted = False
    else:
        accepted = True
    assert accepted == scheduled(workers, versions, buffer, most, separation)


def scheduled(workers: int, versions: int, buffer: int, most: int, separation: int) -> bool:
    """Greedy: round robin is the best that can be done for caps and for separation alike."""
    times, last = [0] * workers, [-separation] * workers
    for version in range(versions):
        able = [w for w in range(workers) if times[w] < most and version - last[w] >= separation]
        chosen = sorted(able, key=lambda w: (times[w], last[w]))[:buffer]
        if len(chosen) < buffer:
            return False
        for worker in chosen:
            times[worker], last[worker] = times[worker] + 1, version
    return True


def test_poisson_rounds_are_the_librarys() -> None:
    """z in hundredths, its ε by PLD; divided by how many are expected."""
    found = planned(Poisson(rate=0.1), workers=1000, epsilon_target=2.0)
    assert found.cohort == 100
    assert found.epsilon == epsilon([Spend(found.noise_multiplier, 0.1, 100)], DELTA)
    assert found.epsilon <= 2.0 < epsilon([Spend(found.noise_multiplier - 0.01, 0.1, 100)], DELTA)
    assert (
        found.noise_multiplier
        < planned(Arrivals(buffer=100), workers=1000, epsilon_target=2.0).noise_multiplier
    )


def test_a_fixed_cohort_is_the_librarys() -> None:
    """At twice the sensitivity, under replace-one."""
    found = planned(Fixed(cohort=20), workers=1000)
    assert found.adjacency == "replace-one"
    expected = fixed_size_epsilon(found.noise_multiplier, workers=1000, cohort=20, rounds=100, delta=DELTA)
    assert found.epsilon == expected <= 8.0


def test_correlated_noise_leaves_less_in_the_model() -> None:
    """The same ε; about a third after the whole run, with half of the workers always free to come."""
    values: dict[str, Any] = {"workers": 400, "versions": 200, "epsilon_target": 1.0}
    independent = planned(Arrivals(buffer=10, most=10), **values)
    correlated = planned(Arrivals(buffer=10, most=10, bandwidth=0), **values)
    assert correlated.separation == 20
    assert correlated.epsilon <= 1.0
    assert 0.25 < correlated.noise_share / independent.noise_share < 0.4
    assert correlated.deviation > independent.deviation


@pytest.mark.parametrize(
    ("how", "keys", "message"),
    [
        (
            Arrivals(buffer=20, most=9),
            {},
            r"2000 participations, and 200 workers with at most 9 each give 1800: allow 10 each",
        ),
        (Arrivals(buffer=201), {}, "buffer must be from 1 to 200"),
        (Arrivals(buffer=20, bandwidth=2, separation=11), {}, "it may be 10 at most"),
        (Arrivals(buffer=20), {"workers": 0}, "workers must be"),
        (Arrivals(buffer=20), {"versions": 0}, "versions must be"),
        (Arrivals(buffer=20), {"epsilon_target": 0.0}, "epsilon must be"),
        (Arrivals(buffer=20), {"delta": 1.0}, "delta must be"),
        (Arrivals(buffer=20), {"noise_level": 0.0}, "noise_level must be"),
        (Poisson(rate=1.5), {}, "sampling_rate must be"),
        (Fixed(cohort=300), {}, "cohort must be from 1 to 200"),
    ],
)
def test_what_cannot_be_is_refused(how: Any, keys: dict[str, Any], message: str) -> None:
    """With what could be instead."""
    with pytest.raises(PrivacyError, match=message):
        planned(how, **keys)
