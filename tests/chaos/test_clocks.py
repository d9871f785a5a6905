"""The wall clock jumps by hours, forwards and back, in the broker and in every worker.

Whoever set it, a battery that ran out or a server that was wrong: leases, deadlines and backoffs are measured by a
clock that only goes forwards. The journal notes the wrong times, and nothing else comes of it.
"""

import itertools
import os
import random
import time
from pathlib import Path

import pytest

from ..integration.federation import APPS, Federation, Tables, log_of, wait_for
from . import marked
from .marked import BUFFER, MARKED, Recovery, judge, wait_for_updates
from .rounds import times
from .tally import Tally

JUMPS = "wall clock jumps by hours"
UNRULY = Path(__file__).with_name("unruly")
LOOKS = times(5, 100)


def jumping(rng: random.Random) -> dict[str, str]:
    """The environment of processes whose clocks jump, each like the others."""
    path = os.pathsep.join(filter(None, [str(UNRULY), str(APPS), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "FEDMQ_CHAOS_CLOCK": str(rng.randrange(1000))}


@pytest.mark.timeout(120 + 2 * LOOKS)
def test_asynchronous(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    """Five jumps a second: nobody is taken for dead, nothing is lost, and the times in the journal did jump."""
    patient = {**MARKED, "network": {**MARKED["network"], "lease_s": 30.0}}
    with Federation(tmp_path, patient, jumping(rng)) as f:
        marked.start(f)
        for _ in range(LOOKS):
            time.sleep(0.2)
            tally.injected(JUMPS, Recovery(f).wait())
        wait_for_updates(f, 2 * BUFFER)
        marked.finish(f)
        assert f.broker is not None
        assert "worker silent" not in log_of(f.broker)
        said = [at for (at,) in f.query("SELECT accepted_at FROM updates ORDER BY id")]
        assert max(said) - min(said) > 3600, "no clock has jumped: this shows nothing"
        assert any(later < earlier - 60 for earlier, later in itertools.pairwise(said))
        [(ran_s,)] = f.query("SELECT sum(seconds) FROM runs")
        assert 0 < ran_s < 600, "how long it ran is not told from the wall clock"
        verdict = judge(f, rng)
        tally.judged([JUMPS], verdict.lost, verdict.twice)


def test_a_deadline(tmp_path: Path, rng: random.Random) -> None:
    """A round of ten minutes does not end early because it is suddenly tomorrow."""
    tables: Tables = {"mode": {"kind": "sync", "min_available": 3, "min_updates": 1, "deadline_s": 600.0}}
    with Federation(tmp_path, tables, jumping(rng)) as f:
        f.start_broker()
        with f.together():
            for number in (1, 2, 3):
                f.start_worker(f"w{number}", number=number, delay=0.5)
        f.wait_for_version(3)
        wait_for("a round", lambda: f.status()["round"] is not None)
        left = f.status()["round"]
        assert left is None or 0 < left["deadline_s"] <= 600.0
        f.cli("stop", "--finish")
        f.finish()
        assert all(row["updates"] == 3 for row in f.history()[1:])
