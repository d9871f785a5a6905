"""A small federation, and a worker by hand: a socket that takes a task when its test says so, and answers it with
what its test says."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zmq

from fedmq.fedcore import model_file, wire

WAIT_S = 30.0


def settings(folder: Path, n: int = 100) -> dict[str, dict[str, Any]]:
    """What stands in the federation.toml of a broker that makes a version of every update of `n` floats."""
    model = model_file.from_arrays({"w": np.zeros(n, np.float32)})
    model_file.write_chunks(folder / "model.safetensors", model.chunks)
    return {
        "federation": {"bind": "tcp://127.0.0.1:*", "state": str(folder / "state")},
        "model": {"initial": str(folder / "model.safetensors")},
        "mode": {"kind": "async", "buffer": 1, "concurrency": 1},
        "evaluate": {"every": 0},
        "storage": {"durability": "os"},
    }


class Worker:
    """One worker; use `worker`."""

    def __init__(self, endpoint: str, name: str, n: int, tasks: tuple[bytes, ...]) -> None:
        self._n = n
        self._arrived: list[wire.Message] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        self.send(
            wire.Hello(
                protocol=1,
                name=name,
                instance=name.encode(),
                boot=b"b",
                kinds=("fit", "init"),
                free=int(not tasks),
                tasks=tasks,
            )
        )
        self.expect(wire.Welcome)

    def send(self, message: wire.Message, payload: wire.Frame | None = None) -> None:
        """Send a message."""
        self.send_frames(wire.encode(message, payload))

    def send_frames(self, frames: Sequence[wire.Frame]) -> None:
        """Send anything."""
        self._socket.send_multipart(list(frames))

    def expect(self, kind: type[wire.Message]) -> Any:
        """The next message of a kind; others wait until they are asked for."""
        while True:
            for message in self._arrived:
                if isinstance(message, kind):
                    self._arrived.remove(message)
                    return message
            assert self._socket.poll(int(WAIT_S * 1000)), f"no {kind.__name__} arrived, but {self._arrived}"
            self._arrived.append(wire.decode(self._socket.recv_multipart(), wire.TO_WORKER)[0])

    def task(self) -> wire.Task:
        """The next task."""
        task = self.expect(wire.Task)
        assert isinstance(task, wire.Task)
        return task

    def offer(self, task: wire.Task, value: float = 1.0, *, inline: bool = True) -> wire.Ack:
        """Finish a task with an update whose elements are all `value`, inline or in one PART; the answer."""
        payload = np.full(self._n, value, np.float32).tobytes()
        offer = wire.Offer(
            task=task.task,
            kind="fit",
            base=task.version,
            examples=1,
            layout=task.layout,
            encoding="f32",
            size=len(payload),
            digest=xxhash.xxh3_128_digest(payload),
        )
        self.send(offer, payload if inline else None)
        if not inline:
            self.expect(wire.Grant)
            self.send(wire.Part(task=task.task, offset=0), payload)
        ack = self.expect(wire.Ack)
        assert isinstance(ack, wire.Ack)
        return ack

    def fit(self, value: float = 1.0, *, inline: bool = True) -> wire.Ack:
        """Finish the next task."""
        return self.offer(self.task(), value, inline=inline)

    def close(self) -> None:
        self._context.destroy(linger=0)


@contextlib.contextmanager
def worker(
    endpoint: str, name: str = "w", *, n: int = 100, tasks: tuple[bytes, ...] = ()
) -> Iterator[Worker]:
    """A worker that has a session; its updates have `n` elements, and it says that it has `tasks` in hand."""
    made = Worker(endpoint, name, n, tasks)
    try:
        yield made
    finally:
        made.close()
