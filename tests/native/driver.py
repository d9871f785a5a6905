"""Running the driver: which levels it has, and what it prints."""

import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any, Final

from .building import build

__all__ = ["LEVELS", "Driver"]

LEVELS: Final = ("base", "avx2", "avx512")


class Driver:
    """A driver that has been built, by the command that starts it."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)

    @classmethod
    def built(cls) -> "Driver":
        """The one for this machine."""
        return cls([str(build("driver", "-DFEDMQ_DRIVER=ON", "-DFEDMQ_MODULE=OFF") / "driver")])

    def run(self, level: str, *before: str) -> subprocess.CompletedProcess[str]:
        """Run it at a level ("" for the best), behind another command if one is given."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDMQ_")}
        return subprocess.run(
            [*before, *self.command],
            env=environment | {"FEDMQ_ISA": level},
            capture_output=True,
            text=True,
            timeout=100,
        )

    def report(self, level: str = "") -> dict[str, Any]:
        """What it prints."""
        done = self.run(level)
        assert done.returncode == 0, done.stderr
        printed: dict[str, Any] = json.loads(done.stdout)
        return printed

    def has(self, level: str) -> bool:
        """Whether this build and this CPU have a level."""
        return LEVELS.index(level) <= LEVELS.index(self.report()["isa"])
