"""`fedmq bench strategies`: that a race is the federation that it says, and what is read off its curve."""

import json
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedmq.cli.bench.strategies import race, settings
from fedmq.cli.bench.strategies.measure import Found, images, measure
from fedmq.cli.bench.strategies.participants import BACKWARDS, Participants, Training
from fedmq.cli.bench.strategies.race import Curve, Entry, crossing, smoothed
from fedmq.cli.bench.strategies.report import document, lines
from fedmq.cli.bench.strategies.topics import TOPICS
from fedmq.cli.demo.data import Dataset
from fedmq.cli.main import fedmq
from fedmq.fedcore import codecs
from fedmq.fedcore.apps import TaskContext, Weights
from fedmq.fedcore.config import AsyncMode, Mean, TrimmedMean

from .garments import write_garments

TINY = settings.Setting(central_epochs=1, rounds=2, race_rounds=2, targets=(0.3, 0.5))


@pytest.fixture
def garments(tmp_path: Path) -> Dataset:
    return images(write_garments(tmp_path / "garments"), most=0, validation=False)


def entry(**more: Any) -> Entry:
    """A race of ten rounds."""
    kept: dict[str, Any] = {
        "topic": "speed",
        "name": "synchronous",
        "mode": settings.synchronous(),
        "training": Training(10, 0.05, 10),
        "speeds": settings.SKEWED,
    }
    return Entry(**{**kept, **more})


def test_a_race_is_repeatable_and_learns(garments: Dataset) -> None:
    """The same entry and seed, the same curve; a version each round, none before the slowest was done."""
    first, again = race.run(entry(), garments, 0), race.run(entry(), garments, 0)
    assert first == again
    assert len(first.times_s) == len(first.accuracies) == 10
    assert first.accuracies[-1] > 0.5
    assert first.times_s[0] > 0.8 * max(settings.SKEWED)
    assert (first.updates, first.sent_bytes) == (100, 100 * codecs.payload_size("f32", 25_450))
    assert race.run(entry(), garments, 1) != first


def test_asynchronous_versions_wait_for_nobody(garments: Dataset) -> None:
    """As many fits take a fraction of the time; with one straggler, a smaller one."""
    buffered = AsyncMode(buffer=5, concurrency=10)
    for speeds, at_most in ((settings.SKEWED, 0.4), (settings.STRAGGLER, 0.25)):
        rounds = race.run(entry(speeds=speeds), garments, 0)
        buffers = race.run(entry(mode=buffered, training=Training(20, 0.05, 10), speeds=speeds), garments, 0)
        assert rounds.updates == buffers.updates
        assert buffers.times_s[-1] < at_most * rounds.times_s[-1]


def test_smaller_updates_take_less_of_a_narrow_link(garments: Dataset) -> None:
    """A quarter of the bytes, and of the time that they take."""
    speeds = (1.0,) * 10
    f32, i8 = (
        race.run(entry(speeds=speeds, encoding=encoding, bandwidth=2000.0), garments, 0)
        for encoding in ("f32", "i8")
    )
    assert i8.sent_bytes < 0.26 * f32.sent_bytes
    # Of each round 102 kB come and 102 or 26 kB go.
    assert 0.55 < i8.times_s[-1] / f32.times_s[-1] < 0.7


def test_robust_rules_outvote_attackers_who_stop_the_mean(garments: Dataset) -> None:
    """Two of ten send their steps backwards."""
    hostile: dict[str, Any] = {"attack": "sign-flip", "attackers": 2}
    clean = race.run(entry(), garments, 0).accuracies[-1]
    mean = race.run(entry(rule=Mean(), **hostile), garments, 0).accuracies[-1]
    trimmed = race.run(entry(rule=TrimmedMean(trim=0.2), **hostile), garments, 0).accuracies[-1]
    assert mean < clean - 0.2
    assert trimmed > clean - 0.2


def fitted(garments: Dataset, attack: Any) -> tuple[Weights, Weights, Weights]:
    """The first weights, and what an honest and an attacking worker with the same images make of them."""
    task = TaskContext(kind="fit", version=0, seed=1, config={})
    made = []
    for attackers in (0, 1):
        crowd = Participants(
            garments,
            Training(10, 0.1, 10),
            workers=5,
            partition="iid",
            hidden=8,
            seed=0,
            attack=attack,
            attackers=attackers,
        )
        first = crowd.initial()
        made.append(crowd.app(0).fit(first, task).weights)
    return first, made[0], made[1]


def test_a_sign_flip_is_a_step_backwards(garments: Dataset) -> None:
    """As long as four honest ones."""
    first, honest, hostile = fitted(garments, "sign-flip")
    for name, before in first.items():
        step = honest[name] - before
        assert np.allclose(hostile[name] - before, -BACKWARDS * step, atol=1e-5)


def test_a_label_flip_trains_on_other_labels(garments: Dataset) -> None:
    """On the same images: another step, of about the same length."""
    first, honest, hostile = fitted(garments, "label-flip")
    steps = [
        np.concatenate([(made[name] - first[name]).ravel() for name in first]) for made in (honest, hostile)
    ]
    lengths = [float(np.linalg.norm(step)) for step in steps]
    assert lengths[0] / 2 < lengths[1] < lengths[0] * 2
    assert float(steps[0] @ steps[1]) < 0.7 * lengths[0] * lengths[1]


