"""A federation whose model says which updates are in it, and the proofs that none is lost and none counted twice.

Four workers train asynchronously: two with payloads that ride with their offer and two with payloads in the spool.
Each fit adds 1 to an element of its own (`apps/marker.py`), and a version is the sum of its buffer. The proofs share
nothing but the journal:

- what workers were told: each task whose acceptance a worker logged stands in the journal, once;
- what the journal says: each row is in one version, or in a buffer that is still open, and each version has its
  whole buffer;
- what the model holds: numpy adds up the payloads that were kept, version by version. The model must be that sum,
  and no element may be 2;
- `fedmq verify` makes every version again with the kernels, and some are made with Python's whole numbers.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..integration.apps import marker
from ..integration.federation import APPS, WAIT_S, Federation, Tables, events, wait_for
from ..integration.test_recomputation import combined, decoded

BUFFER = 8
EXACT = 3
"""Versions that are made again with whole numbers of Python, which takes a while."""

MARKED: Tables = {
    "mode": {
        "kind": "async",
        "buffer": BUFFER,
        "concurrency": 16,
        "max_staleness": 100_000,
        "staleness": "constant",
    },
    # The sum of a buffer's updates, not their mean: each counts exactly 1.
    "optimizer": {"kind": "sgd", "lr": float(BUFFER)},
    "aggregate": {"weight": "uniform", "encoding": "f16"},
    "network": {"beat_s": 0.2, "lease_s": 1.0, "block": 16 * 1024, "credit_budget": 64 * 1024},
    "storage": {"keep_payloads": True},
}


def start_worker(f: Federation, number: int) -> None:
    """Start one of the four workers, or start it again."""
    name = f"w{number}"
    if number <= 2:  # f16: 40 kB, inline
        node = {"number": number, "marks": f"marks-{number}", "delay": 0.05}
        f.start_worker(name, "marker:App", "--log-format", "json", **node)
    else:  # f32: 80 kB, in parts
        f.workers[name] = f.program(name, APPS / "marker.py", f.through or f.endpoint, name, str(number))


def start(f: Federation) -> None:
    """Start the broker and all four, and wait until they work."""
    f.start_broker()
    start_workers(f)


def start_workers(f: Federation) -> None:
    """Start all four, and wait until they work."""
    for number in range(1, 5):
        start_worker(f, number)
    wait_for("everybody has delivered", lambda: all(accepted(f, f"w{n}") for n in range(1, 5)))


def finish(f: Federation) -> None:
    """Everybody comes back, the federation goes on, and ends in order."""
    wait_until_all_are_back(f)
    f.wait_for_more(2)
    f.cli("stop", "--finish")
    f.finish()


def wait_until_all_are_back(f: Federation) -> None:
    """Each worker that was ever started has been heard a moment ago: a backoff can take a minute."""

    def here() -> bool:
        heard = {w["name"]: w["heard_s"] for w in f.status().get("workers", [])}
        recent = 3 * float(f.tables["network"]["beat_s"])
        return all(heard.get(name) is not None and heard[name] < recent for name in f.workers)

    wait_for("all are back", here, 2 * WAIT_S)


def wait_for_more(what: str, count: Callable[[], int], before: int) -> None:
    """Something has happened more often than before."""
    wait_for(what, lambda: count() > before)


def wait_for_updates(f: Federation, count: int) -> None:
    """So many more are accepted, whosever they are."""
    before = accepted(f)
    wait_for(f"{count} more updates", lambda: accepted(f) >= before + count)


def accepted(f: Federation, worker: str = "") -> int:
    """How many updates (of one worker) are in the journal."""
    of = f" WHERE worker = '{worker}'" if worker else ""
    count = f.query(f"SELECT count(*) FROM updates{of}")[0][0]
    assert isinstance(count, int)
    return count


class Recovery:
    """Begins when a fault ends; `wait` gives the seconds until all is well again.

    That is when an update was accepted that was not before, after a fault of the broker; or one of each of `workers`,
    after a fault that was theirs.
    """

    def __init__(self, f: Federation, *workers: str) -> None:
        self._f = f
        self._before = {worker: accepted(f, worker) for worker in workers or ("",)}
        self._began = time.monotonic()

    def begin(self) -> None:
        """The fault ends now; what was there before is known from earlier."""
        self._began = time.monotonic()

    def wait(self) -> float:
        wait_for(f"updates of {', '.join(self._before) or 'anybody'}", self._is_over, 2 * WAIT_S)
        return time.monotonic() - self._began

    def _is_over(self) -> bool:
        return all(accepted(self._f, worker) > before for worker, before in self._before.items())


@dataclass(frozen=True)
class Verdict:
    """What the proofs found. `told` counts acceptances that workers logged, which a kill can keep from a log."""

    versions: int
    accepted: int
    told: int
    lost: int
    twice: int


def judge(f: Federation, rng: random.Random, *, is_clean: bool = True) -> Verdict:
    """All four proofs, over a federation that has ended; losses are counted before anything is asserted.

    Where the wire was tampered with (`is_clean` false), an acceptance may name a task that never was.
    """
    rows = f.query("SELECT task, version, buffer, inlined FROM updates")
    versions = len(f.history()) - 1
    journal = {task.hex() for task, *_ in rows}
    told = [
        event["task"]
        for worker in f.workers.values()
        for event in events(worker)
        if event["event"] == "update accepted" and event["kind"] == "fit" and "result" not in event
    ]
    missing, surplus, marks = _model_against_payloads(f, versions)
    lost = len(set(told) - journal) + missing
    twice = len(told) - len(set(told)) + len(rows) - len(journal) + surplus
    verdict = Verdict(versions, len(rows), len(told), lost, twice)
    print(verdict)
    assert (lost, twice) == (0, 0), verdict
    assert told, "nobody was told anything: this shows little"
    assert {bool(inlined) for *_, inlined in rows} == {True, False}, "one kind of payload: this shows little"
    for _, version, buffer, _ in rows:
        assert version == buffer + 1 if version is not None else buffer == versions
    sizes = f.query("SELECT version, count(*) FROM updates WHERE version IS NOT NULL GROUP BY version")
    assert sizes == [(version, BUFFER) for version in range(1, versions + 1)]
    assert marks == versions * BUFFER
    assert f"{versions} versions recomputed, all with the same bytes" in f.cli("verify")
    for version in rng.sample(range(1, versions + 1), min(EXACT, versions)):
        step, _, _ = combined(f.updates(version), f.tables)
        made = (f.weights(version - 1).astype(np.float64) + float(BUFFER) * step).astype(np.float32)
        assert made.tobytes() == f.weights(version).tobytes(), f"version {version}"
    return verdict


def _model_against_payloads(f: Federation, versions: int) -> tuple[int, int, int]:
    """Add up the kept payloads: marks that a model lacks, marks that count too often, and marks in all."""
    expected = np.zeros(marker.N, np.float64)
    missing = surplus = marks = 0
    for version in range(versions + 1):
        for row in f.updates(version):
            delta = decoded(row["payload"], row["encoding"])
            assert sorted(delta[delta != 0].tolist()) == [1.0], "an update is one mark"
            expected += delta
            marks += 1
        surplus += int((expected > 1).sum())
        if version % 10 == 0 or version == versions:
            model = f.weights(version)
            missing += int((model < expected).sum())
            surplus += int((model > expected).sum())
    return missing, surplus, marks
