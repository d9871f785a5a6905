"""FedAsync: each update is mixed in by itself, with the model that it was trained from; that is kept for it."""

import contextlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.broker.aggregator import fold
from fedmq.broker.fold_job import plan_fold
from fedmq.broker.opening import open_storage
from fedmq.broker.rows import AcceptRow, FreezeRow, VersionInfo, VersionRow
from fedmq.broker.store.backup import backup
from fedmq.broker.store.state import StateFolder
from fedmq.fedcore import config, kernels, wire
from fedmq.fedcore.config import Config, FedAsync, Storage
from fedmq.fedcore.errors import StateError

from .federation import Federation, asynchronous
from .test_aggregator import DELTAS, SMALL_TILE, State
from .test_backup import Folder, names


def mixing(**keys: Any) -> Config:
    """A FedAsync federation that keeps no version for any other reason."""
    return asynchronous(
        **{"buffer": 1, "optimizer": FedAsync(), "storage": Storage(keep=1), "max_staleness": 2} | keys
    )


class TestFolds:
    def make(self, state: State, version: int, row: AcceptRow, **options: Any) -> np.ndarray:
        """Fold one update onto a version; the model that comes of it."""
        file = state.versions.file(version)
        base = VersionInfo(
            version=version, digest=b"", size=len(file), layout=state.layout.digest, n=state.layout.n
        )
        job = plan_fold(
            base, [row], weighting=options.pop("weighting", "uniform"), optimizer=FedAsync(alpha=0.5)
        )
        fold(job, state.versions, state.spool, **options)
        return state.flat(version + 1)

    def test_by_hand(self, tmp_path: Path) -> None:
        """α = ½ and s = ½: a quarter of the way from w to x = b + Δ, the bits of which are all exact here."""
        state = State(tmp_path, {"w": np.array([8.0, -4.0], np.float32)})
        first = state.accept(np.array([4.0, 8.0], np.float32))
        np.testing.assert_array_equal(self.make(state, 0, first), [10, 0])  # half way to (12, 4)
        late = state.accept(np.array([-6.0, 4.0], np.float32), weight=0.5, tau=1)
        # x = (8, −4) + (−6, 4) = (2, 0), and w = (10, 0).
        np.testing.assert_array_equal(self.make(state, 1, late), [10 - 8 / 4, 0])

    def test_weights_by_examples_change_nothing(self, tmp_path: Path) -> None:
        """Of one update: n s Δ / n is s Δ."""
        found = []
        for weighting, weight in (("uniform", 0.5), ("examples", 20.0)):
            state = State(tmp_path / weighting)
            self.make(state, 0, state.accept(DELTAS[0]))
            row = state.accept(DELTAS[1], weight=weight, examples=40, tau=1)
            found.append(self.make(state, 1, row, weighting=weighting).tobytes())
        assert found[0] == found[1]

    def test_it_is_the_papers_formula(self, tmp_path: Path) -> None:
        """(1 − α_τ) w + α_τ x to float32's rounding; the same bits by any tile and with either backend."""
        made = []
        for number, (tile, backend) in enumerate([(1 << 20, kernels.backend), (SMALL_TILE, "python")]):
            state = State(tmp_path / str(number))
            with kernels.use(backend):
                w = self.make(state, 0, state.accept(DELTAS[0]), tile=tile).astype(np.float64)
                late = state.accept(DELTAS[1], weight=0.75, tau=1)
                found = self.make(state, 1, late, tile=tile)
            x = state.flat(0).astype(np.float64) + DELTAS[1]
            np.testing.assert_allclose(found, (1 - 0.375) * w + 0.375 * x, rtol=0, atol=1e-6)
            made.append(found.tobytes())
        assert made[0] == made[1]

    def test_a_base_that_is_gone_ends_the_fold(self, tmp_path: Path) -> None:
        """Rather than mixing in something else; the version before stays the last one."""
        state = State(tmp_path)
        self.make(state, 0, state.accept(DELTAS[0]))
        state.versions.delete([0])
        with pytest.raises(StateError, match="version 0 is not kept"):
            self.make(state, 1, state.accept(DELTAS[1], tau=1))
        assert state.versions.versions() == (1,)


