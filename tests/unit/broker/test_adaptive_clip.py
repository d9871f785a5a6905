"""The clip norm that follows the updates, in a broker: what a version is made with, and that no crash forgets it.

Of workers that come by themselves, and of rounds by a coin: both make a version by the same rules.
"""

import contextlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fedmq.broker import ledger
from fedmq.broker.aggregator import fold
from fedmq.broker.fold_job import FoldJob, plan_fold
from fedmq.broker.rows import AcceptRow, FreezeRow, RoundRow, VersionInfo, VersionRow
from fedmq.broker.sampled_promise import SampledPromise
from fedmq.broker.snapshot import snapshot
from fedmq.broker.statement import WorkerPromise, statement
from fedmq.broker.store.journal import Journal
from fedmq.broker.store.spool import Spool
from fedmq.broker.store.state import StateFolder
from fedmq.broker.store.versions import VersionStore
from fedmq.broker.verification import verify
from fedmq.fedcore import config, kernels, model_file
from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.privacy.accounting import Spend, epsilon
from fedmq.fedcore.privacy.adaptive import AdaptiveClipping, centred_count
from fedmq.fedcore.privacy.mechanisms import WorkerLevel
from fedmq.fedcore.privacy.sampled_workers import SampledWorkers

Z, COUNT_NOISE, FIRST = 1.9, 1.5, 0.25
RULE = AdaptiveClipping(quantile=0.5, rate=0.2, count_noise=COUNT_NOISE)
Used = WorkerLevel | SampledWorkers
ARRIVALS = WorkerLevel(FIRST, Z, 3, RULE)
COIN = SampledWorkers(FIRST, Z, 1.0, 3.0, RULE)
"""q = 1, so that a statement needs no library: what a version is made with does not depend on q."""
BUDGET = {"unit": "worker", "epsilon": 8.0, "delta": 1e-5, "clip_norm": FIRST}
TABLES: dict[type[Used], dict[str, Any]] = {
    WorkerLevel: {"mode": {"kind": "async", "buffer": 3}, "privacy": {"max_participations": 10}},
    SampledWorkers: {
        "mode": {"kind": "sync"}, "privacy": {"sampling_rate": 1.0, "steps": 10, "divisor": 3.0},
    },
}  # fmt: skip


def tables(used: Used) -> dict[str, Any]:
    """The config of a federation with this mechanism."""
    found = TABLES[type(used)]
    return {
        "model": {"initial": "my_app:App"},
        "mode": found["mode"],
        "storage": {"keep_payloads": True, "keep": 100},
        "privacy": {**BUDGET, **found["privacy"], "adaptive_clip": {"count_noise": COUNT_NOISE}},
    }


LENGTHS = (0.1, 0.9, 2.0)


class Federation:
    """A state folder, and what a broker does with it between two kills."""

    def __init__(self, folder: Path, used: Used) -> None:
        self.path = folder / "state"
        self.used = used
        with StateFolder.open(self.path) as state:
            state.settle(config.parse(tables(used), base_dir=folder), Z)
            self.key = state.noise_key
        self.versions = VersionStore(self.path / "versions", fsync=False)
        made = model_file.from_arrays({"w": np.zeros(3, np.float32)})
        written = self.versions.write(0, made.chunks)
        info = VersionInfo(
            version=0,
            digest=written.digest,
            size=written.size,
            layout=made.layout.digest,
            n=3,
            clip_norm=FIRST,
        )
        self.apply(VersionRow(info=info))

    @contextlib.contextmanager
    def journal(self) -> Any:
        """As a start opens it."""
        with contextlib.closing(Journal.open(self.path / "journal.db", keep_payloads=True)) as journal:
            yield journal

    def apply(self, *rows: Any) -> None:
        with self.journal() as journal:
            journal.apply(rows)

    def base(self) -> VersionInfo:
        """The version that a broker which starts now would fold onto."""
        with self.journal() as journal:
            found = journal.recover(20).versions[-1]
            assert found == journal.current()
        return found

    def freeze(self, lengths: tuple[float, ...] = LENGTHS) -> None:
        base, coin = self.base().version, isinstance(self.used, SampledWorkers)
        if coin:
            asked = tuple(f"w{number}" for number in range(len(lengths)))
            self.apply(RoundRow(buffer=base, cohort=asked, target=len(asked), quorum=0, deadline_s=9.0))
        weight = 1.0 if coin else 0.5
        rows = [update(base, number, length, weight) for number, length in enumerate(lengths)]
        self.apply(*rows, FreezeRow(buffer=base, reason="full"))

    def plan(self) -> FoldJob:
        base = self.base()
        with self.journal() as journal:
            payloads = journal.payloads(base.version)
            rows = journal.recover(20).frozen
        return self.planned(base, [msgspec.structs.replace(row, inline=payloads[row.task]) for row in rows])

    def planned(self, base: VersionInfo, rows: Iterable[AcceptRow], used: Used | None = None) -> FoldJob:
        """What the aggregator would do about these."""
        return plan_fold(
            base,
            list(rows),
            weighting="uniform",
            optimizer=config.Sgd(),
            mechanism=used or self.used,
            master_key=self.key,
        )

    def fold(self) -> VersionRow:
        """Fold what is frozen: the row that is then to be committed."""
        made = fold(self.plan(), self.versions, Spool(self.path / "spool", fsync=False))
        return VersionRow(
            info=made.info,
            updates=made.updates,
            sigma=made.sigma,
            noise_key=made.noise_key,
            privacy_steps=1,
            charged=made.charged,
        )

    def version(self, lengths: tuple[float, ...] = LENGTHS) -> VersionInfo:
        self.freeze(lengths)
        row = self.fold()
        self.apply(row)
        return row.info


