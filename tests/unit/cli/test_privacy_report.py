"""`fedmq privacy report`: what an auditor reads; ε computed anew from the journal."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.broker.rows import AcceptRow, FreezeRow, RoundRow, VersionInfo, VersionRow
from fedmq.broker.store.journal import Journal
from fedmq.broker.store.state import StateFolder
from fedmq.fedcore import config
from fedmq.fedcore.errors import StateError
from fedmq.fedcore.privacy.correlated import Bisr, Participation

DELTA, RATE, NOISE, CLIP = 1e-5, 0.5, 7.0, 0.5


def federation(folder: Path, *, releases: int = 3, sigma: float = NOISE * CLIP) -> Path:
    """The state folder of a private federation that made so many versions."""
    path = folder / "state"
    tables: dict[str, Any] = {
        "federation": {"name": "wards", "state": path},
        "mode": {"kind": "sync"},
        "privacy": {
            "epsilon": 3.0,
            "delta": DELTA,
            "max_grad_norm": CLIP,
            "sampling_rate": RATE,
            "steps": 80,
            "divisor": 700.0,
            "max_batch": 1400,
        },
    }
    with StateFolder.open(path) as state:
        state.settle(config.parse(tables, base_dir=folder), NOISE)
        journal = Journal.open(state.journal)
        for version in range(releases + 1):
            info = VersionInfo(version=version, digest=bytes([version]), size=4, layout=b"", n=1)
            if version == 0:
                journal.apply([VersionRow(info=info)])
                continue
            journal.apply(
                [
                    FreezeRow(buffer=version - 1, reason="full"),
                    VersionRow(info=info, updates=9, examples=9, sigma=sigma, privacy_steps=1),
                ]
            )
        journal.close()
    return path


def librarys(steps: int) -> float:
    """ε by dp-accounting, called directly."""
    import dp_accounting as dp
    from dp_accounting import pld

    accountant = pld.PLDAccountant()
    accountant.compose(dp.PoissonSampledDpEvent(RATE, dp.GaussianDpEvent(NOISE)), steps)
    return float(accountant.get_epsilon(DELTA))


def test_every_epsilon_is_the_librarys(fedmq, tmp_path: Path) -> None:
    """Of what was released, and of what is planned; the budget is the table's."""
    code, out, err = fedmq("privacy", "report", federation(tmp_path), "--json")
    assert (code, err) == (0, "")
    promise = json.loads(out)["promise"]
    assert promise["epsilon_spent"] == pytest.approx(librarys(3), rel=1e-9)
    assert promise["epsilon_planned"] == pytest.approx(librarys(80), rel=1e-9)
    assert promise["epsilon_spent"] < promise["epsilon_planned"] <= promise["epsilon_budget"] == 3.0
    assert (promise["releases"], promise["releases_planned"], promise["delta"]) == (3, 80, DELTA)


def test_an_auditor_reads_unit_mechanism_trust_and_limits(fedmq, tmp_path: Path) -> None:
    """Whose presence, from whom, by what, at what cost, and what is not covered."""
    text = " ".join(fedmq("privacy", "report", federation(tmp_path))[1].split())
    shown = text.partition("epsilon, spent ")[2].partition(" ")[0]
    assert librarys(3) <= float(shown) < librarys(3) + 1e-6  # never below
    for words in (
        "unit a record",
        "neighbours add or remove one record",
        "noise multiplier 7, clip norm 0.5, noise 3.5 on the sum, sampling rate 0.5, divisor 700",
        "accountant privacy-loss distributions",
        f"epsilon, spent {shown} for 3 releases",
        "assumed - The broker is trusted",
        "not covered - That a worker takes part",
    ):
        assert words in text
    assert "WARNING" not in text


def test_nothing_released_costs_nothing(fedmq, tmp_path: Path) -> None:
    """Version 0 is not trained."""
    out = fedmq("privacy", "report", federation(tmp_path, releases=0), "--json")[1]
    assert json.loads(out)["promise"]["epsilon_spent"] == 0.0


