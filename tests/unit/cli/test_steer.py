"""`fedmq pause`, `resume`, `stop`, `evict`, `admit` and a live `status`, against a real broker in this process."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq.broker.daemon import Broker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker without workers; it waits for the first one's model."""
    settings = {"name": "wards", "bind": "tcp://127.0.0.1:*", "state": tmp_path / "state"}
    with Broker({"federation": settings, "storage": {"durability": "os"}}) as running:
        yield running


def look(fedmq, broker: Broker) -> dict[str, object]:
    code, out, err = fedmq("status", broker.config.federation.state, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def test_status_is_live(fedmq, broker: Broker) -> None:
    """The running broker answers, with where it listens and why nothing happens."""
    found = look(fedmq, broker)
    assert (found["federation"], found["state"], found["endpoint"]) == ("wards", "stalled", broker.endpoint)
    assert found["reason"]
    code, out, _ = fedmq("status", broker.config.federation.state)
    assert code == 0
    assert f"endpoint    {broker.endpoint}\n" in out


def test_pause_and_resume(fedmq, broker: Broker) -> None:
    """The status says so, and takes it back."""
    state = broker.config.federation.state
    assert fedmq("pause", state) == (0, 'paused; "fedmq resume" goes on\n', "")
    assert look(fedmq, broker)["state"] == "paused"
    assert fedmq("resume", state) == (0, "resumed\n", "")
    assert look(fedmq, broker)["state"] == "stalled"


def test_what_is_so_already_is_said(fedmq, broker: Broker) -> None:
    """A second pause and a resume of nothing change nothing, and succeed."""
    state = broker.config.federation.state
    assert fedmq("resume", state) == (0, "not paused\n", "")
    fedmq("pause", state)
    assert fedmq("pause", state) == (0, 'paused already; "fedmq resume" goes on\n', "")
    assert look(fedmq, broker)["state"] == "paused"


def test_evicting_somebody_who_is_not_there(fedmq, broker: Broker) -> None:
    """It is refused in one line that lists who is."""
    code, out, err = fedmq("evict", broker.config.federation.state, "ward-3")
    assert (code, out) == (6, "")
    assert err == "fedmq: no worker 'ward-3'; there are: none\n"


def test_stop(fedmq, broker: Broker) -> None:
    """The broker drains and ends with 0; after that there is nobody to steer."""
    state = broker.config.federation.state
    assert fedmq("stop", state) == (0, "stopping\n", "")
    assert broker.wait(10.0) == 0
    assert fedmq("stop", state)[0] == 7
    assert json.loads(fedmq("status", state, "--json")[1])["state"] == "stopped"


def test_finish(fedmq, broker: Broker) -> None:
    """A federation that an operator finished is over, also in the journal."""
    state = broker.config.federation.state
    assert fedmq("stop", state, "--finish")[0] == 0
    assert broker.wait(10.0) == 0
    assert json.loads(fedmq("status", state, "--json")[1])["state"] == "finished"
