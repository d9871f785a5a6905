"""The proxy does what the chaos tests ask of it: a test of a broken network needs one that breaks as it says."""

import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from .proxy import Proxy


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                return  # cut

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture
def proxy(echo: str) -> Iterator[Proxy]:
    with Proxy(echo, random.Random(1)) as made:
        yield made


def connected(proxy: Proxy) -> socket.socket:
    host, _, port = proxy.endpoint.removeprefix("tcp://").rpartition(":")
    client = socket.create_connection((host, int(port)))
    client.settimeout(30)
    return client


def exactly(client: socket.socket, count: int) -> bytes:
    """So many bytes, or what there was before the end."""
    got = b""
    try:
        while len(got) < count and (data := client.recv(count - len(got))):
            got += data
    except ConnectionResetError:
        pass
    return got


def test_bytes_pass(proxy: Proxy) -> None:
    """Nothing is changed, and both directions are counted."""
    sent = random.Random(2).randbytes(1_000_000)
    with connected(proxy) as client:
        thread = threading.Thread(target=client.sendall, args=(sent,))
        thread.start()
        assert exactly(client, len(sent)) == sent
        thread.join()
    assert proxy.seen == {"up": len(sent), "down": len(sent)}


def test_a_cut_is_at_its_byte(proxy: Proxy) -> None:
    """What was before it arrives, then both sides are reset; the next connection is whole."""
    proxy.cut_after("down", 1000)
    with connected(proxy) as client:
        client.sendall(bytes(5000))
        assert len(exactly(client, 5000)) <= 1000  # a reset may overtake what the kernel has not handed over
    assert (proxy.cuts, proxy.seen["up"]) == (1, 5000)
    with connected(proxy) as client:
        client.sendall(b"again")
        assert exactly(client, 5) == b"again"


def test_one_bit_is_flipped(proxy: Proxy) -> None:
    """Of the byte that was named, and of no other."""
    proxy.flip_after("up", 777)
    with connected(proxy) as client:
        client.sendall(bytes(1000))
        got = exactly(client, 1000)
    assert [i for i, byte in enumerate(got) if byte] == [777]
    assert got[777].bit_count() == 1


def test_a_slow_link_is_slow(proxy: Proxy) -> None:
    """200 kB at 1 MB/s each way take 0.2 s at least."""
    proxy.rate = 1e6
    with connected(proxy) as client:
        began = time.monotonic()
        client.sendall(bytes(200_000))
        assert len(exactly(client, 200_000)) == 200_000
        assert time.monotonic() - began > 0.15


def test_a_far_link_is_far(proxy: Proxy) -> None:
    """There and back is twice the delay."""
    proxy.delay_s = 0.1
    with connected(proxy) as client:
        began = time.monotonic()
        client.sendall(b"ping")
        assert exactly(client, 4) == b"ping"
        assert time.monotonic() - began >= 0.2


def test_a_deaf_direction(proxy: Proxy) -> None:
    """Its bytes vanish and the connection stays; when it ends, the connection is cut for the hole in it."""
    with connected(proxy) as client:
        client.sendall(b"a")
        assert exactly(client, 1) == b"a"
        proxy.swallow("down")
        client.sendall(b"b")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(30)
        proxy.deliver()
        assert exactly(client, 1) == b""
    assert proxy.cuts == 1


def test_nobody_behind_it(echo: str) -> None:
    """A broker that is away looks as it would without a proxy: refused, or reset."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Proxy(f"tcp://127.0.0.1:{port}", random.Random(1)) as proxy, connected(proxy) as client:
        assert exactly(client, 1) == b""
