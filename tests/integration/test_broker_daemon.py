"""The broker as a whole, as notebooks and service managers use it: start, stop, restart, and every refusal."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.broker.daemon import Broker
from fedmq.broker.store.journal import Journal
from fedmq.fedcore import wire
from fedmq.fedcore.errors import (
    ClientAppError,
    ConfigError,
    FedmqError,
    ModelError,
    PrivacyError,
    StateError,
)

from . import by_hand
from .by_hand import worker

WAIT_S = 30.0
N = 100


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """A federation of a hundred floats: a version for every update."""
    return by_hand.settings(tmp_path)


def version_at_least(broker: Broker, version: int) -> dict[str, Any]:
    """The status, when the broker has come so far."""
    deadline = time.monotonic() + WAIT_S
    while (status := broker.status())["version"] is None or status["version"] < version:
        assert time.monotonic() < deadline, status
        time.sleep(0.01)
    return status


def test_a_federation_runs_to_its_end(settings: dict[str, Any]) -> None:
    """Three updates, three versions, exit code 0; the sum of all that was accepted is in the file."""
    broker = Broker({**settings, "stop": {"versions": 3}})
    with broker, worker(broker.endpoint) as w:
        assert [w.fit().result for _ in range(3)] == ["accepted"] * 3
        assert w.expect(wire.Bye).reason == "finished"
        assert broker.wait(WAIT_S) == 0
    state = Path(broker.config.federation.state)
    with Journal.read_only(state / "journal.db") as history:
        assert [row["updates"] for row in history.history()] == [0, 1, 1, 1]
        assert history.summary()["finished"]
    after = broker.status()
    assert (after["state"], after["reason"], after["version"]) == ("finished", "made version 3", 3)
    file = (state / "versions" / "v00000003.safetensors").read_bytes()
    assert np.frombuffer(file, np.float32, N, len(file) - 4 * N).min() > 1.0


def test_a_status_says_what_the_process_costs(settings: dict[str, Any]) -> None:
    """The mind's state and the body's figures in one reply."""
    with Broker(settings) as broker, worker(broker.endpoint) as w:
        w.fit()
        status = version_at_least(broker, 1)
        assert status["endpoint"] == broker.endpoint
        assert status["pid"] == os.getpid()
        assert status["kernels"] in ("native", "python")
        assert status["bytes_up"] > 4 * N
        assert status["bytes_down"] > 0
        assert status["rss_anon_bytes"] > 1 << 20
        assert status["commit_ms"]["commits"] > 0
        assert (Path(broker.config.federation.state) / "endpoint").read_text().strip() == broker.endpoint


def test_a_restart_goes_on_where_it_was(settings: dict[str, Any]) -> None:
    """The same federation, version, pause and totals; a task that is out is accepted by the next process."""
    with Broker(settings) as broker, worker(broker.endpoint) as w:
        w.fit()
        before = version_at_least(broker, 1)
        task = w.expect(wire.Task)
        assert broker.stop() == 0
        assert w.expect(wire.Bye).reason == "shutdown"
    with Broker(settings) as broker, worker(broker.endpoint) as w:
        status = broker.status()
        assert (status["version"], status["id"]) == (1, before["id"])
        assert status["bytes_up"] >= before["bytes_up"]
        assert w.offer(task).result == "accepted"
        version_at_least(broker, 2)


def test_a_killed_broker_loses_nothing_that_it_acknowledged(settings: dict[str, Any], tmp_path: Path) -> None:
    """SIGKILL right after an ACK: the update is in the next version, once."""
    with daemon(tmp_path, settings) as (process, endpoint), worker(endpoint) as w:
        for _ in range(3):
            assert w.fit().result == "accepted"
        process.kill()
        process.wait()
    with Broker(settings) as broker:
        status = version_at_least(broker, 3)
        assert status["version"] == 3
        assert status["updates"]["accepted"] <= 3


def start_process(tmp_path: Path, settings: dict[str, Any]) -> "tuple[subprocess.Popen[str], str]":
    """A broker daemon, and where it listens."""
    lines = []
    for table, keys in settings.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {value!r}" for key, value in keys.items()]
    path = tmp_path / "federation.toml"
    path.write_text("\n".join(lines))
    code = f"import sys; from fedmq.broker import daemon; sys.exit(daemon.run({str(path)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    endpoint = Path(settings["federation"]["state"]) / "endpoint"
    deadline = time.monotonic() + WAIT_S
    while not endpoint.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process, endpoint.read_text().strip()


@contextlib.contextmanager
def daemon(tmp_path: Path, settings: dict[str, Any]) -> "Iterator[tuple[subprocess.Popen[str], str]]":
    process, endpoint = start_process(tmp_path, settings)
    try:
        yield process, endpoint
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(
    settings: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    """Workers are told to come back later, and the folder is free."""
    with daemon(tmp_path, settings) as (process, endpoint), worker(endpoint) as w:
        w.expect(wire.Task)  # training is not waited for
        process.send_signal(number)
        assert w.expect(wire.Bye).reason == "shutdown"
        assert process.wait(WAIT_S) == 0
    with Broker(settings) as broker:
        assert broker.status()["version"] == 0


def test_a_first_run_that_ends_badly_leaves_its_folder(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while everything is closed, on a full disk say, must not undo what was acknowledged long before."""
    close = Journal.close
    full = [StateError("the disk is full")]

    def refused(self: Journal) -> None:
        close(self)
        while full:
            raise full.pop()

    monkeypatch.setattr(Journal, "close", refused)
    broker = Broker(settings).start()
    with worker(broker.endpoint) as w:
        assert w.fit().result == "accepted"
    with pytest.raises(StateError, match="the disk is full"):
        broker.stop()
    with Broker(settings) as again:
        assert again.status()["updates"]["accepted"] == 1


