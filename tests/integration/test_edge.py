"""A worker inside of somebody's program: started, stopped, paused, asked, told, and cut off."""

import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq import Evaluation, Fit, TaskContext, Worker
from fedmq.fedcore.errors import ConfigError, ConnectError, StateError
from fedmq.worker.outbox import Outbox

from .federation import Federation, Tables, wait_for, write_model

Weights = dict[str, np.ndarray[Any, Any]]
ALWAYS: Tables = {
    "mode": {"kind": "async", "buffer": 1, "concurrency": 1},
    "aggregate": {"weight": "uniform"},
}


class Device:
    """An edge program's app: it trains when it is let, and says when it does."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.fits = 0
        self.cancelled = False

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        self.begun.set()
        while not self.go_on.wait(0.01):
            if task.cancelled:
                self.cancelled = True
                task.check_cancelled()
        self.fits += 1
        return Fit({"w": weights["w"] + 1}, 1)

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        return Evaluation(1, {"loss": 0.0})


class Diary:
    """What a program was told, and from which thread."""

    def __init__(self) -> None:
        self.moments: list[tuple[str, Mapping[str, Any]]] = []
        self.threads: set[str] = set()

    def __call__(self, moment: str, fields: Mapping[str, Any]) -> None:
        self.moments.append((str(moment), fields))
        self.threads.add(threading.current_thread().name)

    def count(self, moment: str) -> int:
        return [name for name, _ in self.moments].count(moment)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    write_model(tmp_path / "zeros.safetensors", {"w": np.zeros(100, np.float32)})
    return Federation(tmp_path, {**ALWAYS, "model": {"initial": "zeros.safetensors"}})


def test_a_program_starts_and_stops_its_worker(federation: Federation) -> None:
    """A context manager; its callback hears of everything, in a thread that is not the program's; start again works."""
    device, diary = Device(), Diary()
    with federation as f:
        f.start_broker()
        worker = Worker(device, connect=f.endpoint, state=f.folder / "edge", name="edge", on_event=diary)
        with worker:
            f.wait_for_version(3)
            assert worker.status()["connection"] == "open"
        assert worker.status()["connection"] == "stopped"
        assert [name for name, _ in diary.moments][:3] == ["connected", "task_received", "task_started"]
        assert diary.count("update_accepted") >= 3
        assert diary.moments[-1][0] == "finished"
        assert diary.threads == {"fedmq-hooks"}
        made = f.status()["version"]
        worker.start()
        f.wait_for_version(made + 2)
        assert worker.stop()
        assert worker.stop(), "stopping twice is no error"


def test_a_pause_takes_effect_at_once_and_is_lifted(federation: Federation) -> None:
    """No task while it is paused; what was begun before goes on and counts."""
    device = Device()
    with federation as f:
        f.start_broker()
        device.go_on.clear()
        with Worker(device, connect=f.endpoint, state=f.folder / "edge", name="edge") as worker:
            assert device.begun.wait(20)
            worker.pause()
            wait_for("paused", lambda: worker.status()["paused"])
            device.go_on.set()
            f.wait_for_version(1)
            time.sleep(0.5)  # nothing may happen in it
            assert f.status()["version"] == 1
            assert device.fits == 1
            worker.resume()
            f.wait_for_version(3)


def test_it_trains_only_when_it_may(federation: Federation) -> None:
    """`may_train` says no: nothing is trained, and the broker knows; it says yes: work begins; it raises: no."""
    device = Device()
    answers: list[object] = [False]

    def may_train() -> bool:
        if isinstance(answers[0], Exception):
            raise answers[0]
        return bool(answers[0])

    with federation as f:
        f.start_broker()
        with Worker(
            device, connect=f.endpoint, state=f.folder / "edge", name="edge", may_train=may_train
        ) as worker:
            wait_for("it is there", lambda: f.status()["workers"])
            time.sleep(0.3)  # nothing may happen in it
            assert (device.fits, f.status()["workers"][0]["state"]) == (0, "idle")
            answers[0] = True
            f.wait_for_version(1)
            answers[0] = OSError("no battery driver")
            wait_for("it has stopped", lambda: not worker.status()["may_train"])


