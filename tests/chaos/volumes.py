"""Disks that are full, and folders that cannot be written.

Rules that hold here:

- The real thing first: a small tmpfs, mounted where the state folder is. A process that may not mount runs its test
  once more inside a user namespace, where it may. Where neither is allowed, a limit on the size of the child's files
  stands in. Which it was is printed; nothing is skipped.
- What was mounted is unmounted, also after a failure.
- Permissions do not stop root. So children that must be stopped by them are started without root's licence.
"""

import contextlib
import ctypes
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from .tally import Tally

INSIDE = "FEDMQ_CHAOS_INSIDE"
"""Set for a test that runs in a namespace of its own: the file for what it found."""
_PR_CAPBSET_DROP = 24
_LICENCES = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH

T = TypeVar("T")


class Volume:
    """A folder on a disk of its own, small enough to be filled.

    Attributes
    ----------
    says
        What an error line must contain when the disk has no room.
    """

    says = "disk is full"

    def __init__(self, path: Path) -> None:
        self._ballast = path / "ballast"

    def fill(self, spare: int, pid: int) -> None:
        """Leave room for `spare` bytes, more or less (a page is the least that a disk gives), to process `pid`."""
        with self._ballast.open("ab", buffering=0) as out:
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while out.write(bytes(size)):
                        pass
        os.truncate(self._ballast, max(self._ballast.stat().st_size - spare, 0))

    def make_room(self, pid: int) -> None:
        """Let it grow again."""
        self._ballast.unlink()


class Limit(Volume):
    """No disk of its own: the kernel refuses to let the process's files grow, with an error of another name."""

    says = "too large"

    def fill(self, spare: int, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            # Its log is a file as well, and must have room for what it says.
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (max(spare, 64 * 1024), hard))

    def make_room(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended; the next one has no limit
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


@contextlib.contextmanager
def small(path: Path, size: int) -> Iterator[Volume]:
    """A volume of `size` bytes at `path`, by the best means that there is."""
    path.mkdir(mode=0o700, parents=True)
    if not _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "fedmq", str(path)):
        print(f"{path.name}: no mount is allowed here; a limit on the size of files (RLIMIT_FSIZE) stands in")
        yield Limit(path)
        return
    where = " in a namespace of its own" if INSIDE in os.environ else ""
    print(f"{path.name}: a tmpfs of {size >> 10} KiB{where}")
    try:
        yield Volume(path)
    finally:
        assert _run("umount", "--lazy", str(path))


def ran_in_a_namespace(test: str, tally: Tally) -> bool:
    """Run a test inside a user namespace, where this process may not mount and one there may; whether that was done."""
    if INSIDE in os.environ or _may_mount() or not _run("unshare", "-rm", "true"):
        return False
    print("no mount is allowed here; the test runs in a user namespace of its own")
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "tally.json"
        ended = subprocess.run(
            ["unshare", "-rm", sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", test],
            env={**os.environ, INSIDE: str(found)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(ended.stdout)
        assert ended.returncode == 0, "it failed in there; its output is above"
        tally.add(found.read_text(encoding="utf-8"))
    return True


def without_licence(start: Callable[[], T]) -> T:
    """Start a child that permissions stop even where this process is root.

    A thread's capabilities are its own, and what it starts inherits their bound.
    """
    started: list[T] = []

    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in _LICENCES if os.geteuid() == 0 else ():
            if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
                print("root keeps its licence here:", os.strerror(ctypes.get_errno()))
        started.append(start())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return started[0]


def protect(folder: Path) -> None:
    """No file can be made or removed in a folder, nor below it; files that are there can be read."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            path.chmod(0o500)
        elif path.is_file():
            path.chmod(0o400)


def unprotect(folder: Path) -> None:
    """End `protect`."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o700)
        elif path.is_file():
            path.chmod(0o600)


def _may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        if not _run("mount", "-t", "tmpfs", "-o", "size=64k", "fedmq", folder):
            return False
        return _run("umount", folder)


def _run(*command: str) -> bool:
    """Whether a command is there and does what it is for."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
