"""A large update, and the model before it, through a connection that is cut five times, a worker and a broker that die.

What has arrived is never sent again: besides the bytes themselves, each interruption may cost what was under way, which
credit bounds. The proxy counts what was put on the wire, also what a cut left behind.
"""

import random
from pathlib import Path

import numpy as np
import pytest

from fedmq.broker.books import UPLOAD_BLOCKS
from fedmq.fedcore import model_file, wire

from ..integration.federation import Federation, Tables, wait_for
from .marked import Recovery
from .proxy import Proxy, Way
from .rounds import times
from .tally import Tally

FLOATS = times(5_000_000, 25_000_000)
"""20 MB; 100 MB in a long round."""
CUTS = 5
BLOCK = 1 << 20
CREDIT = UPLOAD_BLOCKS * BLOCK
RATE = 25e6
"""Bytes a second: slow enough that a transfer is still under way when a process is to die."""
FRAMING = 0.01
"""Of the bytes: heads of messages and ZMTP's framing around blocks that a slow link makes small."""
TRANSFER = "transfer of a large model interrupted"


@pytest.mark.timeout(600)
def test_what_has_arrived_is_not_sent_again(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    """Up and down: at most every byte once, and a window for each of seven interruptions."""
    size = 4 * FLOATS
    model = model_file.from_arrays({"w": np.zeros(FLOATS, np.float32)})
    model_file.write_chunks(tmp_path / "large.safetensors", model.chunks)
    tables: Tables = {
        "model": {"initial": "large.safetensors"},
        "mode": {"kind": "sync", "min_available": 1, "deadline_s": 0.0},
        "network": {"beat_s": 0.5, "lease_s": 20.0, "block": BLOCK},
        "storage": {"durability": "fsync", "keep": 1},
        "aggregate": {"max_update_norm": 1e9},
        "stop": {"versions": 1},
    }
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        with Proxy(f.endpoint, rng) as proxy:
            proxy.rate = RATE
            f.through = proxy.endpoint
            f.start_worker("w1", "tiny:Large")
            down = interrupted(f, proxy, rng, "down", size)
            wait_for("the update is on its way", lambda: proxy.seen["up"] > size // 20, 240.0)
            recovery = Recovery(f)
            up = interrupted(f, proxy, rng, "up", size)
            recovery.begin()
            tally.injected(TRANSFER, recovery.wait(), times=down + up)
            f.finish(240.0)
        assert f.weights(1).min() == f.weights(1).max() == 1.0
        rows = f.query("SELECT count(*) FROM updates")[0][0]
        tally.judged([TRANSFER], lost=1 - min(rows, 1), twice=max(rows - 1, 0))
    window: dict[Way, int] = {"up": CREDIT, "down": wire.FETCHES_MAX * BLOCK}
    interruptions_of: dict[Way, int] = {"down": down, "up": up}
    for way, interruptions in interruptions_of.items():
        seen, most = proxy.seen[way], size + interruptions * window[way] + int(FRAMING * size)
        bound = (size + interruptions * window[way]) / 1e6
        tally.note(
            f"{size / 1e6:.0f} MB {way} with {interruptions} interruptions: {seen / 1e6:.1f} MB on the wire; a whole "
            f"window of {window[way] / 1e6:.1f} MB for each of them would make {bound:.1f}."
        )
        assert size < seen <= most, way


def interrupted(f: Federation, proxy: Proxy, rng: random.Random, way: Way, size: int) -> int:
    """Cut a transfer at five random places, kill the worker once and the broker once; how many interruptions."""
    places = sorted(rng.sample(range(size // 10, size * 9 // 10), CUTS + 2))
    deaths = rng.sample(range(CUTS + 2), 2)
    began = proxy.seen[way]
    cuts = proxy.cuts
    for number, place in enumerate(places):
        if number not in deaths:
            proxy.cut_after(way, max(began + place - proxy.seen[way], 0))
    for number in sorted(deaths):
        reach(proxy, way, began + places[number])
        if number == deaths[0]:
            f.workers["w1"].kill()
            f.start_worker("w1", "tiny:Large")
        else:
            assert f.broker is not None
            f.broker.kill()
            f.start_broker()
    wait_for("all cuts", lambda: proxy.cuts == cuts + CUTS, 240.0)
    return CUTS + len(deaths)


def reach(proxy: Proxy, way: Way, count: int) -> None:
    """Wait until so many bytes were sent."""
    wait_for(f"{count} bytes {way}", lambda: proxy.seen[way] >= count, 240.0)
