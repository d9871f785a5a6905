"""The control socket: how `fedmq status`, `pause`, `resume`, `stop` and `evict` speak to a running broker.

A request is one msgpack map ``{"command": …, "args": {…}}``, a reply is one map. The socket lies in the state
folder and only its owner may open it: who may steer is who may read that folder.
"""

import contextlib
import os
import socket as sockets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import zmq

from fedmq.fedcore.errors import ConnectError, StateError

from .events import Control
from .transport import Transport

REQUEST_MAX = 64 * 1024
REPLY_MAX = 64 * 1024 * 1024
WAITING_MAX = 64
"""Requests that may wait for their reply."""
_PATH_MAX = 100  # bytes of a socket's path; the systems' limits are 104 and 108


class ControlServer:
    """The broker's end; used by the I/O thread alone.

    Parameters
    ----------
    path : Path
        Of the socket. One that a killed broker left is replaced: the state folder is locked.
    transport : Transport
        Whose poller watches this socket, too.

    Raises
    ------
    StateError
        When the socket cannot be made.
    """

    def __init__(self, path: Path, transport: Transport) -> None:
        self._socket = transport.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, REQUEST_MAX)
        self._waiting: dict[int, bytes] = {}
        self._tokens = 0
        self._short = contextlib.ExitStack()
        try:
            self._socket.bind(f"ipc://{self._short.enter_context(_short_path(path))}")
            path.chmod(0o600)
        except (zmq.ZMQError, OSError) as error:
            self._socket.close()
            self._short.close()
            raise StateError(f"the control socket {path} cannot be made: {error.strerror}") from error
        transport.watch(self._socket)

    def receive(self) -> Iterator[Control]:
        """The commands that have arrived. What is no command is answered here."""
        while True:
            try:
                sender, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                command, args = _parse(frames)
                if len(self._waiting) >= WAITING_MAX:
                    raise ValueError("the broker is busy with other commands; try again")
            except ValueError as error:
                self._send(sender, {"error": str(error)})
                continue
            self._tokens += 1
            self._waiting[self._tokens] = sender
            yield Control(self._tokens, command, args)

    def reply(self, token: int, data: dict[str, Any]) -> None:
        """Answer a command; whoever asked may be gone."""
        sender = self._waiting.pop(token, None)
        if sender is not None:
            self._send(sender, data)

    def close(self) -> None:
        """Close the socket, and remove its file. A reply that was just sent still leaves."""
        self._socket.close(linger=200)
        self._short.close()

    def _send(self, sender: bytes, data: dict[str, Any]) -> None:
        # A router drops what it cannot deliver: nobody waits for it any more.
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart([sender, msgpack.packb(data, default=str)], zmq.NOBLOCK)


def request(state: str | Path, command: str, timeout_s: float = 5.0, **args: Any) -> dict[str, Any]:
    """Send a command to the broker that runs on a state folder, and wait for its reply.

    Parameters
    ----------
    state : path
        The state folder.
    command : str
        ``status``, ``pause``, ``resume``, ``stop``, ``evict`` or ``admit``.
    timeout_s : float
        How long to wait.
    args
        Of the command: ``worker`` of ``evict`` and ``admit``.

    Raises
    ------
    ConnectError
        When no broker runs there.
    StateError
        When it does not answer in time, or refuses the command.
    """
    path = Path(state).absolute() / "control.sock"
    with _short_path(path) as short:
        if not _listening(short):
            raise ConnectError(f"no broker is running on state folder {path.parent}")
        context = zmq.Context()
        try:
            socket = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, REPLY_MAX)
            socket.connect(f"ipc://{short}")
            socket.send(msgpack.packb({"command": command, "args": args}))
            if not socket.poll(int(timeout_s * 1000)):
                raise StateError(
                    f"the broker on state folder {path.parent} does not answer within {timeout_s:g} s"
                )
            reply = msgpack.unpackb(socket.recv(), strict_map_key=False)
        finally:
            context.destroy(linger=0)
    if not isinstance(reply, dict):
        raise StateError(f"the broker on state folder {path.parent} gave no map as its answer")
    if "error" in reply:
        raise StateError(str(reply["error"]))
    return reply


def _parse(frames: list[bytes]) -> tuple[str, dict[str, Any]]:
    if len(frames) != 1:
        raise ValueError(f"a command is one frame, not {len(frames)}")
    try:
        request = msgpack.unpackb(frames[0], max_ext_len=0)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"a command is a msgpack map: {error or type(error).__name__}") from None
    match request:
        case {"command": str(command), "args": dict(args)} if all(isinstance(key, str) for key in args):
            return command, args
    raise ValueError("a command is a map of command, a text, and args, a map")


def _listening(path: str) -> bool:
    """Whether somebody listens on a socket; a killed broker leaves its file behind."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """A name for the same socket that fits a socket address: through a link where the path is too long."""
    if len(os.fsencode(path)) <= _PATH_MAX:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="fedmq-") as folder:
        link = Path(folder) / "s"
        link.symlink_to(path.parent)
        yield str(link / path.name)
