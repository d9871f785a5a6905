"""What a round of chaos found, and the table of it in docs/reliability.md.

Rules that hold here:

- The table is written by a long round in which every fault of `FAULTS` was injected and every test passed, and by
  nothing else.
- A fault's losses are those of the federations that it was injected into, each judged as a whole.
"""

import json
import os
import platform
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .rounds import SEED

FAULTS = (
    "broker killed (SIGKILL), asynchronous",
    "worker killed (SIGKILL), asynchronous",
    "broker killed (SIGKILL), synchronous",
    "worker killed (SIGKILL), synchronous",
    "broker stopped for three leases (SIGSTOP)",
    "worker stopped for three leases (SIGSTOP)",
    "disk full under the broker",
    "disk full under a worker",
    "state folder read-only, broker",
    "state folder read-only, worker",
    "descriptors exhausted by strangers",
    "connections cut at a random byte",
    "link throttled to 1 MB/s, 20 ms away",
    "one direction of the network silent",
    "a bit flipped on the wire",
    "wall clock jumps by hours",
    "transfer of a large model interrupted",
)
BEGIN = "<!-- filled by `make chaos`: begin -->"
END = "<!-- filled by `make chaos`: end -->"


@dataclass
class Found:
    """What is known of one fault."""

    injected: int = 0
    lost: int = 0
    twice: int = 0
    judged: bool = False
    recovery_s: list[float] = field(default_factory=list)


class Tally:
    """The faults of one round."""

    def __init__(self) -> None:
        self.found = {fault: Found() for fault in FAULTS}
        self.notes: list[str] = []

    def injected(self, fault: str, recovery_s: float | None = None, *, times: int = 1) -> None:
        """Count a fault; `recovery_s` where it was waited for what proves that all is well again."""
        self.found[fault].injected += times
        if recovery_s is not None:
            self.found[fault].recovery_s.append(recovery_s)

    def judged(self, faults: Iterable[str], lost: int, twice: int) -> None:
        """Note what a federation with these faults had lost, and counted twice, in the end."""
        for fault in faults:
            found = self.found[fault]
            found.judged = True
            found.lost += lost
            found.twice += twice

    def dump(self) -> str:
        """For `add`, in another process."""
        return json.dumps({fault: asdict(found) for fault, found in self.found.items()})

    def add(self, dumped: str) -> None:
        """Count what another process has found as well."""
        for fault, other in json.loads(dumped).items():
            found = self.found[fault]
            found.injected += other["injected"]
            found.lost += other["lost"]
            found.twice += other["twice"]
            found.judged |= other["judged"]
            found.recovery_s += other["recovery_s"]

    def note(self, figure: str) -> None:
        """A figure that has no column, in a sentence."""
        self.notes.append(figure)

    @property
    def complete(self) -> bool:
        """Whether every fault was injected and judged, and recovered from under a watch."""
        return all(found.injected and found.judged and found.recovery_s for found in self.found.values())

    def table(self) -> list[str]:
        """The lines of the table and the notes below it, for Markdown; none where nothing was injected."""
        if not any(found.injected for found in self.found.values()):
            return []
        lines = [
            "| fault | injected | acknowledged updates lost | counted twice | s to recover: median | most |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for fault, found in self.found.items():
            if found.injected:
                taken = found.recovery_s
                median = f"{statistics.median(taken):.2f}" if taken else ""
                most = f"{max(taken):.2f}" if taken else ""
                lines.append(
                    f"| {fault} | {found.injected} | {found.lost} | {found.twice} | {median} | {most} |"
                )
        return lines + [line for note in self.notes for line in ("", note)]


def machine() -> str:
    """The processor and how many cores this process may use."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} core{'s' if cores > 1 else ''}"


def rewrite(page: Path, lines: list[str]) -> None:
    """Put these lines between the markers of a page; everything else on it stays."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} lacks the lines {BEGIN} and {END}")
    made = "\n".join([begin, "", *lines, "", f"`make chaos`, seed {SEED}, on {machine()}.", "", end])
    page.write_text(f"{before}{made}{after}", encoding="utf-8")