def test_other_noise_than_was_promised_is_said(fedmq, tmp_path: Path) -> None:
    """The journal's noise is held against the promise's."""
    path = federation(tmp_path, sigma=1.0)
    assert json.loads(fedmq("privacy", "report", path, "--json")[1])["promise"]["noise_agrees"] is False
    assert "WARNING the journal has releases with other noise" in " ".join(
        fedmq("privacy", "report", path)[1].split()
    )


def test_without_a_table_nothing_is_promised(fedmq, state: Path) -> None:
    """Plainly, and with exit code 0: it is a statement, too."""
    code, out, _ = fedmq("privacy", "report", state)
    assert code == 0
    assert out.startswith("federation wards (")
    assert "NOTHING IS PROMISED" in out
    assert json.loads(fedmq("privacy", "report", state, "--json")[1])["promise"] is None


def test_what_is_no_state_folder(fedmq, tmp_path: Path) -> None:
    """One line, with the state folder's exit code."""
    for path in (tmp_path, tmp_path / "none"):
        code, out, err = fedmq("privacy", "report", path)
        assert (code, out, err.count("\n")) == (StateError.exit_code, "", 1)


def workers_federation(folder: Path, charged: float = 1.9) -> Path:
    """Three versions of a worker-level federation: a is in all, b in one."""
    path = folder / "state"
    tables: dict[str, Any] = {
        "federation": {"name": "wards", "state": path},
        "model": {"initial": "my_app:App"},
        "mode": {"kind": "async", "buffer": 2},
        "privacy": {
            "unit": "worker", "epsilon": 8.0, "delta": DELTA, "clip_norm": CLIP, "max_participations": 10,
        },
    }  # fmt: skip
    with StateFolder.open(path) as state:
        state.settle(config.parse(tables, base_dir=folder), 1.9)
        journal = Journal.open(state.journal)
        for version in range(4):
            info = VersionInfo(version=version, digest=bytes([version]), size=4, layout=b"", n=1)
            if version == 0:
                journal.apply([VersionRow(info=info)])
                continue
            rows = [
                accepted(version, worker) for worker in (("a", "b") if version == 1 else ("a", f"c{version}"))
            ]
            row = VersionRow(info=info, updates=2, sigma=1.9 * CLIP, privacy_steps=1, charged=charged)
            journal.apply([*rows, FreezeRow(buffer=version - 1, reason="full"), row])
        journal.close()
    return path


def accepted(version: int, worker: str) -> AcceptRow:
    return AcceptRow(
        task=f"{version}{worker}".encode(),
        worker=worker,
        base=version - 1,
        buffer=version - 1,
        tau=0,
        weight=1.0,
        examples=1,
        norm=1.0,
        encoding="f32",
        size=4,
        digest=b"",
        inline=bytes(4),
    )


def test_each_workers_epsilon_is_the_librarys(fedmq, tmp_path: Path) -> None:
    """By its participations, exactly composed; what is spent is the most that a worker paid."""
    import dp_accounting as dp

    found = json.loads(fedmq("privacy", "report", workers_federation(tmp_path), "--json")[1])["promise"]
    for worker, times in {"a": 3, "b": 1, "c2": 1, "c3": 1}.items():
        charge = found["workers"][worker]
        assert charge["participations"] == times
        expected = dp.get_epsilon_gaussian(1.9 / math.sqrt(times), DELTA)
        assert charge["epsilon"] == pytest.approx(expected, rel=1e-9)
    assert found["epsilon_spent"] == found["workers"]["a"]["epsilon"]
    assert found["epsilon_planned"] == pytest.approx(
        dp.get_epsilon_gaussian(1.9 / math.sqrt(10), DELTA), rel=1e-9
    )
    assert found["noise_agrees"] is True


