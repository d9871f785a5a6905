"""Measure one broker under thousands of workers: a connect storm, idleness, small updates, a broker that dies.

What is measured, and how:

- The broker is a real daemon. The workers are real minds over plain connections (`swarm`), a few thousand in
  each of several processes; a task of theirs is a pause.
- *storm*: from the first connection until the last worker has its WELCOME. Nobody gets a task meanwhile.
- *idle*: the broker's CPU while everybody only beats, and its RssAnon beyond what it had without workers.
- *load*: as many tasks are out at a time as keep the wanted rate. Latency runs from a worker's OFFER to its ACK;
  its bins are 7 % wide. The broker remembers the ids of the last thousand versions, and whom it has given work: its
  memory grows until it has seen that many.
- *restart*: the broker is killed (SIGKILL) and started again. How long until every worker is back, by itself, and
  whether the journal holds every update that an ACK was sent for.
"""

import contextlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from fedmq.broker import control
from fedmq.broker.store.history import History
from fedmq.fedcore.errors import ConfigError, ProcessError

from ..processes import LocalFederation
from .federation import APP, fsync_latency_ms, rss_anon
from .swarm import BINS

__all__ = ["Load", "LoadMeasured", "measure_load"]

TRAIN_S: Final = 0.5
SPARE: Final = 256
"""Descriptors that a process needs besides its connections."""
CONNECT_S: Final = 300.0
QUARTERS: Final = 4
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_LOOK_S: Final = 0.05

Say = Callable[[str], None]


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure."""

    workers: int
    processes: int
    rate: float
    """Updates a second that the workers try to deliver."""
    seconds: float
    """How long the load lasts."""
    idle_s: float
    floats: int
    buffer: int
    durability: str

    def tables(self) -> dict[str, dict[str, Any]]:
        """The federation.toml."""
        return {
            "federation": {"name": "load"},
            "model": {"initial": APP},
            "mode": {
                "kind": "async",
                "buffer": self.buffer,
                "concurrency": min(self.workers, max(1, math.ceil(self.rate * TRAIN_S))),
                "max_staleness": 1000,
            },
            "task": {"n": self.floats},
            "evaluate": {"every": 0},
            "storage": {"durability": self.durability},
        }


class LoadMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; times in seconds or milliseconds as named, memory in bytes, CPU in cores."""

    storm_s: float
    idle_cpu: float
    bytes_per_worker: float | None
    updates_per_s: float
    latency_ms_p50: float
    latency_ms_p99: float
    load_cpu: float
    rss_anon: tuple[int | None, ...]
    """When the load began, and after each quarter of it."""
    down_s: float
    """From the kill until the new broker listened."""
    back_s: float
    """From then until every worker had its WELCOME."""
    first_ack_s: float
    """From then until the next update was acknowledged."""
    acknowledged: int
    journalled: int
    fsync_ms: float

    @property
    def lost(self) -> int:
        """Acknowledged updates that the journal does not hold."""
        return max(self.acknowledged - self.journalled, 0)


