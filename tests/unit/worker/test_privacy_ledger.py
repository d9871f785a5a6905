"""The worker's ledger: counted before it is spent, never forgotten, never taken for empty."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedmq.fedcore.errors import BudgetExhausted, PrivacyError, StateError
from fedmq.fedcore.privacy.accounting import Spend
from fedmq.worker.privacy.ledger import LEDGER, SECRET, Ledger, secret, state_of

from .private import plan, task


def test_what_was_committed_is_found_by_the_next_process(tmp_path: Path) -> None:
    """Steps of equal noise together, others beside them; an empty folder has spent nothing."""
    assert Ledger(tmp_path).spent() == []
    for _ in range(3):
        Ledger(tmp_path).commit(plan(steps_per_task=2, sampling_rate=1.0))
    Ledger(tmp_path).commit(plan(noise_multiplier=100.0, sampling_rate=1.0, epsilon=20.0))
    assert Ledger(tmp_path).spent() == [Spend(1.0, 1.0, 6), Spend(100.0, 1.0, 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [LEDGER]


def test_the_cap_is_kept_and_nothing_is_written_beyond(tmp_path: Path) -> None:
    """The task that would pass it is refused as a whole, however many of its steps would fit."""
    ledger = Ledger(tmp_path)
    for _ in range(3):
        ledger.commit(plan(steps_per_task=3))
    before = (tmp_path / LEDGER).read_bytes()
    for _ in range(2):
        with pytest.raises(BudgetExhausted, match=r"^privacy_budget"):
            ledger.commit(plan(steps_per_task=3))
    assert (tmp_path / LEDGER).read_bytes() == before
    ledger.commit(plan(steps_per_task=1))
    assert ledger.spent() == [Spend(1.0, 0.5, 10)]


def test_a_commit_is_on_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file and the folder that names it are fsynced, in this order."""
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    Ledger(tmp_path).commit(plan())
    assert synced == [f"{tmp_path / LEDGER}.tmp", str(tmp_path)]


@pytest.mark.parametrize(
    "found",
    [
        b"",
        b"{",
        b'{"format":2,"spent":[]}',
        b'{"format":1,"spent":[{"noise_multiplier":0.0}]}',
        b'{"format":1,"spent":[{"noise_multiplier":1.0,"steps":-5}]}',
        b'{"format":1,"spent":[],"more":1}',
    ],
)
def test_a_ledger_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path, found: bytes) -> None:
    """Nothing is spent on a guess, and the file stays as it is."""
    (tmp_path / LEDGER).write_bytes(found)
    with pytest.raises(StateError, match=r"privacy\.json cannot be read.*spend its budget once more"):
        Ledger(tmp_path).commit(plan())
    assert (tmp_path / LEDGER).read_bytes() == found


def test_a_ledger_that_cannot_be_written_ends_the_task(tmp_path: Path) -> None:
    """A disk that is full, or as here a folder in the draft's place."""
    (tmp_path / f"{LEDGER}.tmp").mkdir()
    with pytest.raises(StateError, match="cannot be written"):
        Ledger(tmp_path).commit(plan())
    assert Ledger(tmp_path).spent() == []


def test_steps_count_where_the_process_dies_between_commit_and_result(tmp_path: Path) -> None:
    """Killed while the first record is read: the whole task is spent, and the next process goes on from there."""
    code = """
import os, signal, sys
from pathlib import Path
import numpy as np
from fedmq.worker.adapters.linear import LinearGradients, PrivateLinearApp
from fedmq.worker.client import TaskContext
from fedmq.worker.privacy import LocalPrivacy

def die(self, flat, indices):
    os.kill(os.getpid(), signal.SIGKILL)

LinearGradients.rows = die
plan = LocalPrivacy(noise_multiplier=1.0, delta=1e-5, max_grad_norm=1.0, sampling_rate=0.5, divisor=4.0,
                    max_steps=10, steps_per_task=4)
app = PrivateLinearApp((np.zeros((8, 2)), np.zeros(8)), kind="linear", privacy=plan)
app.fit(app.initial(), TaskContext(kind="fit", state=Path(sys.argv[1])))
"""
    for spent in (4, 8):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True)
        assert done.returncode == -signal.SIGKILL
        assert Ledger(tmp_path).spent() == [Spend(1.0, 0.5, spent)]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "BudgetExhausted: privacy_budget" in done.stderr


def test_the_secret_is_drawn_once(tmp_path: Path) -> None:
    """32 bytes that only this user may read; other folders have others; a damaged one is refused."""
    first = secret(tmp_path)
    assert len(first) == 32
    assert secret(tmp_path) == first
    assert (tmp_path / SECRET).stat().st_mode & 0o777 == 0o600
    (tmp_path / "other").mkdir()
    assert secret(tmp_path / "other") != first
    (tmp_path / SECRET).write_bytes(first[:7])
    with pytest.raises(StateError, match="holds 7 bytes, expected 32"):
        secret(tmp_path)


def test_without_a_state_folder_nothing_is_promised(tmp_path: Path) -> None:
    """What is spent would be forgotten with the process."""
    assert state_of(task(tmp_path)) == tmp_path
    with pytest.raises(PrivacyError, match="--state FOLDER"):
        state_of(task(None))
