"""Private workers in real federations: noise of their own under a ledger, and sums that a broker adds the noise to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedmq import TaskContext, Worker
from fedmq.broker.store.versions import VersionStore
from fedmq.fedcore.layout import Layout
from fedmq.fedcore.privacy.accounting import Spend
from fedmq.fedcore.state_dict import unpack
from fedmq.worker.adapters.linear import PrivateLinearApp
from fedmq.worker.privacy import GradientSum, LocalPrivacy
from fedmq.worker.privacy.ledger import Ledger

from .federation import Federation, Tables, wait_for

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2000, 6))
Y = (X @ np.arange(-3, 3) > 0).astype(int)


class Reasons:
    """Why tasks failed, as an embedding program is told."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, moment: str, fields: Mapping[str, Any]) -> None:
        if str(moment) == "task_failed":
            self.seen.append(str(fields["reason"]))


def test_a_worker_at_its_cap_fails_its_tasks_and_lives_on(tmp_path: Path) -> None:
    """Three tasks make three versions; then `privacy_budget`, also from the next process with this state folder."""
    tables: Tables = {
        "mode": {"kind": "async", "buffer": 1, "concurrency": 1},
        "model": {"initial": "first-worker"},
    }
    privacy = LocalPrivacy(
        noise_multiplier=1.0,
        delta=1e-5,
        max_grad_norm=1.0,
        sampling_rate=0.1,
        divisor=200.0,
        max_steps=7,
        steps_per_task=2,
    )
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        for _ in range(2):
            reasons = Reasons()
            app = PrivateLinearApp((X, Y), kind="logistic", privacy=privacy)
            with Worker(app, f.endpoint, tmp_path / "edge", name="edge", on_event=reasons) as worker:
                wait_for("a task is refused", lambda reasons=reasons: reasons.seen)
                assert worker.status()["connection"] == "open"
            assert {reason.partition(":")[0] for reason in reasons.seen} == {"privacy_budget"}
            assert f.status()["version"] == 3
            assert Ledger(tmp_path / "edge" / "app").spent() == [Spend(1.0, 0.1, 6)]


def test_without_a_state_folder_a_private_worker_says_what_it_needs(tmp_path: Path) -> None:
    """Its ledger would go with its process."""
    tables: Tables = {
        "mode": {"kind": "async", "buffer": 1, "concurrency": 1},
        "model": {"initial": "first-worker"},
    }
    reasons = Reasons()
    app = PrivateLinearApp((X, Y), kind="logistic", privacy=GradientSum(max_grad_norm=1.0, sampling_rate=0.1))
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        with Worker(app, f.endpoint, name="edge", on_event=reasons):
            wait_for("a task is refused", lambda: reasons.seen)
        assert "needs a state folder" in reasons.seen[0]
        assert f.status()["version"] == 0


def test_sums_of_private_workers_make_versions_of_a_private_federation(tmp_path: Path) -> None:
    """The broker takes them, adds the noise once, and the model learns; the workers' ledgers stay empty."""
    numbers = {"max_grad_norm": 1.0, "sampling_rate": 0.25}
    tables: Tables = {
        "mode": {"kind": "sync", "min_available": 2, "deadline_s": 0.0},
        "model": {"initial": "first-worker"},
        "task": numbers,
        "evaluate": {"every": 0, "fraction": 0.0},
        "aggregate": {"weight": "uniform"},
        "optimizer": {"kind": "sgd", "lr": 4.0},
        "storage": {"durability": "fsync"},
        "stop": {"versions": 12},
        "privacy": {
            **numbers,
            "epsilon": 8.0,
            "delta": 1e-5,
            "noise_multiplier": 2.0,
            "steps": 12,
            "divisor": 500.0,
            "max_batch": 2000,
        },
    }
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        apps = [
            PrivateLinearApp((X[i::2], Y[i::2]), kind="logistic", privacy=GradientSum(), test=(X, Y))
            for i in range(2)
        ]
        workers = [
            Worker(app, f.endpoint, tmp_path / f"w{i}", name=f"w{i}").start() for i, app in enumerate(apps)
        ]
        for worker in workers:
            assert worker.wait(60)
        file = VersionStore(f.state / "versions", fsync=False).file(12)
        weights = unpack(Layout.from_file_prefix(file, len(file)), file)
        measured = apps[0].evaluate(weights, TaskContext(kind="evaluate")).metrics
        assert measured["accuracy"] > 0.9
        assert not (tmp_path / "w0" / "app" / "privacy.json").exists()
        assert (tmp_path / "w0" / "app" / "privacy.secret").exists()
