"""Worker-level privacy in rounds, with real processes: no end of a broker flips a coin again, or forgets a round."""

import json
import signal
from pathlib import Path

from fedmq.broker.sampled_promise import SampledPromise
from fedmq.broker.snapshot import snapshot
from fedmq.broker.statement import statement
from fedmq.broker.verification import verify

from .federation import Federation, Tables

ROUNDS = 4
TABLES: Tables = {
    "model": {"initial": "tiny:App"},
    "mode": {"kind": "sync", "min_available": 3, "deadline_s": 0.5},
    "storage": {"durability": "fsync", "keep": 100, "keep_payloads": True},
    "privacy": {
        "unit": "worker",
        "epsilon": 8.0,
        "delta": 1e-5,
        "clip_norm": 0.5,
        "sampling_rate": 0.5,
        "steps": ROUNDS,
        "divisor": 1.5,
        "noise_multiplier": 3.0,
        "adaptive_clip": {"count_noise": 2.0},
    },
}


def test_a_federation_ends_with_its_rounds_and_versions_can_be_made_again(tmp_path: Path) -> None:
    """Killed in between: each round asked one sample, all are charged, nothing tells of whom, the clip norm goes on."""
    with Federation(tmp_path, TABLES) as f:
        f.start_broker()
        f.start_workers(3, delay=0.2)  # so that it is not over before it is killed
        f.wait_for_version(1)
        f.stop_broker(signal.SIGKILL)
        f.start_broker()
        f.finish()
        assert [verdict.same for verdict in verify(f.state)] == [True] * ROUNDS
        for buffer, cohort in f.query("SELECT buffer, cohort FROM rounds"):
            came = {worker for (worker,) in f.query(f"SELECT worker FROM updates WHERE buffer = {buffer}")}
            assert came <= set(json.loads(cohort))
        for entry in f.history()[1:]:
            assert (entry["updates"], entry["workers"], entry["seconds"]) == (None, None, None)
        said = statement(f.state)
        assert said.finished == "the privacy budget is spent"
        assert isinstance(said.promise, SampledPromise)
        assert said.promise.releases == said.promise.releases_planned == ROUNDS
        assert 0 < said.promise.epsilon_spent == said.promise.epsilon_planned <= 8.0
        assert said.promise.noise_agrees
        stopped = snapshot(f.state)
        assert (stopped["buffer"]["have"], set(stopped["updates"])) == (None, set())
        assert "bytes_up" not in stopped
        left = [clip for (clip,) in f.query("SELECT clip_norm FROM versions ORDER BY version")]
        assert len(set(left)) == ROUNDS + 1
        assert (left[0], left[-1]) == (0.5, stopped["clip_norm"])
