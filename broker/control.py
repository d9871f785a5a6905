"""The control socket: how `fedmq status`, `pause`, `resume`, `stop` and `evict` speak to a running broker.

One connection is one command: a msgpack map ``{"command": …, "args": {…}}``, then the end of what the client sends;
one map comes back, and the end. The socket lies in the state folder and only its owner may open it: who may
steer is who may read that folder.

Rules that hold here:

- A thread waits for connections, and another for each of them: a large reply is packed and sent beside the I/O loop,
  which only finds a command in its inbox and hands back a map.
- Whoever connects and says nothing, or too much, is sent away; whoever asks never waits without end.
- Without a free descriptor the next client waits until there is one. (libzmq's listener for ipc ends the process
  instead: 4.3.5, src/ipc_listener.cpp.)
"""

import contextlib
import itertools
import logging
import os
import queue
import selectors
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgpack

from fedmq.fedcore.errors import ConnectError, StateError
from fedmq.fedcore.inbox import Inbox

from .events import Control

log = logging.getLogger("fedmq.broker")

REQUEST_MAX: Final = 64 * 1024
REQUEST_S: Final = 5.0
"""A client has so long to say what it wants, and to take the reply."""
ANSWER_S: Final = 60.0
"""The mind answers within a turn; one that is so slow has no answer."""
FAREWELL_S: Final = 0.5
"""How long an end waits for replies that are on their way."""
AGAIN_S: Final = 0.1
"""Between tries to take a connection when there is no descriptor for it."""
_PATH_MAX: Final = 100  # bytes of a socket's path; the systems' limits are 104 and 108

_Box = queue.SimpleQueue[dict[str, Any]]


class ControlServer:
    """The broker's end.

    Parameters
    ----------
    path : Path
        Of the socket. One that a killed broker left is replaced: the state folder is locked.
    inbox : Inbox
        Where commands go.

    Raises
    ------
    StateError
        When the socket cannot be made.
    """

    def __init__(self, path: Path, inbox: Inbox[Any]) -> None:
        self._path = path
        self._inbox = inbox
        self._tokens = itertools.count(1)
        self._boxes: dict[int, _Box] = {}
        self._clients: set[threading.Thread] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            with _short_path(path) as short:
                self._listener.bind(short)
            path.chmod(0o600)
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise StateError(f"the control socket {path} cannot be made: {error.strerror}") from error
        self._end, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="fedmq-control", daemon=True)
        self._thread.start()

    def reply(self, token: int, data: dict[str, Any]) -> None:
        """Answer a command; whoever asked may be gone."""
        box = self._boxes.pop(token, None)
        if box is not None:
            box.put(data)

    def close(self) -> None:
        """Listen no more, and remove the socket. Replies that were just given still leave."""
        os.close(self._ended)
        self._thread.join()
        self._listener.close()
        os.close(self._end)
        with contextlib.suppress(OSError):  # the folder may be gone
            self._path.unlink()
        for token in list(self._boxes):
            self.reply(token, {"error": "the broker has stopped"})
        deadline = time.monotonic() + FAREWELL_S
        for client in list(self._clients):
            client.join(max(deadline - time.monotonic(), 0.0))

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            end = selector.register(self._end, selectors.EVENT_READ)
            while end not in [key for key, _ in selector.select()]:
                try:
                    connection, _ = self._listener.accept()
                    client = threading.Thread(
                        target=self._attend, args=(connection,), name="fedmq-control-client", daemon=True
                    )
                    self._clients.add(client)
                    client.start()
                except (OSError, RuntimeError) as error:  # no descriptor, no thread
                    log.warning("control socket: nobody can be let in now", extra={"reason": str(error)})
                    time.sleep(AGAIN_S)

    def _attend(self, connection: socket.socket) -> None:
        """Serve one client, in its own thread."""
        try:
            # A client that hangs up early is answered by nobody.
            with connection, contextlib.suppress(OSError):
                connection.settimeout(REQUEST_S)
                connection.sendall(msgpack.packb(self._answer(connection), default=str))
        finally:
            self._clients.discard(threading.current_thread())

    def _answer(self, connection: socket.socket) -> dict[str, Any]:
        try:
            command, args = _parse(_read(connection, REQUEST_MAX))
        except ValueError as error:
            return {"error": str(error)}
        token = next(self._tokens)
        box = self._boxes[token] = _Box()
        self._inbox.put(Control(token, command, args))
        try:
            return box.get(timeout=ANSWER_S)
        except queue.Empty:
            self._boxes.pop(token, None)
            return {"error": f"the broker did not answer within {ANSWER_S:g} s"}


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
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            with _short_path(path) as short:
                connection.connect(short)
        except (
            ConnectionRefusedError,
            FileNotFoundError,
            NotADirectoryError,
        ):  # or a killed broker left it behind
            raise ConnectError(f"no broker is running on state folder {path.parent}") from None
        except OSError as error:
            raise StateError(f"the broker on state folder {path.parent} cannot be asked: {error}") from error
        try:
            connection.sendall(msgpack.packb({"command": command, "args": args}))
            connection.shutdown(socket.SHUT_WR)
            reply = msgpack.unpackb(_read(connection), strict_map_key=False)
        except TimeoutError:
            raise StateError(
                f"the broker on state folder {path.parent} does not answer within {timeout_s:g} s"
            ) from None
        except (OSError, ValueError):
            raise StateError(f"the broker on state folder {path.parent} ended before it answered") from None
    if not isinstance(reply, dict):
        raise StateError(f"the broker on state folder {path.parent} gave no map as its answer")
    if "error" in reply:
        raise StateError(str(reply["error"]))
    return reply


def _read(connection: socket.socket, most: int | None = None) -> bytes:
    """What the other side sends until it ends, within the socket's timeout for all of it.

    Raises
    ------
    TimeoutError, OSError
        When it does not end in time, or breaks.
    ValueError
        When it is more than `most` bytes.
    """
    timeout_s = connection.gettimeout()
    assert timeout_s is not None
    deadline = time.monotonic() + timeout_s
    data = bytearray()
    while part := connection.recv(64 * 1024):
        data += part
        if most is not None and len(data) > most:
            raise ValueError(f"a command has at most {most} bytes")
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
    connection.settimeout(timeout_s)
    return bytes(data)


def _parse(data: bytes) -> tuple[str, dict[str, Any]]:
    try:
        request = msgpack.unpackb(data, max_ext_len=0)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"a command is a msgpack map: {error or type(error).__name__}") from None
    match request:
        case {"command": str(command), "args": dict(args)} if all(isinstance(key, str) for key in args):
            return command, args
    raise ValueError("a command is a map of command, a text, and args, a map")


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