def test_two_brokers_do_not_share_a_state_folder(settings: dict[str, Any]) -> None:
    """The second one says who has it; the first one goes on."""
    with Broker(settings) as broker:
        with pytest.raises(StateError, match=f"in use by process {os.getpid()}"):
            Broker(settings).start()
        assert broker.status()["version"] == 0


def test_two_brokers_do_not_share_a_port(settings: dict[str, Any], tmp_path: Path) -> None:
    """The second one names the key, and its state folder is as it was."""
    with Broker(settings) as broker:
        other = {**settings, "federation": {"bind": broker.endpoint, "state": str(tmp_path / "other")}}
        with pytest.raises(ConfigError, match=r"federation\.bind .* in use"):
            Broker(other).start()
    assert not (tmp_path / "other").exists()
    with Broker({**other, "federation": {**other["federation"], "bind": "tcp://127.0.0.1:*"}}) as broker:
        assert broker.status()["version"] == 0


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ({"model": {"initial": "missing.safetensors"}}, ConfigError, r"model\.initial .*No such file"),
        ({"model": {"initial": "empty.safetensors"}}, ConfigError, r"model\.initial .*cannot be read"),
        ({"model": {"initial": "text.safetensors"}}, ModelError, r"model\.initial .*not a safetensors file"),
        ({"model": {"initial": "model.safetensors", "max_bytes": 100}}, ModelError, r"model\.max_bytes"),
        ({"model": {"initial": "no_such_module:app"}}, ClientAppError, "no_such_module"),
        ({"security": {"keys": "keys"}}, ConfigError, r"security\.keys"),
        ({"mode": {"kind": "sync"}, "aggregate": {"weight": "uniform"}}, PrivacyError, "cost epsilon"),
    ],
    ids=["missing file", "empty file", "no model", "too large", "no module", "keys", "budget"],
)
def test_what_cannot_start_says_why_and_leaves_nothing_behind(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    table: dict[str, Any],
    error: type[FedmqError],
    message: str,
) -> None:
    """One clear error; corrected, the same folder starts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "text.safetensors").write_text("weights " * 100)
    wrong = {**settings, **table}
    if error is PrivacyError:
        private = {"epsilon": 1.0, "delta": 1e-5, "max_grad_norm": 1.0, "sampling_rate": 1.0, "steps": 10}
        wrong["privacy"] = {**private, "divisor": 10.0, "max_batch": 10, "noise_multiplier": 1.0}
        wrong["storage"] = {"durability": "fsync"}
        wrong["evaluate"] = {"fraction": 0.0}
    with pytest.raises(error, match=message):
        Broker(wrong).start()
    state = Path(settings["federation"]["state"])
    assert not (state / "control.sock").exists()
    assert not (state / "endpoint").exists()
    if (state / "versions").exists():
        assert list((state / "versions").iterdir()) == []


def test_a_changed_config_is_refused_by_name(settings: dict[str, Any]) -> None:
    """Another buffer would be another federation."""
    with Broker(settings):
        pass
    with pytest.raises(StateError, match=r"mode\.buffer: 1 -> 2"):
        Broker({**settings, "mode": {"kind": "async", "buffer": 2}}).start()


def test_a_missing_version_file_is_a_clear_error(settings: dict[str, Any]) -> None:
    """A state folder is restored as a whole or not at all."""
    with Broker(settings) as broker:
        pass
    file = Path(broker.config.federation.state) / "versions" / "v00000000.safetensors"
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(StateError, match="is missing"):
        Broker(settings).start()
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(StateError, match="is damaged"):
        Broker(settings).start()
    file.write_bytes(content)
    Broker(settings).start().stop()


def test_payloads_that_nothing_will_read_are_deleted_at_start(settings: dict[str, Any]) -> None:
    """Of no task of ours, or of one that could only be stale; an upload that may go on stays."""
    with Broker(settings) as broker, worker(broker.endpoint) as w:
        task = w.expect(wire.Task)
    spool = Path(broker.config.federation.state) / "spool"
    (spool / task.task.hex()).write_bytes(b"half of a payload")
    (spool / b"of nobody".hex()).write_bytes(b"?")
    with Broker(settings):
        assert [path.name for path in spool.iterdir()] == [task.task.hex()]


def test_a_broker_that_is_not_running_says_so(settings: dict[str, Any]) -> None:
    """Before its start and after its end."""
    broker = Broker(settings)
    with pytest.raises(StateError, match="has not been started"):
        _ = broker.endpoint
    with pytest.raises(StateError, match="has not been started"):
        broker.wait()
    assert broker.stop() == 0
    with pytest.raises(StateError, match="is not the state folder of a broker"):
        broker.status()
    with broker:
        pass
    assert broker.status()["state"] == "stopped"
    with pytest.raises(StateError, match="started already"):
        broker.start()


def test_a_first_model_comes_from_an_app(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made in a child process, once: a restart has it."""
    (tmp_path / "first_app.py").write_text(
        textwrap.dedent("""
        import numpy as np

        class App:
            def fit(self, weights, task): ...
            def evaluate(self, weights, task): ...
            def initial(self):
                return {"w": np.full(100, 0.5, np.float32)}
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings["model"] = {"initial": "first_app:App"}
    with Broker(settings) as broker, worker(broker.endpoint) as w:
        w.fit()
        version_at_least(broker, 1)
    (tmp_path / "first_app.py").unlink()
    with Broker(settings) as broker:
        assert broker.status()["version"] == 1
