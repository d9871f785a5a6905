"""Builds of ``csrc/`` that no wheel holds: the driver, for this machine or another, and sanitized ones.

Each has its folder under ``build/``; a second build compiles what has changed since.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

__all__ = ["ROOT", "build", "missing_tools"]

ROOT: Final = Path(__file__).parents[2]

# `make` puts cmake and ninja beside the interpreter.
_PATH: Final = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


def missing_tools() -> list[str]:
    """What a build needs and this machine lacks."""
    compiler = os.environ.get("CXX", "c++")
    return [tool for tool in ("cmake", "ninja", compiler) if shutil.which(tool, path=_PATH) is None]


def build(name: str, *options: str) -> Path:
    """Configure and build ``build/<name>``; return that folder.

    Raises
    ------
    RuntimeError
        If it does not compile, with what the compiler said.
    """
    folder = ROOT / "build" / name
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *options],
        ["cmake", "--build", str(folder)],
    ):
        done = subprocess.run(command, env=os.environ | {"PATH": _PATH}, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return folder
