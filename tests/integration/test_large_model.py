"""A large model goes round, and the broker's memory does not know how large it is.

40 MB in every run; the 400 MB of the promise (100 million floats, two workers) takes some 3 GB of disk and is
asked for:

    FEDMQ_TEST_FLOATS=100000000 pytest -s tests/integration/test_large_model.py
"""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fedmq.fedcore import model_file

from .federation import Federation, Tables

FLOATS = int(os.environ.get("FEDMQ_TEST_FLOATS", "10000000"))
VERSIONS = 2
BROKER_ANON_MB = 150
MB = 1e6


class Sampler:
    """Reads what processes hold, twenty times a second, and keeps the most."""

    def __init__(self, **pids: int) -> None:
        self.peaks = {name: {"RssAnon": 0, "RssFile": 0} for name in pids}
        self._pids = pids
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.05):
            for name, pid in self._pids.items():
                try:
                    lines = (
                        Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
                    )
                except (FileNotFoundError, ProcessLookupError):  # it has ended
                    continue
                fields = dict(line.split(":", 1) for line in lines if ":" in line)
                for key, most in self.peaks[name].items():
                    if key in fields:  # a process that is ending has no memory
                        self.peaks[name][key] = max(most, int(fields[key].split()[0]) * 1024)


@pytest.mark.timeout(120 + FLOATS // 200_000)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_a_large_model_goes_round_in_little_memory(tmp_path: Path, optimizer: str) -> None:
    """Two workers, spooled updates, two versions: right to the last float, with RssAnon below 150 MB."""
    shapes = {"embedding": FLOATS // 2, "head": FLOATS - FLOATS // 2}
    model = model_file.from_arrays({name: np.zeros(n, np.float32) for name, n in shapes.items()})
    model_file.write_chunks(tmp_path / "large.safetensors", model.chunks)
    del model
    tables: Tables = {
        "model": {"initial": "large.safetensors"},
        "mode": {"kind": "sync", "min_available": 2, "deadline_s": 0.0},
        "aggregate": {"weight": "uniform", "max_update_norm": 1e9},
        "optimizer": {"kind": optimizer},
        "network": {"beat_s": 2.0, "lease_s": 30.0},
        "storage": {"durability": "fsync", "keep": 1},
        "stop": {"versions": VERSIONS},
    }
    started = time.monotonic()
    with Federation(tmp_path, tables) as f:
        broker = f.start_broker()
        f.start_workers(2, "tiny:Large")  # one adds 1 everywhere, the other 2
        with Sampler(broker=broker.pid, w1=f.workers["w1"].pid, w2=f.workers["w2"].pid) as sampler:
            f.finish(60 + FLOATS / 200_000)
        last = f.weights(VERSIONS)
        expected = np.float32(3.0) if optimizer == "sgd" else np.float32(1.5 + (np.float32(0.9 * 1.5 + 1.5)))
        assert last.size == FLOATS
        assert last.min() == last.max() == expected
        assert list((f.state / "spool").iterdir()) == []
    peaks = {
        name: {key: f"{value / MB:.0f} MB" for key, value in peak.items()}
        for name, peak in sampler.peaks.items()
    }
    print(f"{FLOATS} floats, {optimizer}: {time.monotonic() - started:.1f} s; peaks: {peaks}")
    assert sampler.peaks["broker"]["RssAnon"] < BROKER_ANON_MB * MB
