"""Measure the broker's fold from end to end: payloads in spool files become the files of the next version.

What is measured, and how:

- The fold is the broker's own (`fedmq.broker.aggregator.fold`), onto version 0 of a model of one tensor, with the rule
  `mean` and payloads of float32. What it made is deleted before the next turn, and each turn must make the same bytes.
- Everything is in the page cache, as payloads are that have just arrived.
- The roofline is `read4`: the same mapped payloads, read four at a time, and nothing done with them. It takes turns
  with the folds in one process. The share is of its rate: what is written counts as time and not as bytes.
- Processor time is that of the whole process during a fold: of all its threads, and of the system for them.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from fedmq.broker.aggregator import fold
from fedmq.broker.fold_job import FoldJob, plan_fold
from fedmq.broker.rows import AcceptRow, VersionInfo
from fedmq.broker.store.spool import Spool
from fedmq.broker.store.versions import VersionStore
from fedmq.fedcore import config, kernels, model_file
from fedmq.fedcore.errors import ConfigError, StateError

from ..status_view import size
from .kernels.contest import PAUSE_S, ROUNDS
from .kernels.machine import free_bytes

__all__ = ["FoldMeasured", "Folds", "Setting", "fold_lines", "measure_folds"]

_OPTIMIZERS: Final[dict[str, config.Optimizer]] = {"sgd": config.Sgd(), "adam": config.Adam()}
_ROOM: Final = 0.9


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure: `k` updates of `n` values, a server optimizer, and what is waited for."""

    n: int
    k: int
    optimizer: str
    durability: tuple[str, ...]
    threads: int | None = None
    rounds: int = ROUNDS


class FoldMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """Medians of one durability's folds; `of_roofline` is None where no kernels were compiled."""

    durability: str
    ms: float
    cpu_ms: float
    gbps: float
    of_roofline: float | None


class Folds(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    read4_gbps: float | None
    runs: list[FoldMeasured]


def measure_folds(setting: Setting, folder: Path, note: Callable[[str], None]) -> Folds:
    """Write the payloads, then fold them again and again.

    Raises
    ------
    ConfigError
        When the payloads would not stay in the page cache.
    StateError
        When the disk refuses, or two folds made different versions.
    """
    _check_memory(setting, free_bytes())
    spool = Spool(folder / "spool", fsync=False)
    stores = {
        kind: VersionStore(folder / f"versions-{kind}", fsync=kind == "fsync") for kind in setting.durability
    }
    note("writing payloads")
    bases = [_first_version(store, setting.n) for store in stores.values()]
    job = plan_fold(
        bases[0],
        [*_updates(setting, spool)],
        weighting="examples",
        optimizer=_OPTIMIZERS[setting.optimizer],
        threads=setting.threads,
    )
    turns: dict[str, Callable[[], Any]] = {
        kind: partial(fold, job, store, spool) for kind, store in stores.items()
    }
    if kernels.backend == "native":
        turns["read4"] = _roofline(job, spool)
    wall: dict[str, list[float]] = {name: [] for name in turns}
    cpu: dict[str, list[float]] = {name: [] for name in turns}
    made: set[bytes] = set()
    for turn in range(setting.rounds + 1):
        note(f"round {turn} of {setting.rounds}" if turn else "warming up")
        for name, run in turns.items():
            if name in stores:
                stores[name].delete([1])
            time.sleep(PAUSE_S)
            started, busy = time.perf_counter(), time.process_time()
            found = run()
            if turn:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - busy)
            if name in stores:
                made.add(found.info.digest)
    if len(made) != 1:
        raise StateError("the same updates were folded and did not make the same version")
    return _summarise(setting, wall, cpu)


def _summarise(setting: Setting, wall: dict[str, list[float]], cpu: dict[str, list[float]]) -> Folds:
    """From turns to figures."""
    seconds = {name: statistics.median(taken) for name, taken in wall.items()}
    gigabytes = 4e-9 * setting.n * setting.k
    limit = seconds.get("read4")
    return Folds(
        read4_gbps=None if limit is None else gigabytes / limit,
        runs=[
            FoldMeasured(
                durability=kind,
                ms=1e3 * seconds[kind],
                cpu_ms=1e3 * statistics.median(cpu[kind]),
                gbps=gigabytes / seconds[kind],
                of_roofline=None if limit is None else limit / seconds[kind],
            )
            for kind in setting.durability
        ],
    )


def fold_lines(setting: Setting, found: Folds) -> list[str]:
    """What was measured, for people."""
    limit = "no roofline: no kernels were compiled"
    if found.read4_gbps is not None:
        limit = f"read4 {found.read4_gbps:.1f} GB/s"
    head = (
        f"{setting.k} updates of {setting.n} floats, {setting.optimizer}; kernels: {kernels.backend}; {limit}"
    )
    lines = [head, ""]
    for one in found.runs:
        share = "" if one.of_roofline is None else f", {one.of_roofline:.2f} of read4"
        lines.append(
            f"{one.durability:<6} {one.ms:8.1f} ms, {one.gbps:.1f} GB/s{share}; {one.cpu_ms:.0f} ms of processor time"
        )
    return lines


def _first_version(store: VersionStore, n: int) -> VersionInfo:
    model = model_file.from_arrays({"weights": np.ones(n, np.float32)})
    written = store.write(0, model.chunks)
    return VersionInfo(version=0, digest=written.digest, size=written.size, layout=model.layout.digest, n=n)


def _updates(setting: Setting, spool: Spool) -> Iterator[AcceptRow]:
    """Rows of updates that lie in the spool, each value N(0, 10⁻⁴)."""
    streams = np.random.SeedSequence(0).spawn(setting.k)
    for i, stream in enumerate(streams):
        x = np.random.Generator(np.random.SFC64(stream)).standard_normal(setting.n, np.float32)
        payload = np.multiply(x, np.float32(0.01), out=x).data.cast("B")
        task = i.to_bytes(16, "big")
        spool.open(task, len(payload), "f32")
        spool.write(task, 0, payload)
        sealed = spool.seal(task)
        assert sealed.norm is not None
        yield AcceptRow(
            task=task,
            worker=f"w{i}",
            base=0,
            buffer=0,
            tau=0,
            weight=float(1 + i % 3),
            examples=1 + i % 3,
            norm=sealed.norm,
            encoding="f32",
            size=len(payload),
            digest=sealed.digest,
        )


def _roofline(job: FoldJob, spool: Spool) -> Callable[[], object]:
    from fedmq.fedcore.kernels import _native

    assert _native is not None
    payloads = [spool.payload(row.task) for row in job.rows]
    return lambda: _native._read4(payloads, threads=job.threads)


def _check_memory(setting: Setting, free: int | None) -> None:
    needed = 4 * setting.n * (setting.k + 12)
    if free is not None and needed > _ROOM * free:
        raise ConfigError(
            f"--n {setting.n} --k {setting.k} needs about {size(needed)} of memory and {size(free)} are free; "
            f"--n {int(_ROOM * free / (4 * (setting.k + 12)))} would fit"
        )
