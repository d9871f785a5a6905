"""Worker-level privacy with real processes: no end of a broker makes a worker pay less, or have a part more often.

Nor does one forget the clip norm, which follows the updates here: what a version left is what the next is made with.
"""

import signal
from pathlib import Path

import pytest

from fedmq.broker import ledger
from fedmq.fedcore.privacy.accounting import gaussian_epsilon
from fedmq.fedcore.privacy.adaptive import AdaptiveClipping

from .federation import QUICK, Federation, Tables, merged
from .test_curve import Keyed

CAP = 5
VERSIONS = 7
TABLES: Tables = {
    "model": {"initial": "tiny:App"},
    "mode": {"kind": "async", "buffer": 2},
    "aggregate": {"encoding": "i8"},
    "optimizer": {"kind": "momentum", "lr": 0.5},
    "storage": {"durability": "fsync", "keep": 100, "keep_payloads": True},
    "privacy": {
        "unit": "worker",
        "epsilon": 8.0,
        "delta": 1e-5,
        "clip_norm": 0.5,
        "max_participations": CAP,
        "adaptive_clip": {"count_noise": 1.0},
    },
    "stop": {"versions": VERSIONS},
}


def test_spending_survives_every_end_and_versions_can_be_made_again(tmp_path: Path) -> None:
    """Killed twice and stopped once: the ledger is the versions' own, no worker is past its cap, bytes are the same.

    `verify` carries the clip norm from version 0 on through all of them, as if nothing had ever died.
    """
    with Federation(tmp_path, TABLES) as f:
        f.start_broker()
        f.start_workers(4, delay=0.2)  # so that it is not over before it is killed
        for after, number in ((1, signal.SIGKILL), (3, signal.SIGTERM), (5, signal.SIGKILL)):
            f.wait_for_version(after)
            f.stop_broker(number)
            f.start_broker()
        f.finish()
        assert f.cli("verify").splitlines()[-1] == f"{VERSIONS} versions recomputed, all with the same bytes"
        found = ledger.read(tmp_path / "state")
        assert found is not None
        assert (found.unit, found.releases, found.denominator, found.max_participations) == (
            "worker",
            VERSIONS,
            2.0,
            CAP,
        )
        counted = dict(
            f.query("SELECT worker, count(*) FROM updates WHERE version IS NOT NULL GROUP BY worker")
        )
        assert found.participations == counted
        assert sum(counted.values()) == 2 * VERSIONS
        assert max(counted.values()) <= CAP
        assert found.noise_multipliers == dict.fromkeys(range(1, VERSIONS + 1), found.noise_multiplier)
        assert gaussian_epsilon(found.noise_multiplier / CAP**0.5, 1e-5) == pytest.approx(8.0, rel=1e-3)
        for entry in f.history()[1:]:
            assert (entry["workers"], entry["update_norm"], entry["federated"]) == (None, None, {})
        left = [clip for (clip,) in f.query("SELECT clip_norm FROM versions ORDER BY version")]
        assert left[0] == 0.5
        assert len(set(left)) == VERSIONS + 1
        assert [entry["clip_norm"] for entry in f.history()] == [None, *left[:-1]]
        sums = AdaptiveClipping(quantile=0.5, rate=0.2, count_noise=1.0).update_noise(found.noise_multiplier)
        assert [entry["sigma"] for entry in f.history()[1:]] == [sums * clip for clip in left[:-1]]


def test_with_keys_it_ends_when_nobody_has_budget_left(tmp_path: Path) -> None:
    """Killed on the way, with noise that later versions take back: every byte can be made again, workers go home."""
    constant = {key: value for key, value in TABLES["privacy"].items() if key != "adaptive_clip"}
    privacy = {
        **constant,
        "max_participations": 2,
        "correlated": {"versions": 9, "min_separation": 1, "bandwidth": 3},
    }
    ends = {"mode": {"kind": "async", "buffer": 1}, "stop": {"versions": 0}, "security": {"keys": "keys"}}
    with Keyed(tmp_path, merged(QUICK, {**TABLES, "privacy": privacy}, ends)) as f:
        f.start_broker()
        for name in ("a", "b"):
            f.start_keyed(name, delay=0.5)
        f.wait_for_version(1)
        f.stop_broker(signal.SIGKILL)
        f.start_broker()
        f.finish()
        reasons = f.query("SELECT value FROM facts WHERE name = 'finished'")
        assert list(reasons) == [("no worker has privacy budget left",)]
        assert f.cli("verify").splitlines()[-1] == "4 versions recomputed, all with the same bytes"
        found = ledger.read(tmp_path / "state")
        assert found is not None
        assert found.participations == dict.fromkeys(f.ring.allowed(), 2)
        assert found.noise is not None
