"""What the system knows of a connection by its descriptor, and how one is cut. Linux and TCP; elsewhere it says so.

A ROUTER has no call that closes one peer's connection, and tells nothing of bytes that have not become a
message. Its frames name the descriptor that they came from, though, and the kernel answers for that. The
descriptors belong to libzmq, which may close one at any time and get the same number for another connection,
so each use is made on a duplicate, and only of a socket at our own address. Only where no descriptor is left for a
duplicate does `cut_at` use the connection's own: at worst another one at our address is cut, and made again.
"""

import contextlib
import ctypes
import os
import resource
import socket
import struct
import sys

_connect = ctypes.CDLL(None).connect
_NOWHERE = struct.pack("=H14x", socket.AF_UNSPEC)
FILES_MIN = 192
"""Descriptors for files: the journal, updates that are written, and versions, of which 64 may be mapped."""
_RECEIVED = struct.Struct("=Q")
_RECEIVED_AT = 128
"""`tcpi_bytes_received` in Linux's `struct tcp_info`, since 4.1."""


def is_supported(endpoint: str) -> bool:
    """Whether `bytes_received` has an answer for connections to this address."""
    return endpoint.startswith("tcp://") and hasattr(socket, "TCP_INFO")


def room() -> int:
    """How many connections this process may have, so that some descriptors stay for files.

    A quarter is kept back: libzmq accepts in a thread of its own, and is ahead of whoever cuts by as many as connect
    in a few milliseconds.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(soft - max(FILES_MIN, soft // 4), soft // 4)


def hold(descriptor: int) -> socket.socket | None:
    """A duplicate of a connection's descriptor, to be closed by whoever asked; None when it is gone."""
    try:
        return socket.socket(fileno=os.dup(descriptor))
    except OSError:
        return None


def cut(connection: socket.socket) -> None:
    """End a connection for both sides, with all that it has sent and nobody has read, and close the duplicate."""
    _dissolve(connection)
    connection.close()


def cut_at(descriptor: int, port: int) -> bool:
    """End the connection at a descriptor, if it is one to this port; whether it was."""
    connection = hold(descriptor)
    is_own = connection is None
    try:
        connection = connection or socket.socket(fileno=descriptor)
    except OSError:  # it is gone
        return False
    is_ours = port_of(connection) == port
    if is_ours:
        _dissolve(connection)
    if is_own:
        connection.detach()  # it is libzmq's to close
    else:
        connection.close()
    return is_ours


def _dissolve(connection: socket.socket) -> None:
    """End a TCP connection at once, by connecting it to no address (connect(2)); shut other sockets down.

    `shutdown` would leave megabytes of a flood in the kernel's buffer, to be read and thrown away.
    """
    if _connect(connection.fileno(), _NOWHERE, len(_NOWHERE)) != 0:
        with contextlib.suppress(OSError):  # the peer was faster
            connection.shutdown(socket.SHUT_RDWR)


def port_of(connection: socket.socket) -> int:
    """The port on this side; 0 when it is no TCP connection."""
    try:
        name = connection.getsockname()
    except OSError:
        return 0
    return int(name[1]) if isinstance(name, tuple) and len(name) >= 2 else 0


def bytes_received(descriptor: int, port: int) -> int | None:
    """Bytes that the kernel has taken in on a connection to this port; None when it is none (any more)."""
    connection = hold(descriptor)
    if connection is None:
        return None
    try:
        if port_of(connection) != port:
            return None
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED_AT + _RECEIVED.size)
    except OSError:
        return None
    finally:
        connection.close()
    if len(info) < _RECEIVED_AT + _RECEIVED.size:
        return None
    return int(_RECEIVED.unpack_from(info, _RECEIVED_AT)[0])
