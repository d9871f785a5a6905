"""The control socket: commands over a real one, and everything else that may be said to it."""

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from fedmq.broker import control
from fedmq.broker.control import ControlServer
from fedmq.broker.events import Control
from fedmq.fedcore.errors import ConnectError, StateError
from fedmq.fedcore.inbox import Inbox

from .federation import wait_for

WAIT_S = 20.0


class Broker:
    """A broker that knows one command, `status`; `deaf` ones hear and do not answer."""

    def __init__(self, folder: Path, *, deaf: bool = False) -> None:
        self.heard: list[Control] = []
        self._deaf = deaf
        self._inbox: Inbox[Control] = Inbox()
        self.server = ControlServer(folder / "control.sock", self._inbox)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(0.001):
            for command in self._inbox.drain():
                self.heard.append(command)
                if not self._deaf:
                    self.server.reply(command.token, _answer(command))

    def __enter__(self) -> "Broker":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self._end.set()
        self._thread.join()
        self._inbox.close()


def _answer(command: Control) -> dict[str, object]:
    if command.command == "status":
        return {"version": 4, "args": command.args}
    return {"ok": False, "error": f"unknown command {command.command!r}"}


@contextlib.contextmanager
def client_of(folder: Path) -> Iterator[socket.socket]:
    """A connection to the control socket, by hand."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(WAIT_S)
        client.connect(str(folder / "control.sock"))
        yield client


def test_a_command_is_answered(tmp_path: Path) -> None:
    """And only the owner of the state folder may give one."""
    with Broker(tmp_path):
        assert control.request(tmp_path, "status", worker="w") == {"version": 4, "args": {"worker": "w"}}
        assert (tmp_path / "control.sock").stat().st_mode & 0o777 == 0o600


def test_a_refused_command_is_an_error(tmp_path: Path) -> None:
    """With the broker's reason."""
    with Broker(tmp_path), pytest.raises(StateError, match="unknown command 'dance'"):
        control.request(tmp_path, "dance")


def test_no_broker_is_a_clear_error_at_once(tmp_path: Path) -> None:
    """Also where a killed one left its socket behind, which the next one replaces."""
    with pytest.raises(ConnectError, match="no broker is running on state folder"):
        control.request(tmp_path, "status")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as killed:
        killed.bind(str(tmp_path / "control.sock"))
    with pytest.raises(ConnectError, match="no broker is running"):
        control.request(tmp_path, "status")
    with Broker(tmp_path):
        assert control.request(tmp_path, "status")["version"] == 4


def test_a_broker_that_does_not_answer_is_a_clear_error(tmp_path: Path) -> None:
    """The command line never hangs."""
    with Broker(tmp_path, deaf=True), pytest.raises(StateError, match=r"does not answer within 0\.2 s"):
        control.request(tmp_path, "status", timeout_s=0.2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb([1]),
        msgpack.packb({"command": 3, "args": {}}),
        msgpack.packb({"command": "status"}),
        msgpack.packb({"command": "status", "args": {}}) + b"more",
        b"\x81\xa7command\x93" + b"\x91" * 3000,
        msgpack.packb({"command": "status", "args": {"x": "x" * control.REQUEST_MAX}}),
    ],
)
def test_what_is_no_command_is_answered_and_not_heard(tmp_path: Path, data: bytes) -> None:
    """The control socket trusts its bytes no more than the other one."""
    with Broker(tmp_path) as broker:
        with client_of(tmp_path) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert "error" in msgpack.unpackb(client.makefile("rb").read())
        assert not broker.heard
        assert control.request(tmp_path, "status")["version"] == 4


def test_clients_that_say_nothing_or_hang_up_are_in_nobodys_way(tmp_path: Path) -> None:
    """A shell that was stopped in the middle of `fedmq status` must not keep another from steering."""
    with Broker(tmp_path), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(tmp_path)) for _ in range(20)]
        for client in clients[10:]:
            client.sendall(msgpack.packb({"command": "status", "args": {}}))
            client.close()
        assert control.request(tmp_path, "status")["version"] == 4


def test_whoever_waits_at_the_end_is_told(tmp_path: Path) -> None:
    """And the socket is gone."""
    with Broker(tmp_path, deaf=True) as broker:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(tmp_path / "control.sock"))
        client.sendall(msgpack.packb({"command": "status", "args": {}}))
        client.shutdown(socket.SHUT_WR)
        wait_for("the command to be heard", lambda: broker.heard)
    with client:
        assert "stopped" in msgpack.unpackb(client.makefile("rb").read())["error"]
    assert not (tmp_path / "control.sock").exists()


def test_without_a_descriptor_for_it_a_command_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process goes on, and answers when there is one again."""
    with Broker(tmp_path) as broker:
        listener, refusals = broker.server._listener, iter([errno.EMFILE, errno.ENFILE, errno.EMFILE])

        class Exhausted:
            def accept(self) -> tuple[socket.socket, object]:
                for number in refusals:
                    raise OSError(number, os.strerror(number))
                return listener.accept()

            def fileno(self) -> int:
                return listener.fileno()

            def close(self) -> None:
                listener.close()

        monkeypatch.setattr(broker.server, "_listener", Exhausted())
        assert control.request(tmp_path, "status")["version"] == 4
        assert next(refusals, None) is None


def test_a_deep_state_folder_can_be_steered(tmp_path: Path) -> None:
    """A socket's path may be 107 bytes; a state folder's may be longer."""
    deep = tmp_path.joinpath(*["a-rather-long-name-of-a-folder"] * 6)
    deep.mkdir(parents=True)
    with Broker(deep):
        assert control.request(deep, "status")["version"] == 4
    with pytest.raises(ConnectError, match="no broker is running"):
        control.request(deep, "status")
