"""Measure a federation whose training does nothing: a broker process, worker processes, one disk.

What is measured, and how:

- A round lasts from one version's commit to the next one's, by the journal's clock. The first rounds, in which
  processes start and caches fill, are not counted.
- Bytes are those of frames, as the broker counts them, over all rounds.
- The broker's memory is the peak of its RssAnon: what the process itself holds, without mapped files.
- The latency of the disk is that of fsync after an append of 4 KiB, in the same folder, before and after.

The bar: with 1,000 floats and two workers a synchronous round takes at most 5 ms, and with fsync eight times the
latency of the disk more; an accepted update, a round and a version are each durable before anybody builds on them.
"""

import os
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from fedmq.broker.store.history import History

from ..processes import LocalFederation, Status
from ..progress import Moment, Show, View
from ..status_view import crowd, size
from .flower import FlowerMeasured

__all__ = [
    "Measured", "Setting", "bar_ms", "default_rounds", "fsync_latency_ms", "lines", "measure", "peer_lines",
    "summarise",
]  # fmt: skip

APP: Final = "fedmq.cli.bench.app:app"
BAR_MS: Final = 5.0
BAR_FSYNCS: Final = 8
BAR_N: Final = 1000
BAR_WORKERS: Final = 2
_SAMPLE_S: Final = 0.02
_FSYNCS: Final = 50
_PAGE: Final = bytes(4096)


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure.

    Attributes
    ----------
    n : int
        Elements of the model.
    rounds : int
        Versions that are counted.
    durability : str
        ``"os"`` or ``"fsync"``.
    """

    n: int
    workers: int
    rounds: int
    mode: str
    durability: str
    buffer: int = 0
    """Of the asynchronous mode; 0 for as many updates as there are workers."""
    slots: int = 2
    encoding: str = "f32"
    """Of the updates."""
    downlink: str = "f32"
    """Of the model."""

    @property
    def warm_up(self) -> int:
        """Versions before those that are counted."""
        return max(1, self.rounds // 10)

    def tables(self) -> dict[str, dict[str, Any]]:
        """The federation.toml."""
        mode: dict[str, Any] = {"kind": "sync", "min_available": self.workers, "deadline_s": 0.0}
        if self.mode == "async":
            buffer = self.buffer or self.workers
            mode = {"kind": "async", "buffer": buffer, "concurrency": self.workers * self.slots}
        return {
            "federation": {"name": "bench"},
            "model": {"initial": APP, "max_bytes": 4 * self.n + (1 << 20), "downlink": self.downlink},
            "mode": mode,
            "task": {"n": self.n},
            "aggregate": {"encoding": self.encoding},
            "evaluate": {"every": 0},
            "stop": {"versions": self.warm_up + self.rounds},
            "storage": {"durability": self.durability},
        }


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; times in milliseconds, rates in a second, memory in bytes.

    Attributes
    ----------
    bar_ms : float or None
        What the median may be at most; None where the bar is not meant for the setting.
    rss_anon_peak : int or None
        None where the system does not say.
    """

    durability: str
    rounds: int
    round_ms_median: float
    round_ms_p99: float
    updates_per_s: float
    bytes_up_per_s: float
    bytes_down_per_s: float
    rss_anon_peak: int | None
    fsync_ms: float
    bar_ms: float | None

    @property
    def within_bar(self) -> bool | None:
        """Whether the median is within the bar, where there is one."""
        return None if self.bar_ms is None else self.round_ms_median <= self.bar_ms


