"""The same no-op training in Flower, over its gRPC stream: `start_server` and `start_numpy_client`.

    python -m fedmq.cli.bench.flower server ADDRESS WORKERS ROUNDS FLOATS
    python -m fedmq.cli.bench.flower client ADDRESS

A server process and a process for each client, as users of this interface run them: FedAvg, no evaluation, an
update that is the model with one number changed. Of the two ways that Flower has to run a federation this is the
deprecated and by far the faster one. A round lasts from one aggregation's end to the next one's.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from fedmq.fedcore.errors import ProcessError

__all__ = ["FlowerMeasured", "is_installed", "main", "measure_flower"]

END_S: Final = 600.0
RETRIES_S: Final = 60.0


class FlowerMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; times in milliseconds, rates in a second."""

    version: str
    rounds: int
    round_ms_median: float
    updates_per_s: float


def is_installed() -> bool:
    """Whether there is a Flower to compare with."""
    return importlib.util.find_spec("flwr") is not None


def measure_flower(*, n: int, workers: int, rounds: int, folder: Path) -> FlowerMeasured:
    """Run a Flower server and its clients, and measure.

    Parameters
    ----------
    n : int
        Floats in the model.
    workers, rounds : int
    folder : Path
        Of the logs; exists.

    Raises
    ------
    ProcessError
        When the server ends with an error, or not at all.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-P", "-m", "fedmq.cli.bench.flower"]
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_LOG_LEVEL": "ERROR"}
    with contextlib.ExitStack() as stack, (folder / "flower.log").open("ab") as log:

        def start(*arguments: str) -> "subprocess.Popen[bytes]":
            process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
            stack.callback(_end, process)
            return process

        server = start("server", address, str(workers), str(rounds), str(n))
        for _ in range(workers):
            start("client", address)
        try:
            out, _ = server.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"Flower did not finish {rounds} rounds within {END_S:g} s") from None
        if server.returncode:
            raise ProcessError(
                f"Flower's server ended with exit code {server.returncode}: {folder / 'flower.log'}"
            )
    found = json.loads(out.splitlines()[-1])
    return summarise(found["version"], found["ended"], workers)


def summarise(version: str, ended: list[float], workers: int) -> FlowerMeasured:
    """From the times at which rounds ended, in seconds; the first tenth is not counted."""
    counted = ended[max(1, len(ended) // 10) :]
    took = [later - earlier for earlier, later in itertools.pairwise(counted)]
    return FlowerMeasured(
        version=version,
        rounds=len(took),
        round_ms_median=1e3 * statistics.median(took),
        updates_per_s=workers * len(took) / sum(took),
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()


def _serve(address: str, workers: int, rounds: int, n: int) -> None:
    import flwr
    import numpy as np

    ended: list[float] = []

    class Timed(flwr.server.strategy.FedAvg):
        def aggregate_fit(self, *arguments: Any) -> Any:
            result = super().aggregate_fit(*arguments)
            ended.append(time.monotonic())
            return result

    strategy = Timed(
        fraction_evaluate=0.0,
        min_fit_clients=workers,
        min_available_clients=workers,
        initial_parameters=flwr.common.ndarrays_to_parameters([np.zeros(n, np.float32)]),
    )
    flwr.server.start_server(
        server_address=address, config=flwr.server.ServerConfig(num_rounds=rounds), strategy=strategy
    )
    print(json.dumps({"version": flwr.__version__, "ended": ended}), flush=True)


def _train(address: str) -> None:
    import flwr

    class Client(flwr.client.NumPyClient):
        def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
            changed = parameters[0].copy()
            changed[0] += 1
            return [changed], 1, {}

    flwr.client.start_client(
        server_address=address, client=Client().to_client(), insecure=True, max_wait_time=RETRIES_S
    )


def main(arguments: list[str]) -> None:
    """One process of the comparison; see the module."""
    match arguments:
        case ["server", address, workers, rounds, n]:
            _serve(address, int(workers), int(rounds), int(n))
        case ["client", address]:
            _train(address)


if __name__ == "__main__":
    main(sys.argv[1:])
