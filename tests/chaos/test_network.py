"""A bad network between all workers and their broker: it cuts, it is slow, it goes one way only, it flips bits.

Nothing of that loses an update whose acceptance was said, nor counts one twice, nor ends a process; connections are
made again. A bit that is flipped in an update is caught by the update's digest. What a header says besides (its
number of examples, say) has only TCP's checksum unless the federation has keys: see docs/reliability.md.
"""

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from ..integration.federation import Federation
from . import marked
from .marked import BUFFER, MARKED, Recovery, judge, wait_for_more, wait_for_updates
from .proxy import Proxy, Way
from .rounds import times
from .tally import Tally

CUTS = times(4, 100)
THROTTLED = times(1, 5)
SILENCES = times(1, 10)
FLIPS = times(5, 100)
LEASE_S = float(MARKED["network"]["lease_s"])
WAYS: tuple[Way, ...] = get_args(Way)
CUT, SLOW = "connections cut at a random byte", "link throttled to 1 MB/s, 20 ms away"
SILENT, FLIPPED = "one direction of the network silent", "a bit flipped on the wire"
ROUND = 200_000
"""Bytes that the four workers send in well under a second."""


@contextlib.contextmanager
def behind_a_proxy(folder: Path, rng: random.Random) -> Iterator[tuple[Federation, Proxy]]:
    """A marked federation whose workers reach their broker through a proxy, at work."""
    with Federation(folder, MARKED) as f:
        f.start_broker()
        with Proxy(f.endpoint, rng) as proxy:
            f.through = proxy.endpoint
            marked.start_workers(f)
            yield f, proxy


def ends_well(f: Federation, rng: random.Random, tally: Tally, fault: str) -> None:
    """Nobody has died, all come back, and the proofs hold."""
    assert f.broker is not None
    for child in (f.broker, *f.workers.values()):
        assert child.code is None, f"{child.name} has ended"
    marked.finish(f)
    verdict = judge(f, rng)
    tally.judged([fault], verdict.lost, verdict.twice)


@pytest.mark.timeout(180 + 10 * CUTS)
def test_cut(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    """At any byte of any frame, in either direction, one connection or all of them."""
    with behind_a_proxy(tmp_path, rng) as (f, proxy):
        for _ in range(CUTS):
            before = proxy.cuts
            if rng.random() < 0.3:
                proxy.cut()
            else:
                proxy.cut_after(rng.choice(WAYS), rng.randrange(ROUND))
            wait_for_more("it is cut", lambda: proxy.cuts, before)
            recovery = Recovery(f, *f.workers)
            tally.injected(CUT, recovery.wait(), times=proxy.cuts - before)
        ends_well(f, rng, tally, CUT)


@pytest.mark.timeout(180 + 30 * THROTTLED)
def test_slow(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    """1 MB/s for each connection and 20 ms each way: it goes on, without losing a connection."""
    with behind_a_proxy(tmp_path, rng) as (f, proxy):
        for _ in range(THROTTLED):
            proxy.rate, proxy.delay_s = 1e6, 0.02
            wait_for_updates(f, 2 * BUFFER)
            proxy.rate, proxy.delay_s = 0.0, 0.0
            tally.injected(SLOW, Recovery(f, *f.workers).wait())
        assert proxy.cuts == 0
        ends_well(f, rng, tally, SLOW)


@pytest.mark.timeout(180 + 60 * SILENCES)
def test_one_way(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    """What one side says vanishes for longer than a lease, while the other is heard; then both, now and then."""
    with behind_a_proxy(tmp_path, rng) as (f, proxy):
        for turn in range(SILENCES):
            proxy.swallow(*(WAYS if turn % 5 == 4 else (WAYS[turn % 2],)))
            time.sleep(2.5 * LEASE_S)
            recovery = Recovery(f, *f.workers)
            proxy.deliver()
            tally.injected(SILENT, recovery.wait())
        ends_well(f, rng, tally, SILENT)


@pytest.mark.timeout(180 + 20 * FLIPS)
def test_flipped_bits(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    """In ZMTP's framing, a header or a payload: an update that changed on its way is refused, and all go on."""
    with behind_a_proxy(tmp_path, rng) as (f, proxy):
        for _ in range(FLIPS):
            before = proxy.flips
            proxy.flip_after(rng.choice(WAYS), rng.randrange(ROUND))
            wait_for_more("a bit is flipped", lambda: proxy.flips, before)
            tally.injected(FLIPPED, Recovery(f, *f.workers).wait())
        found = dict(f.query("SELECT name, value FROM counters WHERE name IN ('rejected', 'malformed')"))
        print(f"{proxy.flips} bits flipped; the broker found: {found}")
        assert found.get("rejected", 0) >= 1, "no digest has caught anything: this shows little"
        ends_well(f, rng, tally, FLIPPED)
