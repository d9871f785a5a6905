"""Runs the client app: model in, weights to the app, result checked, encoded, and into the outbox.

Rules that hold here:

- All of it happens in one thread, the caller's (`Worker.run`) or the runner's own (`Worker.start`). The
  I/O thread hands over a job and goes on; training never delays a heartbeat.
- The app gets weights of its own, writable. The base stays mapped, and the delta is taken against that.
- Whatever an app raises ends its task and nothing else. It stands in the worker's own log, with its traceback
  where that shows debug messages; the broker is told the exception's type and place, because a message may quote
  the data. An app that wants to tell the broker more raises `ClientAppError`, whose text is passed on.
- An update that is not finite never leaves: it would be refused, or worse.
"""

import logging
import math
import queue
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Final

import msgspec
import numpy as np

from fedmq.fedcore import kernels, model_file, state_dict, wire
from fedmq.fedcore.errors import BudgetExhausted, ClientAppError, FedmqError, ModelError, TaskCancelled
from fedmq.fedcore.layout import Array, Flat, Layout

from .client import ClientApp, TaskContext, check_evaluation, check_fit, make_initial
from .entry import Entry
from .events import AppFailed, Event, ModelBroken, Stored
from .models import ModelCache
from .outbox import Outbox

log = logging.getLogger("fedmq.worker")

TILE: Final = 1 << 20
"""Elements encoded at a time; a multiple of every encoding's block."""


class Job(msgspec.Struct, frozen=True):
    """A task for the app; `cancelled` is set when its result is no longer wanted."""

    task: wire.Task
    federation: str
    cancelled: threading.Event


class Runner:
    """The client app's thread.

    Parameters
    ----------
    app
        The user's code.
    node
        This worker's settings, for `TaskContext.node`.
    models, outbox
        Where models are found, and results go.
    post
        Takes the events, from this thread.
    state
        A folder of the app's own, for `TaskContext.state`; None where nothing outlives the process.
    """

    def __init__(
        self,
        app: ClientApp,
        node: Mapping[str, str],
        models: ModelCache,
        outbox: Outbox,
        post: Callable[[Event], None],
        *,
        state: Path | None = None,
    ) -> None:
        self._state = state
        self._app = app
        self._node = dict(node)
        self._models = models
        self._outbox = outbox
        self._post = post
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._current: Job | None = None
        self._layout: Layout | None = None
        self._header = b""
        self._like: dict[str, Array] = {}
        """Names, shapes and dtypes of what the app is given; it may replace the arrays in its dict."""

    def submit(self, task: wire.Task, federation: str) -> None:
        """Hand a task over; called by the I/O thread, one at a time."""
        self._current = Job(task, federation, threading.Event())
        self._jobs.put(self._current)

    def cancel(self, task: bytes) -> None:
        """Tell the app that its task is no longer wanted."""
        job = self._current
        if job is not None and job.task.task == task:
            job.cancelled.set()

    def close(self) -> None:
        """Let `loop` return after the task at hand, which is told to end."""
        job = self._current
        if job is not None:
            job.cancelled.set()
        self._jobs.put(None)

    def loop(self) -> None:
        """Work until `close`."""
        while (job := self._jobs.get()) is not None:
            self._post(self._outcome(job))

    def _outcome(self, job: Job) -> Event:
        task = job.task
        try:
            entry = self._work(job)
        except _Broken as broken:
            return ModelBroken(task.task, broken.digest)
        except TaskCancelled as error:
            return AppFailed(task.task, f"cancelled: {error}")
        except FedmqError as error:
            expected = isinstance(error, ClientAppError | BudgetExhausted)
            log.error("task failed: %s", error, exc_info=not expected)
            return AppFailed(task.task, str(error))
        except (
            Exception,
            SystemExit,
        ) as error:  # the app's own, whatever it is: the task ends, the worker lives on
            about = {"kind": task.kind, "version": task.version}
            log.error("the client app raised %s: %s", _where(error), error, extra=about)
            log.debug("where it came from", exc_info=error)
            return AppFailed(task.task, _where(error))
        except (
            BaseException
        ):  # Ctrl-C in the caller's thread: the worker is told to stop by whoever catches it
            self._post(AppFailed(task.task, "interrupted"))
            raise
        if job.cancelled.is_set():
            self._outbox.delete(task.task)
            return AppFailed(task.task, "cancelled")
        return Stored(entry)

    def _work(self, job: Job) -> Entry:
        if job.task.kind == "init":
            return self._init(job)
        context = self._context(job)
        file = self._open(job.task)
        layout = self._layout_of(file)
        weights = state_dict.unpack(layout, file)
        if job.task.kind == "evaluate":
            result = check_evaluation(self._app.evaluate(weights, context))
            return self._outbox.put(_entry(job, result.examples, result.metrics))
        fit = check_fit(self._app.fit(weights, context), self._like)
        delta = state_dict.delta(layout, layout.flat(file), fit.weights)
        entry = _entry(job, fit.examples, fit.metrics)
        del weights, fit  # the delta is all that is needed: half the memory while it is encoded
        return self._outbox.put(entry, encoded(delta, job.task.encoding, job.task.seed))

    def _init(self, job: Job) -> Entry:
        model = model_file.from_arrays(make_initial(self._app, self._context(job)))
        return self._outbox.put(_entry(job, 0, {}), (memoryview(chunk).cast("B") for chunk in model.chunks))

    def _context(self, job: Job) -> TaskContext:
        return TaskContext(
            kind=job.task.kind,
            version=job.task.version,
            seed=job.task.seed,
            config=job.task.config,
            deadline_s=job.task.deadline_s,
            node=self._node,
            state=self._state,
            is_cancelled=job.cancelled.is_set,
        )

    def _open(self, task: wire.Task) -> memoryview:
        assert task.digest is not None
        try:
            return self._models.open(task.digest)
        except ModelError as error:
            log.warning("%s", error)
            raise _Broken(task.digest) from error

    def _layout_of(self, file: memoryview) -> Layout:
        """The file's layout. Every version of a model has the same header: it is parsed once."""
        if self._layout is None or bytes(file[: len(self._header)]) != self._header:
            self._layout = Layout.from_file_prefix(file, len(file))
            self._header = bytes(file[: self._layout.data_start])
            views = state_dict.unpack(self._layout, file, copy=False)
            self._like = {
                name: np.broadcast_to(view.dtype.type(0), view.shape) for name, view in views.items()
            }
        return self._layout


