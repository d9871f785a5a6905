"""What the HTTP port sees of a broker: the mind's numbers, and those of the parts that its threads work with.

`pages` wires them together. What belongs to the I/O thread is read there, between two events; what belongs to the
process is read by the server's own thread. Imported where `network.http` is set, as `http` is.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

import fedmq
from fedmq.fedcore import kernels, wire
from fedmq.fedcore.config import Config
from fedmq.fedcore.inbox import Inbox

from . import vitals
from .body import Body
from .coordinator import Coordinator
from .http import HttpServer, Loop, Pages
from .measures import Measured
from .metrics import Numbers
from .threads import Ask, Commits, Notice, Service
from .transport import Transport

__all__ = ["HttpServer", "pages"]


def pages(
    mind: Coordinator,
    body: Body,
    config: Config,
    state: Path,
    inbox: Inbox[Notice],
    transport: Transport,
    commits: Commits,
    threads: Mapping[str, object],
) -> Pages:
    """The pages of one broker.

    Parameters
    ----------
    mind, body, config, inbox, transport, commits
        Its parts.
    state : Path
        The state folder.
    threads : mapping
        The `Service` of each thread, by the names that `metrics.THREADS` has.
    """
    started = time.monotonic()
    about = {(fedmq.__version__, kernels.backend, config.mode.kind): 1.0}

    def measure() -> Measured:
        now = time.monotonic()
        measured = mind.measure(now)
        return msgspec.structs.replace(
            measured,
            numbers=measured.numbers
            | _traffic(transport)
            | _storing(commits)
            | {
                "fedmq_info": about,
                "fedmq_uptime_seconds": now - started,
                "fedmq_commits_waiting": body.promised,
                "fedmq_inbox_events": inbox.waiting,
                "fedmq_queue_jobs": {
                    (name,): service.waiting
                    for name, service in threads.items()
                    if isinstance(service, Service)
                },
            },
        )

    return Pages(
        Loop(lambda answer: inbox.put(Ask(answer)), measure),
        lambda: vitals.numbers(state),
        lambda: vitals.unwritable(state),
        private=config.privacy is not None,
        sampled=config.samples_workers,
    )


def _traffic(transport: Transport) -> Numbers:
    return {
        "fedmq_connections": len(transport.connections),
        "fedmq_connections_cut_total": transport.connections.cuts,
        "fedmq_rebinds_total": transport.rebinds,
        "fedmq_keys_refused_total": transport.refused,
        "fedmq_peers_waiting": transport.waiting,
        "fedmq_received_bytes_total": transport.bytes_up,
        "fedmq_sent_bytes_total": transport.bytes_down,
        "fedmq_messages_received_total": _by_kind(wire.TO_BROKER, transport.received),
        "fedmq_messages_sent_total": _by_kind(wire.TO_WORKER, transport.sent),
        "fedmq_errors_sent_total": {(code,): number for code, number in transport.errors.items()},
    }


def _by_kind(table: wire.Table, counts: list[int]) -> dict[tuple[str, ...], float]:
    return {(kind.__name__.lower(),): counts[code] for code, kind in table.items()}


def _storing(commits: Commits) -> Numbers:
    recent = commits.latency_ms()
    return {
        "fedmq_commit_seconds": commits.times.copy(),
        "fedmq_commit_recent_seconds": {
            ("0.5",): recent["median"] / 1e3,
            ("0.99",): recent["p99"] / 1e3,
        },
        "fedmq_commit_rows_total": commits.rows,
        "fedmq_commit_running_seconds": commits.running_s(),
    }
