"""The user's app beside the broker: whatever it does, it costs the broker one evaluation at most."""

import collections
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedmq.broker.evaluator import AppProcess, Judge, make_initial
from fedmq.broker.events import Evaluate, Evaluated
from fedmq.broker.store.versions import VersionStore
from fedmq.broker.threads import write_initial
from fedmq.fedcore import config as configs
from fedmq.fedcore import model_file
from fedmq.fedcore.errors import ClientAppError
from fedmq.fedcore.layout import Layout
from fedmq.fedcore.state_dict import unpack

APPS = '''
import os, signal, sys, time
import numpy as np
from fedmq.fedcore.apps import Evaluation, Fit


class Base:
    def fit(self, weights, task):
        return Fit(weights, 1)

    def evaluate(self, weights, task):
        print("apps print things")
        weights["w"] += 1  # its own copy
        metrics = {"loss": float(weights["w"].sum()), "pid": os.getpid(), "seed": task.seed % 1000}
        return Evaluation(len(weights["w"]), metrics | task.config)

    def initial(self, task):
        print("to stdout")
        return {"w": np.full(3, task.config["fill"], np.float64)}


class Moody(Base):
    """Does what the version says."""

    def evaluate(self, weights, task):
        match task.version:
            case 1:
                raise RuntimeError("no data today")
            case 2:
                os.kill(os.getpid(), signal.SIGKILL)
            case 3:
                time.sleep(60)
            case 4:
                return {"loss": 1.0}
            case 5:
                sys.exit(3)
        return super().evaluate(weights, task)
'''


@pytest.fixture
def apps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an importable module of apps."""
    (tmp_path / "beside_apps.py").write_text(APPS)
    monkeypatch.syspath_prepend(tmp_path)
    return "beside_apps"


@pytest.fixture
def versions(tmp_path: Path) -> VersionStore:
    store = VersionStore(tmp_path / "versions", fsync=False)
    file = b"".join(model_file.from_arrays({"w": np.zeros(4, np.float32)}).chunks)
    write_initial(store, memoryview(file), 1 << 20)
    for number in range(1, 7):
        store.path(number).write_bytes(file)
    return store


def config(app: str, deadline_s: float = 30.0) -> configs.Config:
    return configs.parse({"evaluate": {"app": app, "deadline_s": deadline_s}, "task": {"lr": 0.5}})


@pytest.fixture
def children() -> Iterator[list[AppProcess]]:
    """What is put here is closed when the test ends."""
    made: list[AppProcess] = []
    yield made
    for child in made:
        child.close()


def judge_of(settings: configs.Config, versions: VersionStore, children: list[AppProcess]) -> Judge:
    children.append(app := AppProcess(settings.evaluate.app))
    return Judge(settings, versions, app)


def evaluate(judge: Judge, *numbers: int) -> list[Evaluated]:
    found = list(judge(collections.deque(map(Evaluate, numbers))))
    assert all(isinstance(event, Evaluated) for event in found)
    return found  # type: ignore[return-value]


def test_an_app_measures_a_version(apps: str, versions: VersionStore, children: list[AppProcess]) -> None:
    """It gets its own copy of the weights and the task's config; one process serves many versions."""
    judge = judge_of(config(f"{apps}:Base"), versions, children)
    first, second = evaluate(judge, 0, 1)
    assert first.metrics is not None
    assert second.metrics is not None
    assert (first.version, first.examples, first.metrics["loss"], first.metrics["lr"]) == (0, 4, 4.0, 0.5)
    assert second.metrics["pid"] == first.metrics["pid"]
    assert second.metrics["seed"] != first.metrics["seed"]


def test_whatever_an_app_does_costs_one_evaluation(
    apps: str, versions: VersionStore, children: list[AppProcess]
) -> None:
    """It raises, is killed, hangs, breaks its contract, exits: each is said, and the next version is measured."""
    judge = judge_of(config(f"{apps}:Moody", deadline_s=3.0), versions, children)
    found = evaluate(judge, 0, 1, 2, 3, 4, 5, 6)
    reasons = [event.reason for event in found]
    assert "RuntimeError: no data today" in reasons[1]
    assert "ended its process (signal 9)" in reasons[2]
    assert "did not finish within 3 s" in reasons[3]
    assert "must return" in reasons[4]
    assert "ended its process (exit code 3)" in reasons[5]
    assert [event.metrics is None for event in found] == [False, True, True, True, True, True, False]


def test_an_app_that_does_not_import_is_said(children: list[AppProcess]) -> None:
    """Before there is a version to measure: by its name, and what to look at."""
    children.append(app := AppProcess("no_such_module:app"))
    with pytest.raises(ClientAppError, match="cannot load the client app 'no_such_module:app'"):
        app.load()


def test_a_killed_judge_starts_no_other_child(
    apps: str, versions: VersionStore, children: list[AppProcess]
) -> None:
    """The broker is stopping: whoever waits is told."""
    judge = judge_of(config(f"{apps}:Base"), versions, children)
    children[0].kill()
    (event,) = evaluate(judge, 0)
    assert event.reason == "the broker is stopping"


def test_an_app_makes_the_first_model(apps: str, tmp_path: Path) -> None:
    """In a process of its own; the file is a model like any other."""
    made = configs.parse({"model": {"initial": f"{apps}:Base"}, "task": {"fill": 0.25}})
    make_initial(made, tmp_path / "initial.safetensors")
    file = (tmp_path / "initial.safetensors").read_bytes()
    weights = unpack(Layout.from_file_prefix(file, len(file)), file)
    assert weights["w"].tolist() == [0.25, 0.25, 0.25]


def test_an_app_without_initial_is_said(apps: str, tmp_path: Path) -> None:
    """What is missing, and what to do instead."""
    (tmp_path / "beside_apps.py").write_text(APPS + "\ndel Base.initial\n")
    with pytest.raises(ClientAppError, match="no method initial"):
        make_initial(configs.parse({"model": {"initial": f"{apps}:Base"}}), tmp_path / "x.safetensors")
