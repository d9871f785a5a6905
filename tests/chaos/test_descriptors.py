"""More strangers connect than the broker has descriptors.

It stays alive, serves the workers that it has, and says what is going on; when the strangers are gone, new workers come
in. The limit is the real one of the system (RLIMIT_NOFILE), which the broker finds when it starts.
"""

import contextlib
import os
import random
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..integration.federation import APPS, Federation, log_of, wait_for
from . import marked
from .marked import BUFFER, MARKED, Recovery, judge, wait_for_updates
from .rounds import times
from .tally import Tally

EXHAUSTED = "descriptors exhausted by strangers"
UNRULY = Path(__file__).with_name("unruly")
FILES = 512
CROWD = 800
AGAIN_S = 0.5
"""Whoever is sent away comes back after so long."""
TURNS = times(1, 5)


@contextlib.contextmanager
def crowd(endpoint: str) -> Iterator[None]:
    """So many connections that say nothing; whoever is sent away comes back."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    address = (host, int(port))
    leave = threading.Event()

    def stand(selector: selectors.BaseSelector) -> None:
        stranger = socket.socket()
        stranger.setblocking(False)
        stranger.connect_ex(address)
        selector.register(stranger, selectors.EVENT_READ)

    def run() -> None:
        with selectors.DefaultSelector() as selector:
            for _ in range(CROWD):
                stand(selector)
            away: list[float] = []
            while not leave.wait(0.02):
                while away and away[0] <= time.monotonic():
                    away.pop(0)
                    stand(selector)
                for key, _ in selector.select(0):
                    stranger = key.fileobj
                    assert isinstance(stranger, socket.socket)
                    with contextlib.suppress(OSError):
                        if stranger.recv(4096):
                            continue
                    selector.unregister(stranger)
                    stranger.close()
                    away.append(time.monotonic() + AGAIN_S)
            for key in list(selector.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()

    thread = threading.Thread(target=run, name="crowd")
    thread.start()
    try:
        yield
    finally:
        leave.set()
        thread.join()


@pytest.mark.timeout(120 + 30 * TURNS)
def test_a_crowd_of_strangers(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    """Workers that are in work on; one that comes later gets in when the crowd is gone, if not before."""
    path = os.pathsep.join(filter(None, [str(UNRULY), str(APPS), os.environ.get("PYTHONPATH")]))
    with Federation(tmp_path, MARKED) as f:
        f.start_broker({"PYTHONPATH": path, "FEDMQ_CHAOS_FILES": str(FILES)})
        marked.start_workers(f)
        for _ in range(TURNS):
            assert f.broker is not None
            with crowd(f.endpoint):
                wait_for("it says so", lambda: f.status().get("turned_away", 0) > 0)
                wait_for_updates(f, 2 * BUFFER)
                assert "turned away, raise the limit on open files" in f.cli("status")
                f.workers["w4"].kill()
            recovery = Recovery(f, "w4")
            marked.start_worker(f, 4)
            tally.injected(EXHAUSTED, recovery.wait())
            assert f.broker.code is None, log_of(f.broker)
        assert f.broker is not None
        assert "connections turned away" in log_of(f.broker)
        marked.finish(f)
        verdict = judge(f, rng)
        tally.judged([EXHAUSTED], verdict.lost, verdict.twice)