def update(base: int, number: int, length: float, weight: float) -> AcceptRow:
    payload = np.array([length, 0, 0], np.float32).tobytes()
    return AcceptRow(
        task=bytes([base, number]),
        worker=f"w{number}",
        base=base,
        buffer=base,
        tau=0,
        weight=weight,
        examples=1,
        norm=math.sqrt(kernels.sum_squares(payload)),
        encoding="f32",
        size=len(payload),
        digest=model_file.digest(payload),
        inline=payload,
    )


@pytest.fixture(params=[ARRIVALS, COIN], ids=["arrivals", "coin"])
def federation(request: pytest.FixtureRequest, tmp_path: Path) -> Federation:
    return Federation(tmp_path, request.param)


def is_coin(federation: Federation) -> bool:
    return isinstance(federation.used, SampledWorkers)


def test_a_version_is_clipped_to_what_the_one_before_left(federation: Federation) -> None:
    """Bound, σ = z_Δ C and the grid are of that C; z is charged, where workers are; the count moves C by the rule."""
    federation.version()
    left = federation.base().clip_norm
    assert left is not None
    assert left != FIRST
    federation.freeze()
    job = federation.plan()
    release = job.release
    assert release is not None
    assert (release.max_norm, release.charged) == (left, None if is_coin(federation) else Z)
    assert release.sigma == RULE.update_noise(Z) * left
    assert job.frac_bits == kernels.frac_bits_for(
        left, 1 << 20 if is_coin(federation) else 1024, release.sigma
    )
    assert job.denominator == 3.0
    count = RULE.noisy(centred_count(LENGTHS, left), release.key)
    assert release.next_clip_norm == RULE.next_clip_norm(left, count=count, denominator=3.0)
    assert federation.fold().info.clip_norm == release.next_clip_norm


def test_the_same_rows_move_it_to_the_same_number_and_others_do_not(federation: Federation) -> None:
    """In any order; another payload, another C or another σ_b has other noise in the count, too."""
    federation.freeze()
    job = federation.plan()

    def noise(base: VersionInfo, rows: Any, used: Used) -> tuple[float, float]:
        """What the next C is beside the rule's own, and the count's noise."""
        planned = federation.planned(base, rows, used)
        assert planned.release is not None
        assert planned.release.next_clip_norm is not None
        assert used.adaptive is not None
        return planned.release.next_clip_norm, used.adaptive.noisy(0.0, planned.release.key)

    used = federation.used
    rows, base = list(job.rows), job.base
    assert job.release is not None
    assert noise(base, rows[::-1], used)[0] == job.release.next_clip_norm
    other = msgspec.structs.replace(rows[0], digest=bytes(16))
    less = msgspec.structs.replace(used, adaptive=msgspec.structs.replace(RULE, count_noise=1.4))
    found = [
        noise(base, rows, used),
        noise(base, [other, *rows[1:]], used),
        noise(msgspec.structs.replace(base, clip_norm=0.26), rows, used),
        noise(base, rows, less),
    ]
    assert len({drawn for _, drawn in found}) == 4


def test_it_survives_a_kill_at_every_point(federation: Federation) -> None:
    """Before the fold, after its files and before the row, and after the row: one sequence of clip norms."""
    federation.freeze()
    assert federation.base().clip_norm == FIRST  # killed with a frozen buffer
    first = federation.fold()
    assert federation.base().clip_norm == FIRST  # killed when the files were there, and nothing named them
    again = federation.fold()
    assert again.info == first.info
    federation.apply(again)
    assert federation.base() == first.info  # killed right after the commit
    second = federation.version()
    assert federation.base() == second
    with federation.journal() as journal:
        assert [info.clip_norm for info in journal.recover(20).versions] == [
            FIRST, first.info.clip_norm, second.clip_norm,
        ]  # fmt: skip