def correlated_federation(folder: Path, parts: dict[str, tuple[int, ...]], charged: float = 0.6) -> Path:
    """A federation of six versions whose noise later ones take back; who was in which of them."""
    path = folder / "state"
    tables: dict[str, Any] = {
        "federation": {"name": "wards", "state": path},
        "model": {"initial": "my_app:App"},
        "mode": {"kind": "async", "buffer": 2},
        "privacy": {
            "unit": "worker", "epsilon": 9.0, "delta": DELTA, "clip_norm": CLIP, "max_participations": 2,
            "correlated": {"versions": 6, "min_separation": 3, "bandwidth": 3},
        },
    }  # fmt: skip
    with StateFolder.open(path) as state:
        state.settle(config.parse(tables, base_dir=folder), 0.6, 3)
        journal = Journal.open(state.journal)
        for version in range(7):
            info = VersionInfo(version=version, digest=bytes([version]), size=4, layout=b"", n=1)
            if version == 0:
                journal.apply([VersionRow(info=info)])
                continue
            rows = [accepted(version, worker) for worker, versions in parts.items() if version in versions]
            row = VersionRow(
                info=info,
                updates=len(rows),
                sigma=0.6 * CORRELATED.sensitivity * CLIP,
                privacy_steps=1,
                charged=charged,
                whole_run=True,
            )
            journal.apply([*rows, FreezeRow(buffer=version - 1, reason="full"), row])
        journal.close()
    return path


CORRELATED = Bisr(
    bandwidth=3, noise_multiplier=0.6, participation=Participation(versions=6, most=2, separation=3)
)


def test_with_correlated_noise_each_worker_paid_for_the_versions_that_it_was_in(
    fedmq, tmp_path: Path
) -> None:
    """One Gaussian release at the sensitivity of its own columns, by a dense matrix; the plan's at the most."""
    import dp_accounting as dp

    parts = {"a": (1, 4), "b": (2, 5), "c": (3,), "d": (6,)}
    found = json.loads(fedmq("privacy", "report", correlated_federation(tmp_path, parts), "--json")[1])[
        "promise"
    ]
    inverse = np.zeros((6, 6))
    for j, c in enumerate((1.0, -0.5, -0.125)):
        inverse += np.diag(np.full(6 - j, c), -j)
    columns = np.linalg.inv(inverse)
    for worker, versions in parts.items():
        moved = np.linalg.norm(sum(columns[:, version - 1] for version in versions))
        expected = dp.get_epsilon_gaussian(0.6 * CORRELATED.sensitivity / moved, DELTA)
        assert found["workers"][worker]["epsilon"] == pytest.approx(expected, rel=1e-9)
    assert found["epsilon_planned"] == pytest.approx(dp.get_epsilon_gaussian(0.6, DELTA), rel=1e-9)
    assert found["epsilon_spent"] == found["workers"]["a"]["epsilon"] <= found["epsilon_planned"] * (1 + 1e-9)
    assert (
        found["workers"]["d"]["epsilon"] < found["workers"]["c"]["epsilon"] < found["workers"]["b"]["epsilon"]
    )
    assert found["noise_agrees"] is True
    pattern = found["correlated"]
    assert (pattern["bandwidth"], pattern["min_separation"], pattern["versions"]) == (3, 3, 6)
    assert pattern["broken"] == []
    with Journal.read_only(tmp_path / "state" / "journal.db") as journal:
        assert journal.spent() == dict.fromkeys("abcd", pytest.approx(1 / 0.36))  # once, for the whole run
        assert journal.participations() == {"a": 2, "b": 2, "c": 1, "d": 1}


def test_a_journal_that_is_not_within_the_pattern_is_said(fedmq, tmp_path: Path) -> None:
    """Whoever was in a version too often, or too soon again: the claim is for nobody then."""
    path = correlated_federation(tmp_path, {"a": (1, 3), "b": (1, 4), "c": (1, 2, 3)})
    text = " ".join(fedmq("privacy", "report", path)[1].split())
    assert "WARNING nothing is promised: a was in two versions less than 3 apart" in text
    assert "WARNING nothing is promised: c was in 3 versions" in text
    assert "b was" not in text
    assert "at most 2 versions a worker, 3 apart, of 6 in all; noise of 3 versions mixed, sensitivity" in text


def test_an_auditor_reads_what_each_worker_paid(fedmq, tmp_path: Path) -> None:
    """And that participation is public."""
    text = " ".join(fedmq("privacy", "report", workers_federation(tmp_path))[1].split())
    assert "unit a worker" in text
    assert "at most 10 versions a worker" in text
    assert "for 3 versions" in text
    assert "in which versions it had a part: these are public" in text