def measure(setting: Setting, folder: Path, view: View) -> Measured:
    """Run one federation and measure it.

    Parameters
    ----------
    setting : Setting
    folder : Path
        On the disk that is measured; made here.
    view : View
        Shows what goes on.

    Raises
    ------
    ProcessError
        When a broker or a worker ended before its time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fsyncs = fsync_latency_ms(folder)
    with view.arm(setting.durability) as show, LocalFederation(folder, setting.tables()) as federation:
        show(Moment(note="starting a broker"))
        federation.start_broker()
        federation.start_workers(APP, [{}] * setting.workers, slots=setting.slots, log_level="warning")
        assert federation.broker is not None
        with _PeakMemory(federation.broker.pid) as memory:
            # Looked at rarely: each look is a message that the broker answers between two others.
            federation.wait(_watch(setting, show), interval_s=1.0)
        done = setting.warm_up + setting.rounds
        show(Moment(note="", version=done, versions=done))
    fsyncs += fsync_latency_ms(folder)
    with History.open(federation.state / "journal.db") as journal:
        counts, versions = journal.summary()["counts"], journal.history()
    return summarise(setting, versions, counts, fsync_ms=statistics.median(fsyncs), rss_anon_peak=memory.peak)


def summarise(
    setting: Setting,
    versions: Sequence[dict[str, Any]],
    counts: dict[str, int],
    *,
    fsync_ms: float,
    rss_anon_peak: int | None,
) -> Measured:
    """From a journal's history to figures.

    Parameters
    ----------
    setting : Setting
    versions : sequence of dict
        As `History.history` gives them, version 0 first.
    counts : dict
        With ``bytes_up`` and ``bytes_down``.
    fsync_ms : float
        Of the disk.
    rss_anon_peak : int or None
        Of the broker.
    """
    made = [row["created_at"] for row in versions]
    first = setting.warm_up
    rounds_s = sorted(
        later - earlier for earlier, later in zip(made[first:], made[first + 1 :], strict=False)
    )
    # Version 1 waits for the workers to start, so the rates begin with it.
    moved_s = made[-1] - made[1] if len(made) > 2 else made[-1] - made[0]
    share = (len(made) - 2) / (len(made) - 1) if len(made) > 2 else 1.0
    return Measured(
        durability=setting.durability,
        rounds=len(rounds_s),
        round_ms_median=1e3 * statistics.median(rounds_s),
        round_ms_p99=1e3 * rounds_s[min(len(rounds_s) * 99 // 100, len(rounds_s) - 1)],
        updates_per_s=sum(row["updates"] for row in versions[first + 1 :]) / sum(rounds_s),
        bytes_up_per_s=counts["bytes_up"] * share / moved_s,
        bytes_down_per_s=counts["bytes_down"] * share / moved_s,
        rss_anon_peak=rss_anon_peak,
        fsync_ms=fsync_ms,
        bar_ms=bar_ms(setting, fsync_ms),
    )


def bar_ms(setting: Setting, fsync_ms: float) -> float | None:
    """What the median round of a setting may take, if there is a bar for it."""
    if (setting.mode, setting.n, setting.workers) != ("sync", BAR_N, BAR_WORKERS):
        return None
    return BAR_MS + (BAR_FSYNCS * fsync_ms if setting.durability == "fsync" else 0.0)


def default_rounds(n: int) -> int:
    """So many that a run takes seconds: 300 for small models, 5 for those of hundreds of megabytes."""
    return max(5, min(300, 30_000_000 // n))


def fsync_latency_ms(folder: Path, times: int = _FSYNCS) -> list[float]:
    """How long each of some fsyncs took, after an append of 4 KiB to a file in `folder`."""
    path = folder / "fsync"
    taken = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(times):
            os.write(descriptor, _PAGE)
            started = time.perf_counter()
            os.fsync(descriptor)
            taken.append(1e3 * (time.perf_counter() - started))
    finally:
        os.close(descriptor)
        path.unlink()
    return taken


def _watch(setting: Setting, show: Show) -> Any:
    def look(status: Status) -> None:
        show(
            Moment(
                note=crowd(status),
                version=status["version"] or 0,
                versions=setting.warm_up + setting.rounds,
                updates=status["updates"]["accepted"],
            )
        )

    return look


class _PeakMemory:
    """Watches the RssAnon of a process in a thread; a context manager."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="fedmq-memory", daemon=True)
        self.peak: int | None = None

    def __enter__(self) -> "_PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            now = rss_anon(self._status)
            if now is None:
                return
            self.peak = max(self.peak or 0, now)


def rss_anon(status: Path) -> int | None:
    """Bytes, from a /proc/PID/status; None when there is none (it ended, or this is no Linux)."""
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return 1024 * int(found[0]) if found else None


def peer_lines(peer: FlowerMeasured, found: list[Measured]) -> list[str]:
    """What Flower took, and how many times as many updates fedmq moved in the same run."""
    ratios = (f"{m.updates_per_s / peer.updates_per_s:.1f} x with {m.durability}" for m in found)
    return [
        f"Flower {peer.version}, gRPC stream, f32 up and down",
        f"round       {peer.round_ms_median:.2f} ms median, of {peer.rounds}",
        f"updates     {peer.updates_per_s:.1f}/s; fedmq moves {', '.join(ratios)}",
    ]


def lines(measured: Measured) -> list[str]:
    """What was measured, for people."""
    peak = measured.rss_anon_peak
    facts = [
        ("durability", measured.durability),
        (
            "round",
            f"{measured.round_ms_median:.2f} ms median, {measured.round_ms_p99:.2f} ms p99, of {measured.rounds}",
        ),
        ("updates", f"{measured.updates_per_s:.1f}/s"),
        ("up, down", f"{size(measured.bytes_up_per_s)}/s, {size(measured.bytes_down_per_s)}/s"),
        ("memory", "unknown here" if peak is None else f"{size(peak)} RssAnon of the broker at its peak"),
        ("fsync", f"{measured.fsync_ms:.2f} ms median, for 4 KiB in the same folder"),
    ]
    if measured.bar_ms is not None:
        verdict = "within" if measured.within_bar else "ABOVE"
        facts.append(("bar", f"{verdict} {measured.bar_ms:.2f} ms for the median round"))
    return [f"{name:<11} {text}" for name, text in facts]
