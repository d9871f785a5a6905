"""What a benchmark ran on: the processor by name, its cores, free memory, and the libraries that took part."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["facts", "free_bytes", "one_line"]

LIBRARIES = ("numpy", "torch", "flwr", "opacus")


def facts() -> dict[str, Any]:
    """For the document: everything a reader needs to judge the figures."""
    from fedmq.fedcore import kernels

    return {
        "cpu": cpu(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "kernels": kernels.info(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def one_line(machine: dict[str, Any]) -> str:
    """For people: ``"2 cores of an AMD EPYC; kernels native (avx512); numpy 2.4, torch 2.13"``."""
    found = machine["kernels"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items() if version)
    cores = f"{machine['cpus']} core{'' if machine['cpus'] == 1 else 's'}"
    return f"{cores}, {machine['cpu']}; kernels: {found['backend']} ({found['isa']}); {libraries}"


def cpu(path: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (
        value.strip()
        for key, _, value in (one.partition(":") for one in lines)
        if key.strip() == "model name"
    )
    return next(names, platform.processor() or platform.machine())


def free_bytes(path: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that can be had without swapping; None where the system does not say."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = (one.split()[1] for one in lines if one.startswith("MemAvailable:"))
    found = next(kilobytes, None)
    return None if found is None else 1024 * int(found)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