def test_a_charge_for_other_noise_is_said(fedmq, tmp_path: Path) -> None:
    """Also where the journal charged less than the promise says; each ε is of what was charged."""
    import dp_accounting as dp

    path = workers_federation(tmp_path, charged=3.0)
    assert "WARNING" in fedmq("privacy", "report", path)[1]
    paid = json.loads(fedmq("privacy", "report", path, "--json")[1])["promise"]["workers"]["a"]
    assert paid["epsilon"] == pytest.approx(dp.get_epsilon_gaussian(3.0 / math.sqrt(3), DELTA), rel=1e-9)


def sampled_federation(folder: Path, releases: int = 3, **keys: object) -> Path:
    """So many rounds of a federation whose coin asks workers; nobody was asked in any of them."""
    path = folder / "state"
    tables: dict[str, Any] = {
        "federation": {"name": "wards", "state": path},
        "model": {"initial": "my_app:App"},
        "mode": {"kind": "sync"},
        "privacy": {
            "unit": "worker", "epsilon": 8.0, "delta": DELTA, "clip_norm": CLIP, "sampling_rate": RATE, "steps": 80,
            "divisor": 10.0, **keys,
        },
    }  # fmt: skip
    with StateFolder.open(path) as state:
        state.settle(config.parse(tables, base_dir=folder), NOISE)
        journal = Journal.open(state.journal)
        for version in range(releases + 1):
            info = VersionInfo(version=version, digest=bytes([version]), size=4, layout=b"", n=1)
            if version:
                opened = RoundRow(buffer=version - 1, cohort=("w1",), target=1, quorum=0, deadline_s=1.0)
                journal.apply([opened, FreezeRow(buffer=version - 1, reason="deadline")])
            row = VersionRow(
                info=info, sigma=NOISE * CLIP if version else 0.0, privacy_steps=int(version > 0)
            )
            journal.apply([row])
        journal.close()
    return path


def test_a_round_costs_each_worker_what_the_library_says(fedmq, tmp_path: Path) -> None:
    """Whoever was asked: no worker is named, and each has paid for all rounds."""
    promise = json.loads(fedmq("privacy", "report", sampled_federation(tmp_path), "--json")[1])["promise"]
    assert promise["epsilon_spent"] == pytest.approx(librarys(3), rel=1e-9)
    assert promise["epsilon_planned"] == pytest.approx(librarys(80), rel=1e-9)
    assert (promise["releases"], promise["releases_planned"], promise["unit"]) == (3, 80, "worker")
    assert promise["noise_agrees"] is True
    assert "w1" not in json.dumps(promise)


@pytest.mark.parametrize("wait_for", ["sample", "deadline"])
def test_an_auditor_reads_what_the_coin_hides_and_from_whom(fedmq, tmp_path: Path, wait_for: str) -> None:
    """That neighbours differ by one worker, that the coin is secret, and whether time tells."""
    path = sampled_federation(tmp_path, releases=0, wait_for=wait_for)
    text = " ".join(fedmq("privacy", "report", path)[1].split())
    for words in (
        "unit a worker",
        "neighbours add or remove one worker",
        "noise multiplier 7, clip norm 0.5, noise 3.5 on the sum, sampling rate 0.5, divisor 10",
        "Poisson-sampled",
        "for 80 releases",
        "What workers that were asked learn by it",
    ):
        assert words in text
    assert ("When a version is made: a round ends as soon as" in text) == (wait_for == "sample")


def test_an_auditor_reads_how_a_rounds_clip_norm_moves(fedmq, tmp_path: Path) -> None:
    """What is charged for both sums, what each has of it, and where the clip norm goes."""
    path = sampled_federation(
        tmp_path, releases=0, sampling_rate=1.0, adaptive_clip={"count_noise": 4.0, "quantile": 0.6}
    )
    text = " ".join(fedmq("privacy", "report", path)[1].split())
    sums = (NOISE**-2 - 8.0**-2) ** -0.5
    assert (
        f"noise multiplier 7, of which the sum has {sums:g} and the count noise 4, clip norm 0.5 for" in text
    )
    assert f"(to the quantile 0.6 at the rate 0.2), noise {sums * CLIP:g} on the sum, sampling rate 1" in text
    assert "the count of updates within the clip norm" in text
