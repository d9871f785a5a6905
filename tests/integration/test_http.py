"""The HTTP port of a real broker: metrics, health, readiness, and what it never does."""

import contextlib
import http.client
import json
import re
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedmq.broker.daemon import Broker
from fedmq.broker.metrics import BY_NAME, METRICS
from fedmq.broker.store.journal import Journal
from fedmq.broker.threads import Ask
from fedmq.fedcore import wire
from fedmq.fedcore.errors import ConfigError

from . import by_hand
from .by_hand import worker

WAIT_S = 30.0
N = 100
NAME = "ward-3, the one by the lift"
PRIVATE = {
    "mode": {"kind": "sync", "min_available": 1},
    "privacy": {
        "epsilon": 1000.0,
        "delta": 1e-5,
        "max_grad_norm": 1.0,
        "sampling_rate": 1.0,
        "steps": 10,
        "divisor": 10.0,
        "max_batch": 10,
        "noise_multiplier": 1.0,
    },
    "storage": {"durability": "fsync"},
    "aggregate": {"weight": "uniform"},
    "evaluate": {"fraction": 0.0},
}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """A federation of a hundred floats, a version for every update, with an HTTP port."""
    return {**by_hand.settings(tmp_path), "network": {"http": "127.0.0.1:*"}}


def get(broker: Broker, path: str, method: str = "GET") -> tuple[int, str]:
    """One request to a broker's HTTP port."""
    return ask(broker.status()["http"], path, method)


def ask(url: str, path: str, method: str = "GET") -> tuple[int, str]:
    """One request."""
    host, port = urllib.parse.urlsplit(url).hostname, urllib.parse.urlsplit(url).port
    assert host is not None
    connection = http.client.HTTPConnection(host, port, timeout=WAIT_S)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def scrape(broker: Broker) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, in the order of the labels' names."""
    status, text = get(broker, "/metrics")
    assert status == 200, text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def until(
    broker: Broker, condition: Callable[[dict[tuple[str, ...], float]], bool]
) -> dict[tuple[str, ...], float]:
    """Scrape until something is so: what is shown may be a second old."""
    ends = time.monotonic() + WAIT_S
    while not condition(found := scrape(broker)):
        assert time.monotonic() < ends, found
        time.sleep(0.1)
    return found


def test_what_happens_is_counted(settings: dict[str, Any]) -> None:
    """Sessions, tasks, updates with their reasons, commits, messages, bytes."""
    with Broker(settings) as broker, worker(broker.endpoint, NAME) as w:
        assert w.fit().result == "accepted"
        assert w.fit(np.nan).result == "rejected"
        w.send_frames([b"not", b"a message"])
        w.expect(wire.Error)
        found = until(broker, lambda now: now["fedmq_protocol_errors_total",] == 1)
        assert found["fedmq_updates_total", "fit", "", "accepted"] == 1
        assert found["fedmq_updates_total", "fit", "non-finite", "rejected"] == 1
        assert found["fedmq_updates_total", "fit", "", "duplicate"] == 0
        assert found["fedmq_sessions",] == 1
        assert found["fedmq_sessions_opened_total", "no"] == 1
        assert found["fedmq_messages_received_total", "offer"] == 2
        assert found["fedmq_errors_sent_total", "malformed"] == 1
        assert found["fedmq_tasks_sent_total", "fit"] >= 2
        assert found["fedmq_tasks_released_total", "fit", "rejected"] == 1
        assert found["fedmq_staleness_versions_count",] == 1
        assert found["fedmq_update_norm_sum",] == pytest.approx(10.0)
        assert found["fedmq_update_norm_bucket", "10.0"] == 1
        assert found["fedmq_commit_seconds_count",] > 0
        assert found["fedmq_commit_rows_total",] >= found["fedmq_commit_seconds_count",]
        assert found["fedmq_received_bytes_total",] > 8 * N
        assert found["fedmq_process_open_fds",] > 3
        assert found["fedmq_process_anonymous_bytes",] > 1 << 20
        assert found["fedmq_disk_free_bytes",] > 0
        assert found["fedmq_loop_answer_seconds",] < WAIT_S
        assert found["fedmq_connections",] == 1
        made = until(broker, lambda now: now["fedmq_version",] == 1)
        assert made["fedmq_fold_seconds_count",] == 1
        assert made["fedmq_journal_bytes",] > 0