class _Broken(Exception):
    """A model file is not what its digest says."""

    def __init__(self, digest: bytes) -> None:
        super().__init__(digest.hex())
        self.digest = digest


def encoded(delta: Flat, encoding: str, seed: int) -> Iterator[bytes]:
    """The payload of a delta, tile by tile.

    Parameters
    ----------
    delta : ndarray of float32, shape (n,)
    encoding : str
        One of `fedmq.fedcore.codecs.ENCODINGS`.
    seed : int
        The task's; what ``i8`` rounds with comes from it, so that a run can be repeated.

    Raises
    ------
    ClientAppError
        When a value is not finite in this encoding.
    """
    key = _rounding_key(seed) if encoding == "i8" else None
    for start in range(0, delta.size, TILE):
        nonce = (start // TILE).to_bytes(12, "little")
        chunk = kernels.encode(delta[start : start + TILE], encoding, key=key, nonce=nonce)
        if not math.isfinite(kernels.sum_squares(chunk, encoding=encoding)):
            raise ClientAppError("non-finite update: the weights moved further than its encoding can say")
        yield chunk


def _rounding_key(seed: int) -> bytes:
    import hashlib  # whose OpenSSL takes 3 ms to load: only i8 pays for it

    return hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=32, person=b"fedmq rounding 1").digest()


def _entry(job: Job, examples: int, metrics: dict[str, float]) -> Entry:
    task = job.task
    encodings = {"fit": task.encoding, "init": "safetensors"}
    return Entry(
        task=task.task,
        kind=task.kind,
        federation=job.federation,
        base=task.version if task.kind != "init" else 0,
        examples=examples,
        metrics=metrics,
        layout=task.layout if task.kind != "init" else None,
        encoding=encodings.get(task.kind),
    )


def _where(error: BaseException) -> str:
    """An exception's type and place, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    last = frames[-1]
    return f"{type(error).__name__} in {last.name}, {PurePath(last.filename).name} line {last.lineno}"
