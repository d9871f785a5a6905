"""What the journal is told: one frozen struct a row. Pure values, shared by the mind and the store.

A *buffer* has the number of the version that it builds on: buffer 7 folds onto version 7 and makes
version 8. A synchronous round is the buffer of its base version.
"""

import msgspec


class VersionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A version that exists on disk, as the mind needs to know it."""

    version: int
    digest: bytes
    """XXH3-128 of the whole file."""
    size: int
    """Bytes of the file."""
    layout: bytes
    """Digest of the layout; opaque to workers."""
    n: int
    """Elements of the flat float32 vector."""
    clip_norm: float | None = None
    """What updates that are folded onto it are clipped to, where that is adapted: a release of this version's."""


class VersionRow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A version was made (or adopted, as version 0). Consumes buffer `info.version - 1`."""

    info: VersionInfo
    updates: int = 0
    examples: int = 0
    frac_bits: int | None = None
    denominator: float | None = None
    update_norm: float | None = None
    """L2 norm of the combined update; None for version 0 and while privacy is on."""
    seconds: float = 0.0
    sigma: float = 0.0
    noise_key: bytes | None = None
    """Derived key of this version's noise; None without privacy."""
    privacy_steps: int = 0
    """What this version adds to the ledger: releases of the configured mechanism."""
    charged: float | None = None
    """z, where each worker in the buffer is charged for a part in a release with it; else None."""
    whole_run: bool = False
    """z is of all versions together: a worker is charged for the first one that it is in."""


class AcceptRow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An update that will be in exactly one version: number `buffer + 1`."""

    task: bytes
    worker: str
    base: int
    buffer: int
    tau: int
    weight: float
    """Dyadic (a multiple of 2**-20): staleness times, where configured, examples."""
    examples: int
    norm: float
    """L2 norm of the decoded update; not finite only under privacy, where it counts as zero."""
    encoding: str
    size: int
    digest: bytes
    inline: bytes | None = None
    """The payload itself, up to 64 KiB; None when it is a sealed spool file."""
    metrics: dict[str, float] = {}


class FreezeRow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The buffer takes no more updates: its rows are what will be aggregated, whatever happens."""

    buffer: int
    reason: str


class RoundRow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A synchronous round is open (again): journalled before its first TASK, replaces an earlier row."""

    buffer: int
    cohort: tuple[str, ...]
    target: int
    quorum: int
    deadline_s: float
    extensions: int = 0
    missing: tuple[str, ...] = ()
    """Members that failed in a private round: they are not asked again."""


class LeftOutRow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker was asked in a round, and the round closed without it."""

    buffer: int
    worker: str
    reason: str


class EvaluationRow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker's answer to an evaluate task."""

    task: bytes
    worker: str
    version: int
    examples: int
    metrics: dict[str, float]


class MetricsRow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Metrics of a version: `federated` (weighted over workers) or `broker` (evaluated here)."""

    version: int
    source: str
    metrics: dict[str, float]
    examples: int = 0
    workers: int = 0


class PauseRow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Paused or resumed by an operator; outlives a restart."""

    paused: bool


class EvictRow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker was evicted by an operator (or let in again)."""

    worker: str
    evicted: bool


class FinishRow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The federation reached its end; or, without a reason, it goes on after all."""

    reason: str | None


class CounterRow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Totals that survive a restart; each adds to what the journal has."""

    counts: dict[str, int]


Row = (
    VersionRow
    | AcceptRow
    | FreezeRow
    | RoundRow
    | LeftOutRow
    | EvaluationRow
    | MetricsRow
    | PauseRow
    | EvictRow
    | FinishRow
    | CounterRow
)


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal gives the mind at start. A new federation is `Recovered()`."""

    versions: tuple[VersionInfo, ...] = ()
    """Of the last `max_staleness + 1` versions and all whose file is kept, oldest first; the last is current."""
    kept: frozenset[int] = frozenset()
    """Versions whose files are there."""
    frozen: tuple[AcceptRow, ...] = ()
    """Rows of the frozen buffers whose versions are not made yet (payloads left in the journal: `inline` is b"")."""
    frozen_buffers: tuple[int, ...] = ()
    """Their numbers, ascending (a private round may freeze without a row)."""
    open: tuple[AcceptRow, ...] = ()
    """Rows of the open buffer (likewise)."""
    round: RoundRow | None = None
    """The open round."""
    known: dict[bytes, int] = {}
    """Task ids of accepted updates within the window -> their buffer."""
    evaluations: tuple[EvaluationRow, ...] = ()
    """Answers to evaluate tasks of the current version."""
    metrics: tuple[MetricsRow, ...] = ()
    """Metrics of every version that has some, oldest first."""
    paused: bool = False
    evicted: frozenset[str] = frozenset()
    workers: frozenset[str] = frozenset()
    """Whose updates were accepted lately: they may come back."""
    finished: str | None = None
    counts: dict[str, int] = {}
    privacy_steps: int = 0
    participations: dict[str, int] = {}
    """The ledger: in how many versions each worker was charged for a part."""
    last_parts: dict[str, int] = {}
    """Likewise: the last of these versions."""
    started_s: float = 0.0
    """Seconds that the federation has run before this start."""
