"""Runs the client app: model in, weights to the app, result checked, encoded, and into the outbox.

Rules that hold here:

- All of it happens in one thread, the caller's (`Worker.run`) or the runner's own (`Worker.start`). The
  I/O thread hands over a job and goes on; training never delays a heartbeat.
- The app gets weights of its own, writable: pages of the mapped model that are copied when they are written. The
  base stays mapped, and the delta is taken against that.
- Whatever an app raises ends its task and nothing else. It stands in the worker's own log, with its traceback
  where that shows debug messages; the broker is told the exception's type and place, because a message may quote
  the data. An app that wants to tell the broker more raises `ClientAppError`, whose text is passed on.
- An update that is not finite never leaves: it would be refused, or worse.
"""

import logging
import queue
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath

import msgspec
import numpy as np

from fedmq.fedcore import model_file, state_dict, wire
from fedmq.fedcore.errors import (
    BudgetExhausted,
    ClientAppError,
    FedmqError,
    ModelError,
    StateError,
    TaskCancelled,
)
from fedmq.fedcore.layout import Array, Flat, Layout

from .client import ClientApp, TaskContext, check_evaluation, check_fit, make_initial
from .compression import encoded
from .entry import Entry
from .events import AppFailed, Event, ModelBroken, Stored
from .feedback import Feedback
from .models import ModelCache
from .outbox import Outbox

log = logging.getLogger("fedmq.worker")


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
    feedback
        Where what encodings leave out is kept.
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
        feedback: Feedback,
        state: Path | None = None,
    ) -> None:
        self._feedback = feedback
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
            self._feedback.discard()
            return AppFailed(task.task, "cancelled")
        try:
            self._feedback.commit()
        except StateError as error:
            self._outbox.delete(task.task)
            log.error("task failed: %s", error)
            return AppFailed(task.task, str(error))
        return Stored(entry)

    def _work(self, job: Job) -> Entry:
        if job.task.kind == "init":
            return self._init(job)
        context = self._context(job)
        file = self._open(job.task)
        layout = self._layout_of(file)
        weights = state_dict.unpack(layout, self._writable(job.task), copy=False)
        if job.task.kind == "evaluate":
            result = check_evaluation(self._app.evaluate(weights, context))
            return self._outbox.put(_entry(job, result.examples, result.metrics))
        fit = check_fit(self._app.fit(weights, context), self._like)
        delta = self._delta(job.task, state_dict.Change(layout, layout.flat(file), fit.weights))
        entry = _entry(job, fit.examples, fit.metrics)
        del weights, fit  # where the delta is computed already, it is all that is needed
        try:
            return self._outbox.put(entry, self._payload(job, delta))
        except BaseException:
            self._feedback.discard()
            raise

    def _delta(self, task: wire.Task, change: state_dict.Change) -> Flat | state_dict.Change:
        """As one vector where an encoding looks at it more than once, or feedback is added to it."""
        return change[:] if task.encoding == "topk" or _feeds_back(task) else change

    def _payload(self, job: Job, delta: Flat | state_dict.Change) -> Iterator[bytes | memoryview]:
        """The delta's bytes, tile by tile; with feedback, those of what earlier ones left out as well."""
        task = job.task
        if isinstance(delta, state_dict.Change) or not _feeds_back(task):
            yield from encoded(delta, task.encoding, task.seed, keep=task.keep)
            return
        draft = self._feedback.begin(task.task, job.federation, task.layout or b"", task.version, delta)
        yield from encoded(delta, task.encoding, task.seed, keep=task.keep, left_out=draft.write)
        draft.finish()  # before the outbox makes an entry of what it got

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
        return self._of_cache(task, self._models.open)

    def _writable(self, task: wire.Task) -> memoryview:
        return self._of_cache(task, self._models.writable)

    def _of_cache(self, task: wire.Task, get: Callable[[bytes, str], memoryview]) -> memoryview:
        assert task.digest is not None
        try:
            return get(task.digest, task.model or "f32")
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


def _feeds_back(task: wire.Task) -> bool:
    return bool(task.feedback) and task.encoding != "f32"  # which leaves nothing out


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
