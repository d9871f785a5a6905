"""Many seeds, on all cores: ``python -m tests.simulation.soak`` from the repository's root.

Without ``--seeds`` it runs seeds that nobody ran before, until Ctrl-C or the first that fails. A seed that fails
prints what happened and the line that runs it again, and is added to a list; then the exit code is 1.
"""

import argparse
import logging
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import cast, get_args

import msgspec

from . import scenario
from .federation import Federation, run
from .scenario import Kind

CHUNK = 10
"""Seeds that a process is given at a time."""
REPORT_S = 1.0
FAILURES = Path("build", "soak-failures.txt")

Job = tuple[Kind, int]


class Result(msgspec.Struct):
    """What became of some seeds."""

    seeds: int = 0
    virtual_s: float = 0.0
    failures: list[str] = []
    faults: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, other: "Result") -> None:
        """Both together."""
        self.seeds += other.seeds
        self.virtual_s += other.virtual_s
        self.failures = self.failures + other.failures
        self.faults.update(other.faults)


def check(kind: Kind, seed: int) -> Federation:
    """Run one seed, and hold what it made to what it must be.

    Raises
    ------
    AssertionError
        When something is wrong: says what, and how to run it again.
    """
    federation = run(scenario.make(kind, seed))
    if kind == "full":
        undisturbed = run(scenario.full_cohort(seed, faults=False))
        same = federation.audit.contents() == undisturbed.audit.contents()
        assert same, f"seed {seed}: other versions than without faults\n{replay(kind, seed)}"
    return federation


def replay(kind: Kind, seed: int) -> str:
    """The line that runs a seed again."""
    return f"replay: python -m tests.simulation.soak --kind {kind} --seeds {seed}"


def main() -> int:
    """Run what the command line asks for."""
    options = _options()
    found = Result()
    started = time.monotonic()
    try:
        for result in _results(_jobs(options), options.processes):
            found.add(result)
            _progress(found, started, last=False)
            if found.failures and options.seeds is None:
                break
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    _progress(found, started, last=True)
    for fault, count in sorted(found.faults.items()):
        print(f"{count:>9,}  {fault}")
    for failure in found.failures:
        print(failure)
    _remember(found.failures, options.failures)
    return 1 if found.failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.soak", description=__doc__)
    parser.add_argument("--kind", choices=get_args(Kind), help="of scenario; both where it is left out")
    parser.add_argument("--seeds", help="17, or 0-1999; where it is left out: new ones until stopped")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--failures", type=Path, default=FAILURES, help="the list of those that failed")
    return parser.parse_args()


def _jobs(options: argparse.Namespace) -> Iterator[Job]:
    kinds = get_args(Kind) if options.kind is None else (cast(Kind, options.kind),)
    if options.seeds is None:
        fresh = random.SystemRandom()
        while True:
            yield fresh.choice(kinds), fresh.getrandbits(40)
    first, _, last = options.seeds.partition("-")
    for seed in range(int(first), int(last or first) + 1):
        for kind in kinds:
            yield kind, seed


def _results(jobs: Iterator[Job], processes: int) -> Iterator[Result]:
    """The results of all jobs, in the order in which they come."""
    first = list(islice(jobs, CHUNK))
    rest = list(islice(jobs, 1))
    if not rest:  # few: here, where a debugger sees them
        yield _run(first)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin) as pool:
        running: set[Future[Result]] = {pool.submit(_run, [*first, *rest])}
        try:
            while running:
                while len(running) < 2 * processes and (chunk := list(islice(jobs, CHUNK))):
                    running.add(pool.submit(_run, chunk))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to hear
    logging.getLogger("fedmq").setLevel(logging.CRITICAL)  # torn files, as they should be


def _run(jobs: Iterable[Job]) -> Result:
    result = Result()
    for kind, seed in jobs:
        result.seeds += 1
        try:
            federation = check(kind, seed)
        except AssertionError as error:
            result.failures.append(str(error))
        else:
            result.virtual_s += federation.schedule.now
            result.faults.update(federation.faults.counts)
    return result


def _progress(found: Result, started: float, *, last: bool) -> None:
    seconds = max(time.monotonic() - started, 1e-9)
    if not last and (not sys.stderr.isatty() or seconds < REPORT_S):
        return
    line = (
        f"{found.seeds:,} federations, {found.virtual_s / 3600:,.1f} hours of theirs, "
        f"{sum(found.faults.values()):,} faults, {len(found.failures)} failed; "
        f"{seconds:.0f} s, {found.seeds / seconds:.1f}/s"
    )
    print(
        f"\r\x1b[K{line}" if sys.stderr.isatty() else line,
        end="\n" if last else "",
        file=sys.stderr,
        flush=True,
    )


def _remember(failures: list[str], file: Path) -> None:
    if failures:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            for failure in failures:
                lines = [line for line in failure.splitlines() if line.startswith("replay: ")]
                out.writelines(f"{line.removeprefix('replay: ')}\n" for line in lines)
        print(f"they are listed in {file}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