class _Swarms:
    """The processes of the workers and what they report; a context manager."""

    def __init__(self, load: Load, endpoint: str) -> None:
        self._totals: list[dict[str, Any]] = [{} for _ in range(load.processes)]
        shares = [load.workers // load.processes] * load.processes
        for number in range(load.workers % load.processes):
            shares[number] += 1
        self._processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "fedmq.cli.bench.swarm", endpoint),
                    *(f"swarm-{number}", str(share), str(TRAIN_S), str(load.floats)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for number, share in enumerate(shares)
        ]
        for number, process in enumerate(self._processes):
            threading.Thread(target=self._listen, args=(number, process), daemon=True).start()

    def __enter__(self) -> "_Swarms":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()

    def _listen(self, number: int, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._totals[number] = json.loads(line)

    def check(self) -> None:
        """Raise when a process has ended."""
        for process in self._processes:
            if process.poll() is not None:
                raise ProcessError(f"a process of workers ended with exit code {process.returncode}")

    def total(self, what: str) -> int:
        """A count over all processes, half a second old at most."""
        return sum(totals.get(what, 0) for totals in self._totals)

    def latency(self) -> Counter[int]:
        """Updates in each bin of latency."""
        bins: Counter[int] = Counter()
        for totals in self._totals:
            bins.update({int(number): count for number, count in totals.get("latency", {}).items()})
        return bins


def measure_load(load: Load, folder: Path, say: Say) -> LoadMeasured:
    """Run the four phases.

    Parameters
    ----------
    load : Load
    folder : Path
        On the disk that the broker is to write to; made here.
    say : callable
        Told what goes on, in words.

    Raises
    ------
    ConfigError
        When this machine does not allow as many descriptors.
    ProcessError
        When a process ends before its time, or not all workers connect.
    """
    _raise_descriptor_limit(load)
    folder.mkdir(parents=True, exist_ok=True)
    fsync_ms = sorted(fsync_latency_ms(folder))[25]
    with LocalFederation(folder, load.tables()) as federation:
        federation.start_broker()
        control.request(federation.state, "pause")
        bare = _memory(federation)
        started = time.monotonic()
        with _Swarms(load, federation.endpoint) as swarms:
            _await(swarms, federation, "welcome", load.workers, say)
            storm_s = time.monotonic() - started
            with _Cpu(federation) as idle:
                _hold(swarms, federation, load.idle_s, lambda left: say(f"idle, {left:.0f} s more"))
            crowded = _memory(federation)
            control.request(federation.state, "resume")
            figures = _load(load, swarms, federation, say)
            restart = _restart(load, swarms, federation, say)
        with History.open(federation.state / "journal.db") as journal:
            journalled = journal.accepted()
    return LoadMeasured(
        storm_s=storm_s,
        idle_cpu=idle.cores,
        bytes_per_worker=None if bare is None or crowded is None else (crowded - bare) / load.workers,
        journalled=journalled,
        fsync_ms=fsync_ms,
        **figures,
        **restart,
    )


def _load(load: Load, swarms: _Swarms, federation: LocalFederation, say: Say) -> dict[str, Any]:
    """Small updates for a while; the first second is not counted."""
    _hold(swarms, federation, 1.0, lambda _: say("load begins"))
    before, bins, begin = swarms.total("accepted"), swarms.latency(), time.monotonic()
    memory = [_memory(federation)]

    def show(left: float) -> None:
        passed = max(time.monotonic() - begin, 1e-9)
        say(f"load, {(swarms.total('accepted') - before) / passed:.0f} updates/s, {left:.0f} s more")

    with _Cpu(federation) as cpu:
        for quarter in range(QUARTERS, 0, -1):
            _hold(swarms, federation, (begin + load.seconds - time.monotonic()) / quarter, show)
            memory.append(_memory(federation))
    passed = time.monotonic() - begin
    latency = swarms.latency() - bins
    return {
        "updates_per_s": (swarms.total("accepted") - before) / passed,
        "latency_ms_p50": 1e3 * quantile(latency, 0.5),
        "latency_ms_p99": 1e3 * quantile(latency, 0.99),
        "load_cpu": cpu.cores,
        "rss_anon": tuple(memory),
    }


def _restart(load: Load, swarms: _Swarms, federation: LocalFederation, say: Say) -> dict[str, Any]:
    """The broker dies and comes again."""
    assert federation.broker is not None
    welcomes = swarms.total("welcome")
    say("the broker is killed")
    killed = time.monotonic()
    federation.broker.send(signal.SIGKILL)
    federation.broker.join(CONNECT_S)
    federation.start_broker()
    listens = time.monotonic()
    accepted = swarms.total("accepted")
    first_ack = math.nan

    def look() -> None:
        nonlocal first_ack
        if math.isnan(first_ack) and swarms.total("accepted") > accepted:
            first_ack = time.monotonic() - listens

    _await(swarms, federation, "welcome", welcomes + load.workers, say, look)
    back = time.monotonic() - listens
    while math.isnan(first_ack) and time.monotonic() < listens + CONNECT_S:
        _hold(swarms, federation, _LOOK_S, lambda _: None)
        look()
    control.request(federation.state, "pause")
    _hold(swarms, federation, 2 * TRAIN_S + 2.0, lambda _: say("the last updates arrive"))
    return {
        "down_s": listens - killed,
        "back_s": back,
        "first_ack_s": first_ack,
        "acknowledged": swarms.total("accepted"),
    }


def _await(
    swarms: _Swarms,
    federation: LocalFederation,
    what: str,
    count: int,
    say: Say,
    look: Callable[[], None] = lambda: None,
) -> None:
    ends = time.monotonic() + CONNECT_S
    while (there := swarms.total(what)) < count:
        say(f"{there} of {count} workers were welcomed")
        if time.monotonic() > ends:
            raise ProcessError(f"only {there} of {count} workers were welcomed within {CONNECT_S:g} s")
        _hold(swarms, federation, _LOOK_S, lambda _: None)
        look()


def _hold(
    swarms: _Swarms, federation: LocalFederation, seconds: float, show: Callable[[float], None]
) -> None:
    """Let time pass, while everybody lives."""
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        show(left)
        swarms.check()
        federation.check()
        time.sleep(min(left, 0.25))


class _Cpu:
    """The cores that a broker kept busy inside of a ``with`` block."""

    def __init__(self, federation: LocalFederation) -> None:
        assert federation.broker is not None
        self._stat = Path(f"/proc/{federation.broker.pid}/stat")
        self.cores = math.nan

    def __enter__(self) -> "_Cpu":
        self._began, self._used = time.monotonic(), self._seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self.cores = (self._seconds() - self._used) / (time.monotonic() - self._began)

    def _seconds(self) -> float:
        with contextlib.suppress(OSError):
            fields = self._stat.read_text(encoding="ascii", errors="replace").rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / _TICKS
        return math.nan


def quantile(bins: Counter[int], share: float) -> float:
    """The latency, in seconds, that a share of the updates did not exceed; NaN of none."""
    wanted = share * sum(bins.values())
    seen = 0
    for number in range(BINS):
        seen += bins[number]
        if seen and seen >= wanted:
            return float(2.0 ** ((number + 1) / 10) * 1e-6)
    return math.nan


def _memory(federation: LocalFederation) -> int | None:
    assert federation.broker is not None
    return rss_anon(Path(f"/proc/{federation.broker.pid}/status"))


def _raise_descriptor_limit(load: Load) -> None:
    """The children inherit it: a broker needs a descriptor for each worker."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = load.workers + SPARE
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"{load.workers} workers need {needed} descriptors in the broker; a process may have {hard} here: "
            f"raise the hard limit (ulimit -Hn), or measure with --workers {max(hard - SPARE, 1)}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(needed, 1024), hard))


def lines(load: Load, found: LoadMeasured) -> Iterator[str]:
    """What was measured, for people."""
    yield f"{load.workers} workers in {load.processes} processes, {load.floats} floats, {load.durability}"
    yield ""
    yield f"storm     all welcomed in {found.storm_s:.1f} s, {load.workers / found.storm_s:.0f}/s"
    each = "unknown here" if found.bytes_per_worker is None else f"{found.bytes_per_worker / 1024:.1f} KiB"
    yield f"idle      {100 * found.idle_cpu:.0f} % of a core, {each} a worker"
    yield (
        f"load      {found.updates_per_s:.0f} updates/s of {load.rate:g} wanted, for {load.seconds:g} s;"
        f" {100 * found.load_cpu:.0f} % of a core"
    )
    yield f"latency   {found.latency_ms_p50:.1f} ms median, {found.latency_ms_p99:.1f} ms p99, OFFER to ACK"
    begin, *quarters = ("unknown" if size is None else f"{size / 1e6:.1f}" for size in found.rss_anon)
    yield f"memory    {begin} MB RssAnon when the load began; after each quarter of it {', '.join(quarters)}"
    yield (
        f"restart   down for {found.down_s:.1f} s; the first ACK {found.first_ack_s:.1f} s after,"
        f" everybody back {found.back_s:.1f} s after"
    )
    yield f"lost      {found.lost} of {found.acknowledged} acknowledged updates ({found.journalled} in the journal)"
    yield f"fsync     {found.fsync_ms:.2f} ms median, for 4 KiB in the same folder"
