"""`fedmq bench strategies`: that a race is the federation that it says, and what is read off its curve."""

import json
import multiprocessing
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedmq.cli.bench.strategies import plot, race, settings
from fedmq.cli.bench.strategies.earlier import recall
from fedmq.cli.bench.strategies.measure import Found, Measured, images, measure
from fedmq.cli.bench.strategies.participants import BACKWARDS, Participants, Training
from fedmq.cli.bench.strategies.race import Curve, Entry, crossing, sent_by, smoothed
from fedmq.cli.bench.strategies.report import document, facts, lines
from fedmq.cli.bench.strategies.topics import TOPICS
from fedmq.cli.demo.data import Dataset
from fedmq.cli.json_file import keep_json
from fedmq.cli.main import fedmq
from fedmq.fedcore import codecs
from fedmq.fedcore.apps import TaskContext, Weights
from fedmq.fedcore.config import AsyncMode, Mean, TrimmedMean
from fedmq.fedcore.errors import ConfigError

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


def test_nobody_waits_for_races_that_somebody_stopped(garments: Dataset) -> None:
    """The others' processes are ended, however much they had before them."""
    endless = msgspec.structs.replace(TINY, rounds=100_000)
    found = Found(setting=endless, seeds=1, data="garments", measured_on="few")

    def show(done: int, of: int, note: str) -> None:
        assert note == "central training"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(found, ("accuracy",), garments, processes=2, show=show)
    assert not multiprocessing.active_children()


def imagined(topics: tuple[str, ...] = TOPICS) -> Found:
    """Of every race of some topics, as if it had run: attackers come to less."""
    found = Found(setting=settings.FULL, seeds=2, data="garments", measured_on="few")
    for topic in topics:
        for each in settings.entries(topic, settings.FULL):
            versions = each.training.versions
            end = 0.5 if each.attack != "none" and isinstance(each.rule, Mean) else 0.9
            curves = [
                Curve(
                    tuple(60.0 * (version + 1) for version in range(versions)),
                    tuple(end * (version + seed + 2) / (versions + 3) for version in range(versions)),
                    updates=versions * 5,
                    sent_bytes=versions * 5 * 1000,
                )
                for seed in range(2)
            ]
            found.races.append(Measured(each, curves))
    found.central = [0.95, 0.95] if "accuracy" in topics else []
    return found


def nothing_runs(*arguments: Any) -> Curve:
    raise AssertionError("a race that is there already was run again")


def test_what_an_earlier_run_wrote_is_not_run_again(
    tmp_path: Path, garments: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two files together, in the order of the table, to the last figure."""
    monkeypatch.setattr(race, "run", nothing_runs)
    files = [tmp_path / "some.json", tmp_path / "others.json"]
    for file, topics in zip(files, (("compression",), ("attackers", "accuracy")), strict=True):
        file.write_text(json.dumps(document(imagined(topics))))
    whole = imagined(("accuracy", "compression", "attackers"))
    again = Found(setting=settings.FULL, seeds=2, data="garments", measured_on="few")
    measure(
        again,
        ("accuracy", "compression", "attackers"),
        garments,
        processes=1,
        show=lambda done, of, note: None,
        earlier=recall(files, facts(again)),
    )
    assert document(again) == document(whole)
    assert list(lines(again)) == list(lines(whole))


def test_what_is_whole_is_kept_at_once(garments: Dataset, tmp_path: Path) -> None:
    """Whoever ends it without a word leaves a file to go on from."""
    found = Found(setting=TINY, seeds=1, data="garments", measured_on="few")
    file, sizes = tmp_path / "races.json", []
    keep = keep_json(lambda: document(found), file)

    def kept() -> None:
        keep()
        sizes.append(len(recall([file], facts(found)).races))

    measure(found, ("accuracy",), garments, processes=1, show=lambda done, of, note: None, keep=kept)
    assert sizes == [0, 1, 2]


def test_a_race_of_other_numbers_is_run(tmp_path: Path) -> None:
    """A name in common is not enough."""
    file = tmp_path / "races.json"
    file.write_text(json.dumps(document(imagined(("attackers",)))))
    earlier = recall([file], facts(imagined(())))
    known = next(settings.entries("attackers", settings.FULL))
    assert len(earlier.curves(known)) == 2
    assert earlier.curves(msgspec.structs.replace(known, training=Training(30, 0.2, 32))) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seeds": 3}, "other seeds: 3, and here 2"),
        ({"data": "other images"}, "other data: other images"),
        ({"setting": {}}, "other setting"),
        ({"races": [{"topic": "speed"}]}, "this version's --json"),
    ],
)
def test_what_was_measured_otherwise_is_not_mixed_in(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    """One line that says what differs."""
    file = tmp_path / "races.json"
    file.write_text(json.dumps({**document(imagined(("speed",))), **change}))
    with pytest.raises(ConfigError, match=says):
        recall([file], facts(imagined(())))


@pytest.mark.parametrize("content", ["[1, 2]", "no JSON", '{"arms": []}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    """With its name."""
    file = tmp_path / "figures.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"figures\.json: is not"):
        recall([file], facts(imagined(())))


def test_every_topic_has_its_rows_in_the_picture() -> None:
    """A row for each condition; encodings over time and over bytes."""
    titles = [row.title for row in plot._rows(imagined())]
    assert titles[4:] == [
        "compression, 2 kB/s",
        "compression, 2 kB/s, by what was sent",
        "attackers, nobody attacks",
        "attackers, 2 of 10 label-flip",
        "attackers, 2 of 10 sign-flip",
    ]


def test_a_part_has_a_picture_of_its_own(tmp_path: Path) -> None:
    """With both columns; nothing of the other topics is needed."""
    plot.draw(imagined(("attackers",)), tmp_path / "races.png")
    assert (tmp_path / "races.png").read_bytes().startswith(b"\x89PNG")


def test_robust_rules_are_held_against_the_clean_mean() -> None:
    """Of the same partition, and the table says by how many points."""
    rows = [line for line in lines(imagined(("attackers",))) if "iid" in line]
    first = next(line for line in rows if "nobody attacks" in line and "  mean " in line)
    assert first.endswith("%")
    fallen = next(line for line in rows if "label-flip" in line and "  mean " in line)
    assert fallen.endswith("-35.76")  # 40 points, smoothed
    assert next(line for line in rows if "label-flip" in line and "Multi-Krum" in line).endswith("+0.00")


def test_what_was_sent_is_counted_to_the_version() -> None:
    """All updates of the versions that there were by then."""
    curve = Curve((10.0, 20.0, 30.0), (0.5, 0.9, 0.9), updates=30, sent_bytes=3000)
    assert sent_by(curve, 20.0) == 2000
    assert sent_by(curve, 29.0) == 2000
    assert sent_by(curve, None) is None


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