class TestBases:
    def test_are_kept_as_long_as_an_update_may_need_them(self) -> None:
        """`max_staleness` versions behind the current one, whatever `keep` says, and not longer."""
        federation = Federation(mixing())
        worker = federation.worker("w0")
        for _ in range(5):
            worker.fit()
            federation.fold()
        assert federation.collected == [0, 1, 2]  # 5, 4 and 3 are there

    def test_survive_a_restart(self) -> None:
        """An update that waited for it is mixed in with its old base."""
        federation = Federation(mixing())
        slow, quick = federation.workers(2)
        slow.offer(slow.task(), inline=True)
        task = quick.task()
        federation.fold()
        federation.restart()
        quick.hello()
        quick.offer(task)
        fold = federation.fold()
        assert [(row.base, row.tau) for row in fold.rows] == [(0, 1)]
        assert federation.collected == []

    def test_an_update_whose_base_is_gone_is_stale(self) -> None:
        """It cannot be mixed in any more, and its worker gets another task."""
        federation = Federation(mixing())
        slow, quick = federation.workers(2)
        task = slow.task()
        quick.fit()
        federation.fold()
        federation.lost = {0}
        federation.restart()
        slow.hello()
        slow.offer(task)
        ack = slow.last(wire.Ack)
        assert (ack.result, ack.reason) == ("stale", "base: the file of that version is gone")
        assert slow.task().version == 0  # the one that it offered
        slow.beat(free=1)
        assert slow.task().version == 1


class TestStarts:
    """What a broker finds at its start: an update that waits, trained from a version before the current one."""

    TABLES: dict[str, Any] = {  # noqa: RUF012
        "mode": {"buffer": 1, "max_staleness": 2},
        "optimizer": {"kind": "fedasync"},
    }

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Folder:
        folder = Folder(tmp_path / "state", self.TABLES)
        folder.accept(b"late", 2, base=1, inline=True)
        folder.journal.apply([FreezeRow(buffer=2, reason="full")])
        return folder

    def start(self, folder: Folder) -> None:
        tables = {"federation": {"name": "wards", "state": folder.path}, **self.TABLES}
        settings = config.parse(tables, base_dir=folder.path.parent)
        with StateFolder.open(folder.path) as state, contextlib.ExitStack() as stack:
            open_storage(settings, state, stack)

    def path(self, folder: Folder, version: int) -> Path:
        return folder.path / "versions" / f"v{version:08d}.safetensors"

    def test_with_everything_there(self, folder: Folder) -> None:
        """It goes on."""
        self.start(folder)

    def test_with_a_base_that_an_update_waits_for_gone(self, folder: Folder) -> None:
        """It does not: what was accepted must be folded as it was promised."""
        self.path(folder, 1).unlink()
        with pytest.raises(StateError, match=r"v00000001.safetensors is missing, but an update"):
            self.start(folder)

    def test_with_another_base_gone(self, folder: Folder) -> None:
        """It goes on: nobody was promised anything."""
        self.path(folder, 0).unlink()
        self.start(folder)

    def test_with_a_damaged_base(self, folder: Folder) -> None:
        """It does not, as with a damaged current version."""
        path = self.path(folder, 0)
        path.write_bytes(path.read_bytes()[:-1] + struct.pack("B", 7))
        with pytest.raises(StateError, match=r"v00000000.safetensors is damaged"):
            self.start(folder)

    def test_a_backup_holds_the_bases_of_what_waits(self, folder: Folder, tmp_path: Path) -> None:
        """One without them would be of no use, and is not made."""
        backup(folder.path, tmp_path / "out")
        assert "versions/v00000001.safetensors" in names(tmp_path / "out")
        self.path(folder, 1).unlink()
        with pytest.raises(StateError, match=r"v00000001.safetensors is missing"):
            backup(folder.path, tmp_path / "again")


def test_versions_say_what_they_are_made_of() -> None:
    """One update each, whose staleness is in its row."""
    federation = Federation(mixing())
    for worker in federation.workers(3):
        worker.offer(worker.task())
        federation.fold()
    assert [row.updates for row in federation.durable(VersionRow)[1:]] == [1, 1, 1]
    assert [row.weight for row in federation.durable(AcceptRow)] == pytest.approx(
        [10 * (1 + tau) ** -0.5 for tau in range(3)], abs=2**-19
    )
