"""What the starter of a federation does where its children do not play along; the rest is in test_demo."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from fedmq.cli.processes import Child, LocalFederation
from fedmq.fedcore import config
from fedmq.fedcore.errors import ProcessError


def test_a_broker_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    """One that is ending still has its socket: each demo would have ended five seconds later."""
    federation = LocalFederation(tmp_path, {})
    assert federation.status() is None  # there is no socket at all
    federation.state.mkdir()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(federation.state / "control.sock"))
        deaf.listen()
        started = time.monotonic()
        assert federation.status() is None
    assert time.monotonic() - started < 3


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Its own last line, and nothing is left running."""
    tables = {"federation": {"name": "demo"}, "model": {"initial": "missing.safetensors"}}
    with LocalFederation(tmp_path, tables) as federation:
        with pytest.raises(ProcessError, match=r"^broker ended with exit code 2: model\.initial is "):
            federation.start_broker()
        assert federation.broker is not None
        assert federation.broker.code == 2
    written = config.load(tmp_path / "federation.toml").federation
    assert (written.name, written.bind) == ("demo", "tcp://127.0.0.1:*")
    assert written.state == str(tmp_path / "state")


def test_a_child_ends_when_its_starter_lets_go(tmp_path: Path) -> None:
    """Its stdin is the leash: closed, for whatever reason, it gets the SIGTERM that ends it in order."""
    worker = ["worker", "--connect", "tcp://127.0.0.1:9", "--app", "fedmq.cli.bench.app:app", "--state", "w"]
    child = Child("worker-1", worker, tmp_path / "worker-1.log", os.environ)
    try:
        while "connecting" not in child.log.read_text(encoding="utf-8"):
            assert child.code is None, child.log.read_text(encoding="utf-8")
            time.sleep(0.02)
        assert child._process.stdin is not None
        child._process.stdin.close()
        assert child.join(20)
    finally:
        child.kill()
    assert child.code == 0


def test_a_killed_child_is_named_with_its_signal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the end of its log is shown, of which the error says that it is there."""
    log = tmp_path / "x.log"
    log.write_text("".join(f"line {number}\n" for number in range(30)))
    child = Child("x", ["broker", "missing.toml"], log, os.environ)
    child.send(signal.SIGKILL)
    assert child.join(20)
    assert str(child.failure()) == "x was killed by SIGKILL; the end of its log is above"
    shown = capsys.readouterr().err.splitlines()
    assert shown == [f"  x | line {number}" for number in range(18, 30)]
