"""`fedmq info`: what runs here, for a bug report and to see which kernels one has."""

import importlib.metadata
import json
import os
import platform

import click

from fedmq import __version__

from .logs import log_options

OPTIONAL = {
    "broker": ("rich", "safetensors"),
    "torch": ("torch",),
    "sklearn": ("scikit-learn",),
    "privacy": ("dp-accounting",),
    "bench": ("matplotlib",),
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@log_options
def info(as_json: bool) -> None:
    """Show versions, the kernels' backend, and the platform.

    "kernels: python" means that fedmq was installed without a C++ compiler: the results are the same bits,
    only slower. FEDMQ_KERNELS=python chooses that on purpose.

    \b
    Example:
      fedmq info --json > report.json
    """
    facts = gather()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        click.echo(f"{key:<{width}}  {_shown(key, value)}")


def gather() -> dict[str, object]:
    """Every fact, as JSON knows it."""
    import zmq

    from fedmq.fedcore import kernels

    return {
        "fedmq": __version__,
        "kernels": dict(kernels.info()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "libzmq": zmq.zmq_version(),
        "curve": bool(zmq.has("curve")),
        "libraries": _versions(("numpy", "pyzmq", "msgpack", "msgspec", "xxhash", "click")),
        "extras": {extra: _installed(names) for extra, names in OPTIONAL.items()},
    }


def _shown(key: str, value: object) -> object:
    """One fact on one line."""
    if not isinstance(value, dict):
        return value
    if key != "kernels":
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    why = f": {value['reason']}" if value["reason"] else ""
    return f"{value['backend']} ({value['isa']}, {value['threads']} threads, {value['compiler']}){why}"


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}


def _installed(names: tuple[str, ...]) -> str:
    """The versions of an extra's libraries, or what installs them."""
    try:
        return " ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
