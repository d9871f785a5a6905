"""The pieces of `fedmq bench load`: ZMTP over bytes, bins of latency, and how little of it is left to chance."""

import math
import socket
from collections import Counter

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from fedmq.cli.bench.load import Load, quantile
from fedmq.cli.bench.swarm import BINS, bin_of
from fedmq.cli.bench.zmtp import HELLO, Receiver, frames_to_bytes
from fedmq.fedcore import config
from fedmq.fedcore.errors import ProtocolError


def greeted() -> Receiver:
    """A receiver whose peer has said hello."""
    receiver = Receiver()
    assert list(receiver.feed(HELLO)) == []
    assert receiver.is_ready
    return receiver


@given(st.lists(st.lists(st.binary(max_size=700), min_size=1, max_size=4), max_size=4), st.integers(1, 999))
def test_messages_come_out_as_they_went_in(messages: list[list[bytes]], piece: int) -> None:
    """However the bytes are cut on their way."""
    data = b"".join(map(frames_to_bytes, messages))
    receiver = greeted()
    found: list[list[bytes]] = []
    for start in range(0, len(data), piece):
        found += receiver.feed(data[start : start + piece])
    assert found == messages


def test_it_speaks_with_a_real_socket() -> None:
    """A ROUTER of libzmq takes the greeting, and both understand the other's frames."""
    context = zmq.Context()
    try:
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.RCVTIMEO, 30_000)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
            raw.sendall(HELLO)
            receiver = Receiver()
            while not receiver.is_ready:
                assert list(receiver.feed(raw.recv(1 << 16))) == []
            raw.sendall(frames_to_bytes([b"short", bytes(300), b""]))
            sender, *frames = router.recv_multipart()
            assert frames == [b"short", bytes(300), b""]
            router.send_multipart([sender, b"back", bytes(70_000)])
            found: list[list[bytes]] = []
            while not found:
                found = list(receiver.feed(raw.recv(1 << 16)))
            assert found == [[b"back", bytes(70_000)]]
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\n".ljust(64), b"\xff" + bytes(63)])
def test_a_peer_that_speaks_something_else_is_refused(greeting: bytes) -> None:
    with pytest.raises(ProtocolError, match="does not speak ZMTP"):
        list(Receiver().feed(greeting))


@given(st.floats(1e-6, 100.0))
def test_a_bin_is_seven_percent_wide(seconds: float) -> None:
    """What a quantile says is never less than what was measured, and hardly more."""
    said = quantile(Counter({bin_of(seconds): 1}), 0.99)
    assert seconds * (1 - 1e-9) <= said <= seconds * 2**0.1 * (1 + 1e-9)


def test_quantiles_count() -> None:
    """Of a hundred, ninety-nine are not above the p99; of none there is no latency."""
    bins = Counter({10: 98, 20: 1, 30: 1})
    assert quantile(bins, 0.5) == quantile(Counter({10: 1}), 0.5)
    assert quantile(bins, 0.99) == quantile(Counter({20: 1}), 0.5)
    assert quantile(bins, 1.0) == quantile(Counter({30: 1}), 0.5)
    assert math.isnan(quantile(Counter(), 0.5))
    assert (bin_of(0.0), bin_of(1e9)) == (0, BINS - 1)


@pytest.mark.parametrize(("rate", "concurrency"), [(1000, 500), (0.5, 1), (1e6, 300)])
def test_the_tables_are_a_config(rate: float, concurrency: int) -> None:
    """As many tasks are out as keep the rate, and never more than there are workers."""
    load = Load(
        workers=300 if rate > 1e5 else 10_000,
        processes=4,
        rate=rate,
        seconds=1,
        idle_s=1,
        floats=1000,
        buffer=64,
        durability="fsync",
    )
    mode = config.parse(load.tables()).mode
    assert isinstance(mode, config.AsyncMode)
    assert mode.concurrency == concurrency
