"""How much one bad worker slows the others: their updates a second beside each kind of flood, over those alone.

    python -m tests.hostile.slowdown                      # all attacks, in the checkout's root
    python -m tests.hostile.slowdown beat offer --rounds 5 --delay 0

A broker process and four honest worker processes, each with a fit of `--delay` seconds, run the whole time. A round
measures them alone, then beside an attacker, alone again, beside the next one, and so on; a ratio is that of one
attack's rate to the mean of the two rates around it. Printed is the median over the rounds.

The attacker shares the machine, and what it takes of the processor slows the others as well, whatever the broker
does. So it runs at nice 19, and `spin` is an attacker that only burns a processor, at nice 19 too: its row is what
the machine costs. Each attacker floods as fast as it can, connects again as soon as it is cut, and keeps its name.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from fedmq.fedcore import wire

from ..integration.federation import Federation, Tables, wait_for, write_model
from .attackers import EMPTY_MORE, Raw, connect, message

HONEST = 4
N = 1000
ATTACKS = (
    "spin", "stranger", "malformed", "hello", "names", "beat", "fetch", "offer", "inline", "part", "unread",
    "more", "greeting",
)  # fmt: skip


def header(kind: type[wire.Message], fields: dict[str, object], *payload: bytes) -> bytes:
    """One message as it stands on the wire, whatever stands in it."""
    return message(wire.MAGIC + bytes([kind.code]), msgpack.packb(fields), *payload)


def hello(name: str) -> bytes:
    """A HELLO that is in order."""
    fields = {"protocol": 1, "name": name, "instance": name.encode(), "boot": b"b", "free": 0}
    return header(wire.Hello, fields)


def flood_of(attack: str) -> bytes:
    """What an attack sends over and over, once it has said HELLO."""
    offer = {
        "task": bytes(37),
        "kind": "fit",
        "base": 0,
        "layout": b"l" * 16,
        "encoding": "f32",
        "size": 4 * N,
        "digest": bytes(16),
        "examples": 1,
    }
    match attack:
        case "stranger" | "beat" | "unread":
            return header(wire.Beat, {"tasks": [], "outbox": [], "free": 0}) * 500
        case "malformed":
            return message(b"FQ\x01\x04", b"\xc1") * 500
        case "hello":
            return hello("mallory") * 500
        case "fetch":
            return header(wire.Fetch, {"version": 0, "offset": 0, "length": 1}) * 500
        case "offer":
            return header(wire.Offer, offer) * 500
        case "inline":
            return header(wire.Offer, offer, bytes(4 * N)) * 50
        case "part":
            return header(wire.Part, {"task": bytes(37), "offset": 0}, bytes(1 << 20))
        case "more":
            return EMPTY_MORE * 50_000
    raise ValueError(attack)


def attack(kind: str, endpoint: str) -> None:
    """Do harm until the parent ends this process."""
    os.nice(19)
    if kind == "spin":
        while True:
            pass
    number = 0
    streams = []
    while True:
        number += 1
        with contextlib.suppress(OSError):
            if kind == "greeting":
                streams.append(connect(endpoint))
                if len(streams) == 800:
                    for stream in streams:
                        stream.close()
                    streams.clear()
                continue
            if kind == "names":
                with Raw(endpoint) as raw:
                    raw.send(b"".join(hello(f"m{os.getpid()}-{number}-{i}") for i in range(500)))
                    raw.is_cut(0.2)
                continue
            data = flood_of(kind)
            with Raw(endpoint) as raw:
                raw.patience(0.5)
                if kind not in ("stranger", "malformed"):
                    raw.send(hello("mallory"))
                while True:
                    raw.send(data)
                    if kind != "unread":
                        raw.drain()


class Bench:
    """A broker with honest workers, whose updates are counted."""

    def __init__(self, federation: Federation, seconds: float) -> None:
        self._federation = federation
        self._seconds = seconds

    def status(self) -> dict[str, Any]:
        """What the broker says."""
        return self._federation.status()

    def accepted(self) -> int:
        """Updates of honest workers so far."""
        workers = self.status()["workers"]
        return sum(worker["updates"] for worker in workers if worker["name"].startswith("w"))

    def rate(self) -> float:
        """Their updates a second, from now on for a while."""
        before, since = self.accepted(), time.perf_counter()
        time.sleep(self._seconds)
        return (self.accepted() - before) / (time.perf_counter() - since)

    def beside(self, kind: str) -> float:
        """The same, beside an attacker that has had a moment to begin."""
        command = [
            sys.executable,
            "-m",
            "tests.hostile.slowdown",
            "--attack",
            kind,
            self._federation.endpoint,
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as attacker:
            try:
                time.sleep(1.0)
                assert attacker.poll() is None, f"the attacker {kind} has ended"
                return self.rate()
            finally:
                attacker.kill()


@contextlib.contextmanager
def bench(delay: float, seconds: float) -> Iterator[Bench]:
    """Start the broker and its workers, and wait until all of them are at work."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "zeros.safetensors", {"w": np.zeros(N, np.float32)})
        tables: Tables = {
            "model": {"initial": "zeros.safetensors"},
            "mode": {"kind": "async", "buffer": 16},
            "network": {"beat_s": 10.0, "lease_s": 35.0},
            "storage": {"keep": 3},
        }
        with Federation(Path(folder), tables) as federation:
            federation.start_broker()
            for number in range(HONEST):
                federation.start_worker(f"w{number}", "tiny:Still", delay=delay)
            found = Bench(federation, seconds)
            wait_for("all are at work", lambda: found.accepted() > 20 * HONEST)
            yield found


def run(attacks: list[str], rounds: int, delay: float, seconds: float, say: Callable[[str], None]) -> None:
    """Measure and print."""
    ratios: dict[str, list[float]] = {kind: [] for kind in attacks}
    rates = []
    with bench(delay, seconds) as found:
        for _ in range(rounds):
            before = found.rate()
            for kind in attacks:
                beside = found.beside(kind)
                time.sleep(1.0)
                after = found.rate()
                ratios[kind].append(2 * beside / (before + after))
                before = after
                rates.append(after)
        status = found.status()
    say(f"alone: {statistics.median(rates):.0f} updates/s, from {min(rates):.0f} to {max(rates):.0f}")
    for kind, values in ratios.items():
        say(f"{kind:10} {statistics.median(values):5.2f}   {' '.join(f'{value:.2f}' for value in values)}")
    memory = status["rss_anon_bytes"] / 1e6
    say(f"memory {memory:.0f} MB, cuts {status['cuts']}, rebinds {status['rebinds']}, {status['updates']}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("attacks", nargs="*", help=f"some of {', '.join(ATTACKS)}; all of them by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds of a fit")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each rate is measured")
    parser.add_argument("--attack", nargs=2, metavar=("KIND", "ENDPOINT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        attack(*options.attack)
    unknown = set(options.attacks) - set(ATTACKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    run(options.attacks or list(ATTACKS), options.rounds, options.delay, options.seconds, print)


if __name__ == "__main__":
    main()
