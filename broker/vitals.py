"""What the process and its disk add to `fedmq status` and `/metrics`: memory, descriptors, room.

Rules that hold here: nothing is kept open, and what this system does not tell is left out. `numbers` lists a folder
with one entry for each connection, so it is for other threads than the I/O thread.
"""

import contextlib
import os
import resource
import time
from pathlib import Path

from .metrics import Numbers

FULL_BYTES = 1 << 20
"""With less room than this a disk counts as full."""


def memory() -> dict[str, int]:
    """Resident bytes of this process; `rss_anon` leaves out mapped files, which the system can take back."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # not Linux: the peak is what there is
        return {"rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {"rss_bytes": "VmRSS", "rss_anon_bytes": "RssAnon"}
    return {name: int(fields[key].split()[0]) * 1024 for name, key in names.items() if key in fields}


def numbers(state: Path) -> Numbers:
    """Of this process, and of the file system that holds its state folder."""
    found: Numbers = {
        "fedmq_process_max_fds": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "fedmq_process_cpu_seconds_total": time.process_time(),
        "fedmq_journal_bytes": _journal_bytes(state),
    }
    held = memory()
    found["fedmq_process_resident_bytes"] = held["rss_bytes"]
    if "rss_anon_bytes" in held:
        found["fedmq_process_anonymous_bytes"] = held["rss_anon_bytes"]
    with contextlib.suppress(OSError):  # not Linux
        found["fedmq_process_open_fds"] = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208, no Path for each
    with contextlib.suppress(OSError):
        room = os.statvfs(state)
        found["fedmq_disk_free_bytes"] = room.f_bavail * room.f_frsize
    return found


def unwritable(state: Path) -> str | None:
    """Why nothing more can be written into a state folder; None while it can."""
    try:
        room = os.statvfs(state)
    except OSError as error:
        return f"the state folder cannot be reached: {error.strerror}"
    if room.f_flag & os.ST_RDONLY or not os.access(state, os.W_OK):
        return "the state folder is read-only"
    if room.f_bavail * room.f_frsize < FULL_BYTES:
        return "the disk is full"
    return None


def _journal_bytes(state: Path) -> int:
    size = 0
    for name in ("journal.db", "journal.db-wal"):
        with contextlib.suppress(OSError):
            size += (state / name).stat().st_size
    return size
