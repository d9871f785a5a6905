"""No accepted update is lost, and none is counted twice, however often broker and workers are killed.

An asynchronous federation of four workers, two with payloads that ride with their offer and two with payloads
in the spool, is killed (SIGKILL) at random moments. FEDMQ_TEST_KILLS=200 makes it longer, FEDMQ_TEST_SEED=3
other; the seed of a run stands in its output.

The proof has four independent parts:

- what workers were told: each task whose acceptance a worker logged stands in the journal, once;
- what the journal says: each row is in one version, or in a buffer that is still open;
- what the model holds: each fit adds 1 to an element of its own (`apps/marker.py`), so the model is the set
  of updates that were counted. It must be the journal's, and no element may be 2;
- what was kept: `fedmq verify` makes every version again from the payloads.
"""

import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from .apps import marker
from .federation import APPS, Federation, Tables, events, wait_for

KILLS = int(os.environ.get("FEDMQ_TEST_KILLS", "20"))
SEED = int(os.environ.get("FEDMQ_TEST_SEED", "1"))
BUFFER = 8

MARKED: Tables = {
    "mode": {
        "kind": "async",
        "buffer": BUFFER,
        "concurrency": 16,
        "max_staleness": 1000,
        "staleness": "constant",
    },
    # The sum of a buffer's updates, not their mean: each counts exactly 1.
    "optimizer": {"kind": "sgd", "lr": float(BUFFER)},
    "aggregate": {"weight": "uniform", "encoding": "f16"},
    "network": {"beat_s": 0.2, "lease_s": 1.0, "block": 16 * 1024, "credit_budget": 64 * 1024},
    "storage": {"keep_payloads": True},
}


def start(f: Federation, number: int) -> None:
    """Start one of the four workers, or start it again."""
    name = f"w{number}"
    if number <= 2:  # f16: 40 kB, inline
        node = {"number": number, "marks": f"marks-{number}", "delay": 0.05}
        f.start_worker(name, "marker:App", "--log-format", "json", **node)
    else:  # f32: 80 kB, in parts
        f.workers[name] = f.program(name, APPS / "marker.py", f.endpoint, name, str(number))


@pytest.mark.timeout(120 + 10 * KILLS)
def test_no_accepted_update_is_lost_or_counted_twice(tmp_path: Path) -> None:
    """See the module: four proofs over one history of kills."""
    print(f"FEDMQ_TEST_SEED={SEED} FEDMQ_TEST_KILLS={KILLS}")
    rng = random.Random(SEED)
    with Federation(tmp_path, MARKED) as f:
        f.start_broker()
        for number in range(1, 5):
            start(f, number)
        f.wait_for_version(1)
        killed = []
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.05, 1.2))
            victim = rng.choice(["broker", "broker", "w1", "w2", "w3", "w4"])
            killed.append(victim)
            if victim == "broker":
                assert f.broker is not None
                f.broker.kill()
                time.sleep(rng.choice([0, 0, 0.5]))
                f.start_broker()
            else:
                f.workers[victim].kill()
                start(f, int(victim[1]))
        print("killed:", " ".join(killed))
        # Everybody comes back, and the federation goes on.
        wait_for("all are back", lambda: len(f.status().get("workers", [])) == 4)
        f.wait_for_more(3)
        f.cli("stop", "--finish")
        f.finish()
        judge(f)


def judge(f: Federation) -> None:
    """The four proofs."""
    rows = f.query("SELECT task, version, buffer, metrics, inlined FROM updates")
    versions = len(f.history()) - 1
    by_task = {task.hex(): version for task, version, *_ in rows}
    assert len(by_task) == len(rows), "a task stands in the journal twice"
    assert {bool(inlined) for *_, inlined in rows} == {True, False}, "this shows little: one kind of payload"

    told = [
        event["task"]
        for worker in f.workers.values()
        for event in events(worker)
        if event["event"] == "update accepted" and event["kind"] == "fit"
    ]
    assert len(told) > KILLS
    assert len(told) == len(set(told)), "an update was accepted twice"
    assert set(told) <= by_task.keys(), "an update that was accepted is not in the journal"

    for _, version, buffer, *_ in rows:
        assert version == buffer + 1 if version is not None else buffer == versions
    sizes = f.query("SELECT version, count(*) FROM updates WHERE version IS NOT NULL GROUP BY version")
    assert sizes == [(version, BUFFER) for version in range(1, versions + 1)]

    marks = {version: [] for version in range(versions + 1)}
    for _, version, _, metrics, _ in rows:
        if version is not None:
            marks[version].append(int(json.loads(metrics)["mark"]))
    expected = np.zeros(marker.N, np.float32)
    for version in range(versions + 1):
        np.add.at(expected, marks[version], 1)
        assert expected.max() <= 1, "a fit is counted twice"
        if version % 10 == 0 or version == versions:
            assert np.array_equal(f.weights(version), expected), f"version {version}"
    assert sum(map(len, marks.values())) == versions * BUFFER

    assert f"{versions} versions recomputed, all with the same bytes" in f.cli("verify")
    print(
        f"{versions} versions, {len(rows)} updates accepted, {len(told)} of them told to workers that lived on"
    )
