"""Everything that `/metrics` may show: names, units, labels, and a line that says how to read each.

This is the single source: `measures` and `vitals` fill it in, `http` writes it in Prometheus's text format, and a
test holds the table in docs/operations.md to it. Rules that hold here:

- Names follow Prometheus: base units, `_total` for what only grows. Counters start at 0 with the process.
- Labels have closed lists of values, all of which are there from the start, so that a first event is an increase.
  (`fedmq_model_metric` alone takes names from workers; there its size is bounded.)
- Who scrapes is trusted less than who may read the state folder. Where privacy is on, `hidden` metrics are left
  out: from each of them one could count the answers to a round, or tell whose they were. Where a secret coin decides
  who is asked, so are those `of_sample`: from them one could count who was asked.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias, get_args

import msgspec

from fedmq.fedcore import wire

from .tally import ANSWERED, RELEASED, Distribution, labels

Value: TypeAlias = float | Mapping[tuple[str, ...], float] | Distribution
Numbers: TypeAlias = dict[str, Value]
"""By name: a number, one for each combination of labels, or a distribution."""

MODEL_METRICS_MAX = 32
"""So many metrics of a model are shown of each source."""


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One name on the page.

    Attributes
    ----------
    help : str
        The `# HELP` line.
    labels : dict
        Each label and the values that it may have; none where they are not known before.
    every : bool
        Whether each combination of values is shown from the start.
    hidden : bool
        Whether it is left out where privacy is on.
    of_sample : bool
        Whether it is left out where, besides, a secret coin decides who is asked.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: dict[str, tuple[str, ...]] = {}
    every: bool = True
    hidden: bool = False
    of_sample: bool = False


def counter(
    name: str,
    help: str,
    *,
    every: bool = True,
    hidden: bool = False,
    of_sample: bool = False,
    **labels: Iterable[str],
) -> Metric:
    """What only grows."""
    lists = {label: tuple(values) for label, values in labels.items()}
    return Metric(
        name=name, kind="counter", help=help, labels=lists, every=every, hidden=hidden, of_sample=of_sample
    )


def gauge(
    name: str,
    help: str,
    *,
    every: bool = True,
    hidden: bool = False,
    of_sample: bool = False,
    **labels: Iterable[str],
) -> Metric:
    """What is so now."""
    lists = {label: tuple(values) for label, values in labels.items()}
    return Metric(
        name=name, kind="gauge", help=help, labels=lists, every=every, hidden=hidden, of_sample=of_sample
    )


def histogram(name: str, help: str, *, hidden: bool = False) -> Metric:
    """How values are distributed."""
    return Metric(name=name, kind="histogram", help=help, hidden=hidden)


def kinds(table: wire.Table) -> tuple[str, ...]:
    """The names of messages, as labels."""
    return tuple(kind.__name__.lower() for kind in table.values())


_TASKS = get_args(wire.TaskKind)
_ERRORS = ("need_hello", "gone", "busy", "malformed", "forbidden")
STATES = ("running", "stalled", "paused", "draining", "finished")
THREADS = ("store", "spool", "aggregation", "evaluation")
RESULTS = ("accepted", "duplicate", "stale", "rejected")

METRICS: tuple[Metric, ...] = (
    # The federation
    gauge("fedmq_info", "Always 1; the labels say what runs.", version=(), kernels=(), mode=(), every=False),
    gauge(
        "fedmq_state",
        "1 for the state that the federation is in. stalled: it waits for workers; fedmq status says for how many.",
        state=STATES,
    ),
    gauge("fedmq_version", "The current model version; absent before there is one."),
    gauge(
        "fedmq_version_age_seconds",
        "Seconds since the current version was made, or was found at the start of this process.",
    ),
    histogram("fedmq_fold_seconds", "Time to aggregate a buffer into the next version.", hidden=True),
    gauge(
        "fedmq_model_metric",
        "The last value of each metric of a model: measured by workers (federated) or beside the broker.",
        source=("federated", "broker"),
        metric=(),
        every=False,
    ),
    # Workers
    gauge("fedmq_connections", "Connections that are open on the workers' port, with or without a session."),
    counter(
        "fedmq_connections_cut_total",
        "Connections that the broker has ended: their peer was dropped, or never finished a message.",
    ),
    counter(
        "fedmq_rebinds_total",
        "How often the workers' port was closed and opened again because memory passed network.memory_limit.",
    ),
    counter(
        "fedmq_keys_refused_total",
        "Connections whose key is not on the allowlist: a new worker, a revoked one, or a stranger.",
    ),
    gauge("fedmq_sessions", "Workers that have a session."),
    gauge(
        "fedmq_sessions_suspect",
        "Sessions that were silent for a lease, or have no route; they get no tasks.",
    ),
    gauge("fedmq_workers_evicted", "Workers that an operator has sent away."),
    counter(
        "fedmq_sessions_opened_total",
        "Sessions that began. resumed: the worker had been here in this process's life.",
        resumed=("yes", "no"),
    ),
    counter(
        "fedmq_sessions_closed_total",
        "Sessions that ended. silent: the lease expired; replaced: the same worker opened another.",
        reason=(*labels(RELEASED), "replaced", "finished"),
    ),
    counter(
        "fedmq_hellos_refused_total",
        "HELLOs that got no session. shutdown: the broker was stopping.",
        code=("wrong_protocol", "name_in_use", "revoked", "full", "finished", "shutdown", "other"),
    ),
    counter(
        "fedmq_suspects_total",
        "Sessions that became suspect: silent for a lease, or unreachable.",
        cause=("silent", "unreachable"),
    ),
    # Messages
    counter(
        "fedmq_messages_received_total",
        "Well-formed messages from workers.",
        kind=kinds(wire.TO_BROKER),
        hidden=True,
    ),
    counter("fedmq_messages_sent_total", "Messages to workers.", kind=kinds(wire.TO_WORKER), hidden=True),
    counter("fedmq_received_bytes_total", "Bytes of messages from workers.", hidden=True),
    counter("fedmq_sent_bytes_total", "Bytes of messages to workers.", hidden=True),
    counter(
        "fedmq_protocol_errors_total",
        "Messages that broke the protocol. Three within a minute end a session: a defect or an attack.",
    ),
    counter(
        "fedmq_floods_total", "Connections that were dropped because they sent and sent and moved nothing."
    ),
    counter(
        "fedmq_errors_sent_total",
        "ERRORs sent. need_hello after a restart is usual; gone: a version was asked for that is no longer kept.",
        code=_ERRORS,
        of_sample=True,
    ),
    gauge(
        "fedmq_peers_waiting",
        "Peers that do not take at once what is sent to them: slow links, stopped workers.",
        of_sample=True,
    ),
    # Tasks
    gauge(
        "fedmq_tasks_out",
        "Tasks in workers' hands, without those whose results are on their way in.",
        kind=_TASKS,
        hidden=True,
    ),
    counter("fedmq_tasks_sent_total", "Tasks that were handed out.", kind=_TASKS, of_sample=True),
    counter(
        "fedmq_tasks_adopted_total",
        "Tasks that an earlier process had handed out, and that were still wanted.",
        kind=_TASKS,
        of_sample=True,
    ),
    counter(
        "fedmq_tasks_released_total",
        "Tasks taken back because their worker will not finish them. failed: its app; lost: it forgot; "
        "silent: its lease expired.",
        kind=_TASKS,
        reason=labels(RELEASED),
        hidden=True,
    ),
    counter(
        "fedmq_cancels_sent_total",
        "Work that was called back. round_over: others were faster; unwanted: it was handed out before a restart; "
        "stale: it took too long.",
        reason=("round_over", "unwanted", "stale"),
        hidden=True,
    ),
    # Updates
    counter(
        "fedmq_updates_total",
        "Answers to offers. duplicate: offered again because an ACK was lost; stale: too late; rejected: it breaks "
        "a rule, which reason names.",
        kind=(*_TASKS, "unknown"),
        result=RESULTS,
        reason=("", *labels(ANSWERED)),
        every=False,
        hidden=True,
    ),
    counter(
        "fedmq_waits_sent_total",
        "Offers that were put off, to come again. credit: network.credit_budget is in use; disk: "
        "storage.disk_budget is; frozen: aggregation does not keep up; place: the buffer has this worker's; "
        "stalled: the transfer stood still.",
        reason=("credit", "disk", "frozen", "place", "stalled"),
        hidden=True,
    ),
    counter(
        "fedmq_uploads_total",
        "Transfers that began. resumed: bytes of it were here already, from before a connection or a process ended.",
        how=("new", "resumed"),
        hidden=True,
    ),
    gauge(
        "fedmq_uploads",
        "Updates on their way in, those that wait for their worker to come back included.",
        hidden=True,
    ),
    gauge(
        "fedmq_upload_credit_bytes",
        "Bytes that workers may send now; never more than the budget.",
        hidden=True,
    ),
    gauge("fedmq_upload_credit_limit_bytes", "network.credit_budget."),
    histogram("fedmq_staleness_versions", "Versions that accepted updates had missed.", hidden=True),
    histogram(
        "fedmq_update_norm",
        "L2 norms of accepted updates; a shift shows a worker gone wrong, or an attack.",
        hidden=True,
    ),
    # Buffers and rounds
    gauge("fedmq_buffer_updates", "Updates in the open buffer.", hidden=True),
    gauge(
        "fedmq_buffer_target_updates",
        "Updates that the open buffer is after; absent between rounds.",
        of_sample=True,
    ),
    gauge(
        "fedmq_buffers_waiting",
        "Frozen buffers that wait to be aggregated, the one at work included; 4 at most.",
    ),
    counter(
        "fedmq_buffers_frozen_total",
        "Buffers that took no more updates. deadline: the round ended without its last members.",
        reason=("full", "complete", "deadline"),
        hidden=True,
    ),
    counter("fedmq_rounds_opened_total", "Synchronous rounds that were opened."),
    counter("fedmq_rounds_extended_total", "Rounds that had no quorum at their deadline."),
    # The disk
    histogram(
        "fedmq_commit_seconds",
        'Time of a journal commit; with storage.durability = "fsync", of its fsync.',
        hidden=True,
    ),
    gauge(
        "fedmq_commit_recent_seconds",
        "The same, of the last 1024 commits.",
        quantile=("0.5", "0.99"),
        of_sample=True,
    ),
    counter("fedmq_commit_rows_total", "Rows that were committed to the journal.", hidden=True),
    gauge(
        "fedmq_commit_running_seconds",
        "How long the commit at work has taken so far; 0 when there is none.",
        of_sample=True,
    ),
    gauge("fedmq_commits_waiting", "Commits that were promised and are not durable yet.", of_sample=True),
    gauge("fedmq_queue_jobs", "Jobs that wait for a thread of the broker.", thread=THREADS, of_sample=True),
    gauge("fedmq_inbox_events", "Events that wait for the I/O thread.", of_sample=True),
    gauge("fedmq_journal_bytes", "Size of the journal, with its write-ahead log.", of_sample=True),
    gauge("fedmq_disk_free_bytes", "Room on the state folder's file system, for this user.", of_sample=True),
    # Privacy
    gauge(
        "fedmq_privacy_steps_spent",
        "Releases that all versions together have cost; absent without [privacy].",
    ),
    gauge("fedmq_privacy_steps_left", "Releases that the budget still has; absent without [privacy]."),
    gauge(
        "fedmq_privacy_clip_norm",
        "What the next version's updates are clipped to; absent without [privacy.adaptive_clip].",
    ),
    # The process
    gauge("fedmq_loop_answer_seconds", "How long the I/O loop took to answer this scrape.", of_sample=True),
    gauge("fedmq_uptime_seconds", "Seconds since this process started to serve."),
    gauge(
        "fedmq_process_resident_bytes",
        "Resident memory, mapped files included: the system can take those back.",
        of_sample=True,
    ),
    gauge("fedmq_process_anonymous_bytes", "Resident memory of the process's own.", of_sample=True),
    gauge(
        "fedmq_process_open_fds",
        "Open file descriptors; each connection takes one, and each upload of some size.",
        of_sample=True,
    ),
    gauge("fedmq_process_max_fds", "The limit of open file descriptors."),
    counter("fedmq_process_cpu_seconds_total", "Processor time, user and system.", of_sample=True),
)

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}


def complete(numbers: Numbers, *, private: bool, sampled: bool = False) -> Numbers:
    """The numbers in the order of the page: what is hidden left out, what has not happened yet as 0.

    Raises
    ------
    KeyError
        When a number has no place in `METRICS`.
    """
    for name in numbers:
        BY_NAME[name]
    shown: Numbers = {}
    for metric in METRICS:
        if (private and metric.hidden) or (sampled and metric.of_sample):
            continue
        value = numbers.get(metric.name)
        if metric.kind == "counter" and not metric.labels:
            value = 0.0 if value is None else value
        if metric.labels and metric.every and (value is None or isinstance(value, Mapping)):
            value = dict.fromkeys(combinations(metric), 0.0) | dict(value or {})
        if value is not None and value != {}:
            shown[metric.name] = value
    return shown


def combinations(metric: Metric) -> list[tuple[str, ...]]:
    """Every combination of the values of its labels."""
    found: list[tuple[str, ...]] = [()]
    for values in metric.labels.values():
        found = [(*before, value) for before in found for value in values]
    return found
