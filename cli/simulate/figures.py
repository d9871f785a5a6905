"""What is counted while a simulation runs, and what comes of it in the end."""

from collections import Counter
from typing import Any

import msgspec


class Figures:
    """Counts."""

    def __init__(self) -> None:
        self.received: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        """ACKs by what they say."""
        self.staleness: Counter[int] = Counter()
        self.versions: list[float] = []
        """When each version was there, from version 1 on."""
        self._busy = 0
        self._looks = 0

    def accepted(self, tau: int) -> None:
        """An update is in a buffer."""
        self.staleness[tau] += 1

    def version(self, version: int, now: float) -> None:
        """A version is durable."""
        if version:
            self.versions.append(now)

    def busy(self, tasks: int) -> None:
        """So many fit tasks are out, this second."""
        self._busy += tasks
        self._looks += 1

    @property
    def busy_mean(self) -> float:
        """How many fit tasks were out, on average over time."""
        return self._busy / max(self._looks, 1)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulation found."""

    workers: int
    versions: int
    mode: str
    train: str
    seed: int
    virtual_s: float
    """From the start to the last version."""
    half_s: float
    """From the start to the version in the middle."""
    version_ms: float
    """The mean time between versions."""
    updates: int
    updates_per_s: float
    staleness_mean: float
    staleness_p50: int
    staleness_p99: int
    stale_share: float
    """Of all that was offered."""
    rejected_share: float
    died: int
    busy_mean: float
    beat_s: float
    received_per_s: float
    sent_per_s: float
    beats_share: float
    """Of the messages that the broker receives."""
    accuracy: float | None
    wall_s: float
    mind_us: float
    """Of the broker's mind, for each message that it receives."""
    messages: int


def percentile(counts: Counter[int], share: float) -> int:
    """The value below which, or at which, so many of all lie."""
    left = share * sum(counts.values())
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return 0


def lines(report: Report) -> list[tuple[str, str]]:
    """The report for people."""
    facts = [
        (
            "federation",
            f"{report.workers:,} workers, {report.mode}, training: {report.train}, seed {report.seed}",
        ),
        (
            "versions",
            f"{report.versions:,} in {duration(report.virtual_s)}, one every {duration(report.version_ms / 1e3)}",
        ),
        ("", f"half of them after {duration(report.half_s)}"),
        ("updates", f"{report.updates:,} accepted, {report.updates_per_s:,.1f}/s"),
        (
            "staleness",
            f"{report.staleness_mean:.2f} mean, {report.staleness_p50} median, {report.staleness_p99} at p99",
        ),
        ("refused", f"{report.stale_share:.2%} stale, {report.rejected_share:.2%} rejected"),
        ("busy", f"{report.busy_mean:,.0f} workers on average; {report.died:,} died in a fit"),
        (
            "messages",
            f"{report.received_per_s:,.0f}/s to the broker, of them {report.beats_share:.0%} BEATs (every "
            f"{report.beat_s:g} s); {report.sent_per_s:,.0f}/s from it",
        ),
        (
            "this run",
            f"{report.wall_s:,.1f} s for {report.messages:,} messages; the broker's mind took "
            f"{report.mind_us:.1f} µs for each that it received",
        ),
    ]
    if report.accuracy is not None:
        facts.insert(2, ("accuracy", f"{report.accuracy:.2%} on the test images"))
    return facts


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"


def document(report: Report) -> dict[str, Any]:
    """The report for programs."""
    return msgspec.structs.asdict(report)