def test_a_stop_cancels_the_app(federation: Federation) -> None:
    """An app that listens ends at once; one that does not is left behind, and `stop` says so."""
    device = Device()
    with federation as f:
        f.start_broker()
        device.go_on.clear()
        worker = Worker(device, connect=f.endpoint, state=f.folder / "edge", name="edge").start()
        assert device.begun.wait(20)
        started = time.monotonic()
        assert worker.stop()
        assert time.monotonic() - started < 5
        assert device.cancelled
        wait_for("its task is free", lambda: f.status()["workers"][0]["state"] == "gone")


def test_what_was_trained_offline_is_delivered(federation: Federation) -> None:
    """The broker goes while it trains: it trains on, keeps the update over its own end, and delivers it later."""
    device, diary = Device(), Diary()
    with federation as f:
        f.start_broker()
        device.go_on.clear()
        worker = Worker(
            device, connect=f.endpoint, state=f.folder / "edge", name="edge", on_event=diary
        ).start()
        assert device.begun.wait(20)
        f.stop_broker(signal.SIGTERM)
        device.go_on.set()
        wait_for("it has finished offline", lambda: worker.status()["outbox"] == 1)
        assert device.fits == 1
        assert diary.count("update_accepted") == 0
        assert worker.stop()
        assert len(Outbox(f.folder / "edge" / "outbox").load()) == 1

        device.go_on.clear()
        f.start_broker()
        assert f.status()["version"] == 0
        with Worker(device, connect=f.endpoint, state=f.folder / "edge", name="edge", on_event=diary):
            f.wait_for_version(1)
            assert device.fits == 1, "the update was made once, and delivered"
            wait_for("it is told", lambda: diary.count("update_accepted") == 1)
        assert f.weights(1).tolist() == [1.0] * 100
        wait_for(
            "nothing is left",
            lambda: not sum(file.stat().st_size for file in (f.folder / "edge" / "outbox").iterdir()),
        )


def test_a_worker_finds_a_broker_that_starts_later(tmp_path: Path) -> None:
    """Order does not matter: the worker waits for a broker that is not there yet, and needs no help."""
    write_model(tmp_path / "zeros.safetensors", {"w": np.zeros(100, np.float32)})
    with Federation(tmp_path, {**ALWAYS, "model": {"initial": "zeros.safetensors"}}) as f:
        f.start_broker()  # to learn of a free port
        f.stop_broker(signal.SIGTERM)
        with Worker(Device(), connect=f.endpoint, name="early") as worker:
            wait_for("it tries", lambda: worker.status()["connection"] == "connecting")
            f.start_broker()
            f.wait_for_version(1)


def test_run_works_in_the_callers_thread_until_the_end(tmp_path: Path) -> None:
    """`run` returns when the federation is finished, and the app was called in this very thread."""
    write_model(tmp_path / "zeros.safetensors", {"w": np.zeros(100, np.float32)})
    called: set[int] = set()

    class Here(Device):
        def fit(self, weights: Weights, task: TaskContext) -> Fit:
            called.add(threading.get_ident())
            return super().fit(weights, task)

    with Federation(
        tmp_path, {**ALWAYS, "model": {"initial": "zeros.safetensors"}, "stop": {"versions": 3}}
    ) as f:
        f.start_broker()
        Worker(Here(), connect=f.endpoint).run()
        f.finish()
    assert called == {threading.get_ident()}


def test_what_is_wrong_is_said_at_once(federation: Federation) -> None:
    """Arguments, a state folder that another worker has, and a broker that refuses for good."""
    with federation as f:
        f.start_broker()
        with pytest.raises(ConfigError, match="tcp://host:port"):
            Worker(Device(), connect="nonsense").start()
        with pytest.raises(ConfigError, match="slots must be 1 or more"):
            Worker(Device(), connect=f.endpoint, slots=0)
        with Worker(Device(), connect=f.endpoint, state=f.folder / "edge", name="edge") as worker:
            wait_for("it is there", lambda: f.status()["workers"])
            with pytest.raises(StateError, match="in use by process"):
                Worker(Device(), connect=f.endpoint, state=f.folder / "edge").start()
            f.cli("evict", "edge")
            with pytest.raises(ConnectError, match="revoked"):
                worker.wait(20)