def test_verify_makes_the_clip_norms_again(federation: Federation) -> None:
    """With the versions; one that the journal has otherwise is found, the last one as well."""
    made = [federation.version() for _ in range(3)]
    verdicts = list(verify(federation.path))
    assert [v.same for v in verdicts] == [True] * 3
    assert [v.clip_norms for v in verdicts] == [(info.clip_norm, info.clip_norm) for info in made]
    with federation.journal() as journal:
        journal._db.execute("UPDATE versions SET clip_norm = clip_norm * 1.5 WHERE version = 3")
    assert [v.same for v in verify(federation.path)] == [True, True, False]


def test_whoever_audits_reads_both_mechanisms(federation: Federation) -> None:
    """z that is charged for both, z_Δ of the sum, σ_b; and each version's noise is held against its own C."""
    for _ in range(3):
        federation.version()
    left = federation.base().clip_norm
    assert left is not None
    promise = statement(federation.path).promise
    assert isinstance(promise, SampledPromise if is_coin(federation) else WorkerPromise)
    assert (promise.noise_multiplier, promise.update_noise) == (Z, RULE.update_noise(Z))
    assert (promise.clip_norm, promise.sigma) == (left, RULE.update_noise(Z) * left)
    assert promise.adaptive == RULE
    assert "count of updates within the clip norm" in promise.mechanism
    assert promise.noise_agrees
    found = ledger.read(federation.path)
    assert found is not None
    if is_coin(federation):
        assert (found.noise_multipliers, found.spent, found.releases) == ({}, {}, 3)
        assert promise.epsilon_spent == pytest.approx(epsilon([Spend(Z, 1.0, 3)], 1e-5))
    else:
        assert found.noise_multipliers == dict.fromkeys((1, 2, 3), Z)
        assert found.spent["w0"] == pytest.approx(3 / Z**2)
    with federation.journal() as journal:
        journal._db.execute("UPDATE versions SET sigma = sigma * 0.99 WHERE version = 2")
    promise = statement(federation.path).promise
    assert promise is not None
    assert not promise.noise_agrees


def test_history_and_status_show_it(federation: Federation) -> None:
    """It is released, and was charged for: the row of a version has that which it was made with."""
    first, second = federation.version(), federation.version()
    with federation.journal():
        history = Journal.read_only(federation.path / "journal.db")
        with history:
            shown = [row["clip_norm"] for row in history.history()]
    assert shown == [None, FIRST, first.clip_norm]
    assert snapshot(federation.path)["clip_norm"] == second.clip_norm


def test_an_update_that_is_not_finite_moves_nothing(federation: Federation) -> None:
    """It counts as zero in both sums, and keeps its slot: K divides as ever."""
    federation.freeze()
    job = federation.plan()
    broken = [msgspec.structs.replace(row, norm=math.nan) for row in job.rows]
    planned = federation.planned(job.base, broken)
    release = planned.release
    assert release is not None
    alone = RULE.noisy(0.0, release.key)
    assert release.next_clip_norm == RULE.next_clip_norm(FIRST, count=alone, denominator=3.0)


def test_a_version_of_another_kind_of_federation_is_not_built_on(federation: Federation) -> None:
    """A base that left no clip norm has none to clip to."""
    federation.freeze()
    job = federation.plan()
    base = msgspec.structs.replace(job.base, clip_norm=None)
    with pytest.raises(PrivacyError, match="left no clip norm"):
        federation.planned(base, job.rows)


def test_a_round_with_nobody_in_it_moves_the_clip_norm_by_noise_alone(tmp_path: Path) -> None:
    """It is released and paid for like any other; no start forgets it, and it is made again."""
    federation = Federation(tmp_path, COIN)
    federation.version()
    before = federation.base().clip_norm
    federation.freeze(())
    key = federation.plan().release
    assert key is not None
    assert before is not None
    empty = RULE.next_clip_norm(before, count=RULE.noisy(0.0, key.key), denominator=3.0)
    row = federation.fold()
    assert (row.updates, row.sigma) == (0, RULE.update_noise(Z) * before)
    federation.apply(row)
    assert federation.base().clip_norm == empty != before
    after = federation.version()
    assert [v.same for v in verify(federation.path)] == [True] * 3
    with federation.journal() as journal:
        assert [info.clip_norm for info in journal.recover(20).versions][2:] == [empty, after.clip_norm]
        journal._db.execute("UPDATE versions SET clip_norm = clip_norm * 1.5 WHERE version = 2")
    assert [v.same for v in verify(federation.path)] == [True, False, True]
    assert not statement(federation.path).promise.noise_agrees  # type: ignore[union-attr]