def test_every_metric_has_its_place_and_its_help(settings: dict[str, Any]) -> None:
    """What is shown is in `METRICS` with a line that teaches; what is in `METRICS` is shown somewhere."""
    with Broker(settings) as broker, worker(broker.endpoint, NAME) as w:
        w.fit()
        text = get(broker, "/metrics")[1]
    shown = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    assert shown.keys() <= BY_NAME.keys()
    assert all(shown[name] == BY_NAME[name].help for name in shown)
    assert {name for name in BY_NAME if name not in shown} == {
        "fedmq_privacy_clip_norm",
        "fedmq_privacy_steps_left",
        "fedmq_privacy_steps_spent",
        "fedmq_model_metric",
    }
    assert NAME not in text


def test_privacy_hides_who_and_how_many(settings: dict[str, Any]) -> None:
    """Nothing from which answers could be counted; what was spent is there."""
    with Broker({**settings, **PRIVATE}) as broker, worker(broker.endpoint, NAME) as w:
        assert w.fit().result == "accepted"
        found = until(broker, lambda now: now["fedmq_version",] == 1)
    names = {re.sub(r"_(bucket|count|sum)$", "", name) for name, *_ in found}
    assert not names & {metric.name for metric in METRICS if metric.hidden}
    assert found["fedmq_privacy_steps_spent",] == 1
    assert found["fedmq_privacy_steps_left",] == 9


def test_a_broker_says_that_it_lives_and_serves(settings: dict[str, Any]) -> None:
    """200 and JSON; which version workers get, and that it waits for one where it has none."""
    with Broker(settings) as broker:
        status, text = get(broker, "/healthz")
        assert (status, json.loads(text)["status"]) == (200, "alive")
        status, text = get(broker, "/readyz")
        ready = json.loads(text)
        assert (status, ready["ready"], ready["version"], ready["waits_for"]) == (200, True, 0, None)
        assert ready["state"] == "stalled"
    settings["federation"]["state"] += "2"
    settings["model"] = {"initial": "first-worker"}
    with Broker(settings) as broker:
        status, text = get(broker, "/readyz")
        ready = json.loads(text)
        assert (status, ready["version"], ready["waits_for"]) == (200, None, "a worker's initial model")


