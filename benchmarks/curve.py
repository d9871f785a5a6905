"""What keys cost: ``python benchmarks/curve.py [--mib 256] [--rounds 5]``.

One worker fetches a model from a broker process as fast as it can, in blocks of 1 MiB with four in flight, over
loopback: in the clear, and with CURVE. The two take turns, so that what else the machine does falls on both; the
median of the rounds is printed. And what a handshake takes: connect, HELLO, WELCOME, one after another.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zmq

from fedmq.broker import auth
from fedmq.broker.keyring import KeyRing
from fedmq.fedcore import model_file, wire
from fedmq.fedcore.keys import Pair, write_pair

MIB = 1 << 20
FLIGHT = 4
HANDSHAKES = 50
HELLO = wire.Hello(protocol=1, name="bench", instance=b"i", boot=b"b", kinds=("none",), free=0)


class Site:
    """A broker process with a model, and a key to it where it has keys."""

    def __init__(self, folder: Path, mib: int, *, keyed: bool) -> None:
        folder.mkdir()
        model_file.write_chunks(
            folder / "model.safetensors",
            model_file.from_arrays({"w": np.zeros(mib * MIB // 4, np.float32)}).chunks,
        )
        security = ""
        self.server = ""
        self.pair: Pair | None = None
        if keyed:
            ring = KeyRing(folder / "keys")
            write_pair(ring.folder, "broker", auth.new_pair())
            self.server, self.pair = ring.public, auth.new_pair()
            ring.allow(self.pair.public, "bench")
            security = '[security]\nkeys = "keys"\n'
        (folder / "federation.toml").write_text(
            '[federation]\nbind = "tcp://127.0.0.1:*"\n[model]\ninitial = "model.safetensors"\n'
            f'[evaluate]\nevery = 0\n[storage]\ndurability = "os"\n{security}'
        )
        self._broker = subprocess.Popen(
            [sys.executable, "-m", "fedmq.cli.main", "broker", "federation.toml"],
            cwd=folder,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait(folder)
        except BaseException:
            self.close()
            raise

    def _wait(self, folder: Path) -> None:
        announced = folder / "state" / "endpoint"
        while not (announced.exists() and announced.read_text().endswith("\n")):
            if self._broker.poll() is not None:
                raise SystemExit(f"the broker ended with {self._broker.returncode}")
            time.sleep(0.02)
        self.endpoint = announced.read_text().strip()
        self.size = (folder / "model.safetensors").stat().st_size

    def connect(self, context: "zmq.Context[zmq.Socket[bytes]]") -> "zmq.Socket[bytes]":
        """A session."""
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        if self.pair is not None:
            dealer.setsockopt(zmq.CURVE_SERVERKEY, self.server.encode())
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, self.pair.public.encode())
            dealer.setsockopt(zmq.CURVE_SECRETKEY, self.pair.secret.encode())
        dealer.connect(self.endpoint)
        dealer.send_multipart(wire.encode(HELLO))
        dealer.recv_multipart()
        return dealer

    def fetch(self, dealer: "zmq.Socket[bytes]") -> float:
        """The whole model, block by block; the seconds that it took."""
        started = time.perf_counter()
        asked = done = 0
        while done < self.size:
            while asked < self.size and asked - done < FLIGHT * MIB:
                length = min(MIB, self.size - asked)
                dealer.send_multipart(wire.encode(wire.Fetch(version=0, offset=asked, length=length)))
                asked += length
            frames = dealer.recv_multipart(copy=False)
            if len(frames) == 3:
                done += len(frames[2])
        return time.perf_counter() - started

    def close(self) -> None:
        """End the broker."""
        self._broker.terminate()
        self._broker.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        sites = {}
        for name in ("plain", "CURVE"):
            sites[name] = site = Site(Path(folder) / name, asked.mib, keyed=name == "CURVE")
            stack.callback(site.close)
        dealers = {name: site.connect(context) for name, site in sites.items()}
        rates: dict[str, list[float]] = {name: [] for name in sites}
        for name in [*sites] * (asked.rounds + 1):
            rates[name].append(sites[name].size / sites[name].fetch(dealers[name]) / 1e6)
        for name, site in sites.items():
            times = []
            for _ in range(HANDSHAKES):
                started = time.perf_counter()
                site.connect(context).close()
                times.append(time.perf_counter() - started)
            rate = statistics.median(rates[name][1:])  # the first one fills the disk's cache
            print(f"{name:<6} {rate:6.0f} MB/s, a session in {statistics.median(times) * 1e3:.1f} ms")
    context.destroy(linger=0)


if __name__ == "__main__":
    main()