def test_a_curve_is_smoothed_over_the_past() -> None:
    """One lucky version is no arrival; what is not there yet is not waited for."""
    assert smoothed([0.2, 0.4, 0.6], window=2).tolist() == pytest.approx([0.2, 0.3, 0.5])
    lucky = Curve((1.0, 2.0, 3.0, 4.0), (0.1, 0.9, 0.1, 0.1), updates=4, sent_bytes=0)
    assert crossing(lucky, 0.8) is None
    steady = Curve((1.0, 2.0, 3.0, 4.0), (0.9, 0.9, 0.9, 0.9), updates=4, sent_bytes=0)
    assert crossing(steady, 0.8) == 1.0


def test_every_topic_compares_and_every_config_holds() -> None:
    """Each entry makes a valid federation; all workers train as often in each race of a topic."""
    for topic in TOPICS:
        entries = list(settings.entries(topic, settings.FULL))
        assert {each.topic for each in entries} == {topic}
        assert {each.partition for each in entries} == {settings.IID, settings.DIRICHLET}
        for each in entries:
            config = race.config_of(each, 0)
            assert config.stop.versions == each.training.versions
            buffer = each.mode.buffer if isinstance(each.mode, AsyncMode) else settings.WORKERS
            rounds = settings.FULL.rounds if topic == "accuracy" else settings.FULL.race_rounds
            assert each.training.versions * buffer == rounds * settings.WORKERS


def test_every_encoding_is_raced() -> None:
    """Also one that is added tomorrow."""
    raced = {each.encoding for each in settings.entries("compression", settings.FULL)}
    assert raced == set(codecs.ENCODINGS)


def test_processes_do_not_change_figures(garments: Dataset) -> None:
    """Races in children are those that would have been run here, in the same order."""
    two, one = (Found(setting=TINY, seeds=1, data="garments", measured_on="few") for _ in range(2))
    for found, processes in ((two, 2), (one, 1)):
        measure(found, ("accuracy",), garments, processes=processes, show=lambda done, of, note: None)
    assert document(two) == document(one)
    assert len(one.central) == 1
    assert [each.entry.partition for each in one.races] == [settings.IID, settings.DIRICHLET]


def test_what_is_there_when_somebody_stops_it_is_shown(garments: Dataset) -> None:
    """Whole entries."""
    found = Found(setting=TINY, seeds=1, data="garments", measured_on="few")

    def show(done: int, of: int, note: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(found, ("speed",), garments, processes=1, show=show)
    assert [each.entry.name for each in found.races] == ["synchronous", "asynchronous"]
    assert any("asynchronous" in line for line in lines(found))


def test_validation_images_are_none_of_the_test_images(tmp_path: Path) -> None:
    """A sixth of the training images stands in their place, and is trained on no more."""
    folder = write_garments(tmp_path / "garments")
    whole = images(folder, most=0, validation=False)
    cut = images(folder, most=0, validation=True)
    assert (len(cut.train), len(cut.test)) == (250, 50)
    rows = {row.tobytes() for row in whole.train.x}
    assert {row.tobytes() for row in cut.test.x} | {row.tobytes() for row in cut.train.x} == rows


def bench(folder: Path, *options: str) -> Result:
    command = ["bench", "strategies", "--quick", "--processes", "1", "--data-dir", str(folder), *options]
    return CliRunner().invoke(fedmq, command, catch_exceptions=False)


def test_the_whole_command_on_tiny_images(tmp_path: Path) -> None:
    """As a document and as a picture."""
    plot = tmp_path / "races.png"
    folder = write_garments(tmp_path / "garments", train=100, test=20)
    result = bench(folder, "--only", "compression,accuracy", "--json", "-", "--plot", str(plot))
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert list(dict.fromkeys(each["topic"] for each in found["races"])) == ["accuracy", "compression"]
    assert len(found["central"]) == found["seeds"] == 1
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_table_says_how_much_sooner(tmp_path: Path) -> None:
    """Beside the time of each and where they end."""
    folder = write_garments(tmp_path / "garments", train=100, test=20)
    result = bench(folder, "--only", "dropout")
    assert result.exit_code == 0, result.output
    assert "dropout: workers that die" in result.stdout
    assert "attackers" not in result.stdout
    rows = [line for line in result.stdout.splitlines() if line.startswith("10% of fits die  iid")]
    assert len(rows) == 3


def test_medians_are_of_the_seeds() -> None:
    """Half of them that never arrive make it never."""
    from fedmq.cli.bench.strategies.measure import Measured

    curves = [
        Curve((time,), (accuracy,), updates=1, sent_bytes=0)
        for time, accuracy in ((10.0, 0.9), (30.0, 0.9), (20.0, 0.2))
    ]
    measured = Measured(entry(), curves)
    assert measured.final == 0.9
    assert measured.crossing(0.8) == 30.0
    assert msgspec.structs.replace(measured, curves=curves[1:]).crossing(0.8) is None


def test_a_wrong_topic_says_which_there_are(tmp_path: Path) -> None:
    """Before anything is read."""
    result = bench(tmp_path, "--only", "weather")
    assert result.exit_code == 2
    assert "accuracy, speed" in result.output


def test_images_that_are_not_here(tmp_path: Path, fedmq: Any) -> None:
    """One line that says how to get them."""
    code, _, err = fedmq("bench", "strategies", "--data-dir", tmp_path)
    assert code == 2
    assert "apt install dataset-fashion-mnist" in cast(str, err)