def test_a_stuck_loop_is_noticed(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An I/O thread that does not come round is 503 everywhere; when it goes on, so does the page."""
    monkeypatch.setattr("fedmq.broker.http.ANSWER_S", 0.2)
    monkeypatch.setattr("fedmq.broker.http.Loop.answer.__defaults__", (0.2,))
    monkeypatch.setattr("fedmq.broker.http.FRESH_S", 0.0)
    with Broker(settings) as broker:
        held, go = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            go.wait(WAIT_S)

        url = broker.status()["http"]
        monkeypatch.setattr(broker, "status", lambda: {"http": url})  # it could not answer that either
        assert broker._inbox is not None
        broker._inbox.put(Ask(hold))
        assert held.wait(WAIT_S)
        assert get(broker, "/healthz")[0] == 503
        assert json.loads(get(broker, "/readyz")[1])["reason"] == "the I/O loop does not answer"
        assert get(broker, "/metrics")[0] == 503
        go.set()
        ends = time.monotonic() + WAIT_S
        while get(broker, "/healthz")[0] != 200:
            assert time.monotonic() < ends
        assert get(broker, "/metrics")[0] == 200


def test_a_disk_that_takes_nothing_is_not_ready(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only or full disk, and a commit that does not end, each with its reason."""
    with Broker(settings) as broker:
        monkeypatch.setattr("fedmq.broker.vitals.FULL_BYTES", 1 << 62)
        status, text = get(broker, "/readyz")
        assert (status, json.loads(text)["reason"]) == (503, "the disk is full")
        monkeypatch.undo()
        assert get(broker, "/readyz")[0] == 200
        monkeypatch.setattr("fedmq.broker.threads.Commits.running_s", lambda self: 60.0)
        time.sleep(1.1)  # an answer may be a second old
        status, text = get(broker, "/readyz")
        assert (status, json.loads(text)["reason"]) == (
            503,
            "a commit has been waiting for the disk for 60 s",
        )
        assert get(broker, "/healthz")[0] == 200


def test_there_are_three_pages_to_read(settings: dict[str, Any]) -> None:
    """Anything else is 404; anything but reading is 405; HEAD is reading."""
    with Broker(settings) as broker:
        assert get(broker, "/")[0] == 404
        assert get(broker, "/metrics/")[0] == 404
        assert get(broker, "/metrics", "POST")[0] == 405
        assert get(broker, "/healthz", "DELETE")[0] == 405
        assert get(broker, "/healthz", "HEAD") == (200, "")


def test_a_port_in_use_changes_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    """One clear error before anything was made; with another port the same folder starts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings["network"]["http"] = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"network\.http .* in use"):
            Broker(settings).start()
        assert not (tmp_path / "state").exists()
    for address, message in (("127.0.0.1:99999", "65535"), ("192.0.2.1:9560", "cannot listen")):
        settings["network"] = {"http": address, "http_public": True}
        with pytest.raises(ConfigError, match=message):
            Broker(settings).start()
        assert not (tmp_path / "state").exists()


def test_a_missing_library_is_named(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing and how to get it; nothing was made."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "fedmq.broker.http", raising=False)
    with pytest.raises(ConfigError, match=r'the library uvicorn: pip install "fedmq\[broker\]"'):
        Broker(settings).start()
    assert not Path(settings["federation"]["state"]).exists()


def test_without_the_key_nothing_is_loaded_or_opened(settings: dict[str, Any]) -> None:
    """An operator who wants no port gets none."""
    del settings["network"]
    with Broker(settings) as broker:
        assert broker.status()["http"] == ""
        assert not [
            thread for thread in threading.enumerate() if thread.name == "fedmq-http" and thread.is_alive()
        ]


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6_loopback(settings: dict[str, Any]) -> None:
    """``[::1]:port``."""
    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6 loopback")
    settings["network"]["http"] = "[::1]:*"
    with Broker(settings) as broker:
        assert broker.status()["http"].startswith("http://[::1]:")
        assert get(broker, "/healthz")[0] == 200


def test_connections_that_say_nothing_end(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They cannot take the descriptors that workers need: only so many, and each for a while."""
    monkeypatch.setattr("fedmq.broker.http.LIFE_S", 1.0)
    with Broker(settings) as broker, contextlib.ExitStack() as stack:
        port = int(broker.status()["http"].rpartition(":")[2])
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(100)]
        assert get(broker, "/healthz")[0] == 200
        for connection in idle:
            connection.settimeout(WAIT_S)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        assert get(broker, "/healthz")[0] == 200


def test_nobody_waits_for_a_broker_that_ends(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A question that the I/O thread had no time for is answered at the end: 503, and no traceback."""
    with Broker(settings) as broker:
        url, inbox = broker.status()["http"], broker._inbox
        assert inbox is not None
        answers = []
        held, go = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            go.wait(WAIT_S)

        inbox.put(Ask(hold))
        assert held.wait(WAIT_S)
        asker = threading.Thread(target=lambda: answers.append(ask(url, "/healthz")[0]))
        asker.start()
        broker.halt()
        go.set()
        assert broker.wait(WAIT_S) == 1
        asker.join(WAIT_S)
        assert answers in ([503], [200])
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_the_port_is_free_again_after_the_end(settings: dict[str, Any]) -> None:
    """Stopped, with a request that waits and a connection that is kept open, it ends in time and can start again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings["network"]["http"] = f"127.0.0.1:{probe.getsockname()[1]}"
    for _ in range(2):
        broker = Broker(settings).start()
        host, port = settings["network"]["http"].split(":")
        kept = http.client.HTTPConnection(host, int(port), timeout=WAIT_S)
        kept.request("GET", "/healthz")
        assert kept.getresponse().status == 200
        assert broker.stop() == 0
        kept.close()
    with Journal.read_only(Path(settings["federation"]["state"]) / "journal.db") as history:
        assert history.summary()["version"] == 0
