"""The runner: what an app returns becomes an update, and what it raises becomes a reason."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from fedmq.fedcore import kernels, model_file, wire
from fedmq.fedcore.encoded_model import encoded
from fedmq.fedcore.errors import BudgetExhausted, ClientAppError
from fedmq.fedcore.layout import Layout
from fedmq.worker.client import Evaluation, Fit, TaskContext, Weights
from fedmq.worker.events import AppFailed, Event, ModelBroken, Stored
from fedmq.worker.feedback import Feedback
from fedmq.worker.models import ModelCache
from fedmq.worker.outbox import Outbox
from fedmq.worker.runner import Runner

BASE: Weights = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "scalar": np.array(0.5, np.float64),
    "steps": np.array(7),
}


class App:
    """Does what a test says."""

    def __init__(self, fit: Callable[[Weights, TaskContext], object] | None = None) -> None:
        self._fit = fit

    def fit(self, weights: Weights, task: TaskContext) -> Any:
        assert self._fit is not None
        return self._fit(weights, task)

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        return Evaluation(4, {"loss": float(weights["w"].sum())})

    def initial(self) -> Weights:
        return BASE


class Bench:
    """A runner whose thread is the test's."""

    def __init__(self, folder: Path, app: App, weights: Weights = BASE) -> None:
        (folder / "m").mkdir()
        (folder / "o").mkdir()
        self.models = ModelCache(folder / "m")
        self.outbox = Outbox(folder / "o")
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.state = folder / "app"
        self.kept = folder / "f"
        self.kept.mkdir()
        self.runner = Runner(
            app,
            {"shard": "3"},
            self.models,
            self.outbox,
            self.events.put,
            feedback=Feedback(self.kept),
            state=self.state,
        )
        model = model_file.from_arrays(weights)
        self.layout: Layout = model.layout
        self.file = b"".join(model.chunks)
        self.digest = xxhash.xxh3_128_digest(self.file)
        self.models.append(self.digest, 0, memoryview(self.file))

    def task(self, kind: Any = "fit", **changes: Any) -> wire.Task:
        fields: dict[str, Any] = {
            "task": b"t",
            "seq": 1,
            "kind": kind,
            "version": 5,
            "size": len(self.file),
            "digest": self.digest,
            "layout": b"opaque",
            "seed": 2**64 - 1,
            "config": {"lr": 0.5},
        }
        return wire.Task(**{**fields, **changes})

    def run(self, task: wire.Task) -> Event:
        self.runner.submit(task, "fed")
        self.runner._jobs.put(None)
        self.runner.loop()
        return self.events.get_nowait()

    def files(self) -> int:
        return len(Outbox(self.outbox._path).load())


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    return lambda fit=None, **more: Bench(tmp_path, App(fit), **more)


def test_the_base_is_the_model_as_it_came(bench: Callable[..., Bench]) -> None:
    """Where that was halves, the app gets what they stand for, and the delta is taken from that."""
    seen: list[Weights] = []

    def fit(weights: Weights, task: TaskContext) -> Fit:
        seen.append({name: array.copy() for name, array in weights.items()})
        weights["w"] += np.float32(0.3)
        return Fit(weights, 10)

    weights = BASE | {"w": np.full((3, 4), 0.1, np.float32)}
    b = bench(fit, weights=weights)
    came = b"".join(bytes(chunk) for chunk in encoded(b.file, b.layout, "f16"))
    digest = xxhash.xxh3_128_digest(came)
    b.models.append(digest, 0, memoryview(came))
    stored = b.run(b.task(size=len(came), digest=digest, model="f16"))
    assert isinstance(stored, Stored)
    base = np.float32(np.float16(0.1))
    assert np.array_equal(seen[0]["w"], np.full((3, 4), base))
    assert seen[0]["steps"] == 7
    delta = kernels.decode(b.outbox.read(b"t", 0, stored.entry.size), "f32", 13)
    moved = (base + np.float32(0.3)) - base
    assert np.array_equal(np.sort(delta), np.array([0] + [moved] * 12, np.float32))


def test_a_fit_becomes_an_update_in_the_outbox(bench: Callable[..., Bench]) -> None:
    """Trained in place: the delta against the untouched base, what the app said, and the task's own echo."""

    def fit(weights: Weights, task: TaskContext) -> Fit:
        weights["w"] += 2
        weights["scalar"] -= 1
        weights["steps"] += 100
        return Fit(weights, 10, {"loss": 0.25})

    b = bench(fit)
    stored = b.run(b.task())
    assert isinstance(stored, Stored)
    entry = stored.entry
    assert (entry.task, entry.federation, entry.base, entry.layout) == (b"t", "fed", 5, b"opaque")
    assert (entry.examples, entry.metrics, entry.encoding) == (10, {"loss": 0.25}, "f32")
    payload = b.outbox.read(b"t", 0, entry.size)
    assert entry.digest == xxhash.xxh3_128_digest(payload)
    np.testing.assert_array_equal(kernels.decode(payload, "f32", b.layout.n), [2] * 12 + [-1])
    assert b.models.open(b.digest) == b.file


def test_the_context_says_what_the_task_is(bench: Callable[..., Bench]) -> None:
    """kind, version, seed, config, deadline, the worker's own node settings, and a folder of the app's."""
    seen: list[TaskContext] = []

    def fit(weights: Weights, task: TaskContext) -> Fit:
        seen.append(task)
        return Fit(weights, 1)

    b = bench(fit)
    b.run(b.task(deadline_s=9.0))
    (task,) = seen
    assert (task.kind, task.version, task.seed, task.deadline_s) == ("fit", 5, 2**64 - 1, 9.0)
    assert (task.config, task.node, task.cancelled) == ({"lr": 0.5}, {"shard": "3"}, False)
    assert task.state == b.state


def test_an_evaluation_has_metrics_and_no_bytes(bench: Callable[..., Bench]) -> None:
    """In the outbox as well, until it is acknowledged."""
    b = bench()
    stored = b.run(b.task("evaluate"))
    assert isinstance(stored, Stored)
    assert (stored.entry.kind, stored.entry.examples, stored.entry.metrics) == ("evaluate", 4, {"loss": 66.0})
    assert (stored.entry.size, stored.entry.digest, stored.entry.encoding) == (0, None, None)


def test_an_initial_model_is_a_safetensors_file(bench: Callable[..., Bench]) -> None:
    """As our own writer makes it, whatever the dtypes were."""
    b = bench()
    stored = b.run(wire.Task(task=b"i", seq=1, kind="init", version=0, size=0))
    assert isinstance(stored, Stored)
    entry = stored.entry
    assert (entry.encoding, entry.base, entry.layout) == ("safetensors", 0, None)
    assert b.outbox.read(b"i", 0, entry.size) == b.file


def test_an_initial_model_may_depend_on_its_task(bench: Callable[..., Bench]) -> None:
    """`initial(task)` gets the seed and the config, as `fit` does."""
    seen = []

    def initial(task: TaskContext) -> Weights:
        seen.append((task.kind, task.seed, task.config, task.node))
        return BASE

    b = bench()
    b.runner._app.initial = initial
    stored = b.run(wire.Task(task=b"i", seq=1, kind="init", version=0, size=0, seed=7, config={"width": 3}))
    assert isinstance(stored, Stored)
    assert seen == [("init", 7, {"width": 3}, {"shard": "3"})]


def test_an_exception_is_its_type_and_place_never_its_message(bench: Callable[..., Bench]) -> None:
    """A message may quote the data; it stays in this worker's log."""

    def fit(weights: Weights, task: TaskContext) -> Fit:
        raise KeyError("patient 1734")

    b = bench(fit)
    failed = b.run(b.task())
    assert isinstance(failed, AppFailed)
    assert failed.reason.startswith("KeyError in fit, test_runner.py line ")
    assert "1734" not in failed.reason
    assert b.files() == 0


@pytest.mark.parametrize(
    ("fit", "reason"),
    [
        (lambda w, t: None, "fit must return"),
        (lambda w, t: Fit({"w": w["w"]}, 1), "missing"),
        (lambda w, t: Fit(w, 0), "examples"),
        (lambda w, t: Fit({**w, "w": w["w"] * np.float32(np.nan)}, 1), "NaN"),
        (lambda w, t: exec("raise SystemExit(3)"), "SystemExit"),
        (lambda w, t: exec("raise MemoryError"), "MemoryError"),
    ],
)
def test_a_bad_result_is_a_reason(bench: Callable[..., Bench], fit: Any, reason: str) -> None:
    """What breaks the contract never reaches the outbox, and the runner lives on."""
    b = bench(fit)
    failed = b.run(b.task())
    assert isinstance(failed, AppFailed)
    assert reason in failed.reason
    assert b.files() == 0
    assert isinstance(b.run(b.task("evaluate")), Stored)


def test_an_app_that_explains_itself_is_quoted(bench: Callable[..., Bench]) -> None:
    """ClientAppError is how an app tells the broker why."""

    def fit(weights: Weights, task: TaskContext) -> Fit:
        raise ClientAppError("no data today")

    b = bench(fit)
    assert b.run(b.task()) == AppFailed(b"t", "no data today")


def test_a_spent_budget_is_the_reason_and_no_defect(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    """The broker is told `privacy_budget`; the log has one line without a traceback; other tasks go on."""

    def fit(weights: Weights, task: TaskContext) -> Fit:
        raise BudgetExhausted("privacy_budget: 10 steps are all that was planned")

    b = bench(fit)
    failed = b.run(b.task())
    assert isinstance(failed, AppFailed)
    assert failed.reason.startswith("privacy_budget")
    assert [record.exc_info for record in caplog.records] == [False]
    assert b.files() == 0
    assert isinstance(b.run(b.task("evaluate")), Stored)


@pytest.mark.parametrize(("encoding", "step"), [("f32", 3e38), ("f16", 1e5), ("bf16", 3e38), ("i8", 3e38)])
def test_an_update_beyond_its_encoding_is_not_sent(
    bench: Callable[..., Bench], encoding: str, step: float
) -> None:
    """Finite weights whose difference is not finite, or not as float16."""

    def fit(weights: Weights, task: TaskContext) -> Fit:
        weights["w"][:] = step
        return Fit(weights, 1)

    b = bench(fit, weights={"w": np.full(4, -step, np.float32)})
    failed = b.run(b.task(encoding=encoding))
    assert isinstance(failed, AppFailed)
    assert failed.reason.startswith("non-finite update")
    assert b.files() == 0


def kept(b: Bench) -> list[str]:
    """The files of what was left out."""
    return sorted(path.suffix for path in b.kept.iterdir())


def test_what_is_left_out_goes_with_the_next_update(bench: Callable[..., Bench]) -> None:
    """One value a time is sent, the largest of what has come together; in the end everything was."""
    step = np.array([8.0, 4.0, 2.0, 0.0], np.float32)
    b = bench(
        lambda w, t: Fit({"w": w["w"] + step * (t.version == 5)}, 1), weights={"w": np.zeros(4, np.float32)}
    )
    sent = []
    for version, task in enumerate((b"1", b"2", b"3", b"4"), 5):
        stored = b.run(b.task(task=task, version=version, encoding="topk", keep=1, feedback=True))
        assert isinstance(stored, Stored)
        assert stored.entry.encoding == "topk"
        sent.append(kernels.decode(b.outbox.read(task, 0, stored.entry.size), "topk", 4).tolist())
        assert kept(b) == [".left"]
    assert sent == [[8, 0, 0, 0], [0, 4, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]


def test_without_feedback_nothing_is_kept(bench: Callable[..., Bench]) -> None:
    """Nor where the encoding loses nothing."""
    b = bench(lambda w, t: Fit({"w": w["w"] + 1}, 1), weights={"w": np.zeros(4, np.float32)})
    for changes in ({"encoding": "topk", "keep": 1}, {"encoding": "f32", "feedback": True}):
        assert isinstance(b.run(b.task(**changes)), Stored)
        assert kept(b) == []


def test_an_update_that_was_not_stored_leaves_what_is_kept_alone(bench: Callable[..., Bench]) -> None:
    """Cancelled in its last moment, or not finite: the next update carries what it would have carried before."""
    b = bench(weights={"w": np.zeros(2, np.float32)})
    said = {"encoding": "topk", "keep": 1, "feedback": True}

    def cancelled(w: Weights, t: TaskContext) -> Fit:
        b.runner.cancel(b"t")
        return Fit({"w": w["w"] + 100}, 1)

    b.runner._app = App(lambda w, t: Fit({"w": np.array([2.0, 1.0], np.float32)}, 1))
    assert isinstance(b.run(b.task(task=b"1", **said)), Stored)
    b.runner._app = App(cancelled)
    assert b.run(b.task(**said)) == AppFailed(b"t", "cancelled")
    b.runner._app = App(lambda w, t: Fit({"w": np.array([1e30, 1.0], np.float32)}, 1))
    assert isinstance(b.run(b.task(task=b"2", **said)), AppFailed)
    b.runner._app = App(lambda w, t: Fit({"w": w["w"]}, 1))
    stored = b.run(b.task(task=b"3", **said))
    assert isinstance(stored, Stored)
    assert kernels.decode(b.outbox.read(b"3", 0, stored.entry.size), "topk", 2).tolist() == [0, 1]
    assert kept(b) == [".left"]


def test_a_cancelled_app_leaves_nothing(bench: Callable[..., Bench]) -> None:
    """`task.cancelled` turns true while it runs; whether it raises or returns, its result is dropped."""
    b = bench()
    started = threading.Event()

    def fit(weights: Weights, task: TaskContext) -> Fit:
        started.set()
        while not task.cancelled:
            pass
        task.check_cancelled()
        return Fit(weights, 1)

    def cancel_soon() -> None:
        started.wait(5)
        b.runner.cancel(b"t")

    def stubborn(weights: Weights, task: TaskContext) -> Fit:
        b.runner.cancel(b"t")
        return Fit(weights, 1)

    b.runner._app = App(fit)
    canceller = threading.Thread(target=cancel_soon)
    canceller.start()
    failed = b.run(b.task())
    canceller.join()
    assert isinstance(failed, AppFailed)
    assert failed.reason.startswith("cancelled")
    b.runner._app = App(stubborn)
    assert b.run(b.task()) == AppFailed(b"t", "cancelled")
    assert b.files() == 0


def test_a_broken_model_never_reaches_the_app(bench: Callable[..., Bench]) -> None:
    """Its file is read and compared before anything is trained from it."""
    b = bench(lambda w, t: pytest.fail("the app was called"))
    path = b.models._path / f"{b.digest.hex()}.safetensors"
    path.write_bytes(b.file[:-1] + b"\xff")
    assert b.run(b.task()) == ModelBroken(b"t", b.digest)
    path.unlink()
    assert b.run(b.task()) == ModelBroken(b"t", b.digest)


def test_a_file_that_is_no_model_is_a_reason(bench: Callable[..., Bench]) -> None:
    """Its digest is right, and its content is not a model of fedmq's."""
    b = bench()
    digest = xxhash.xxh3_128_digest(b"not a model")
    b.models.append(digest, 0, memoryview(b"not a model"))
    failed = b.run(b.task(digest=digest))
    assert isinstance(failed, AppFailed)
    assert "file" in failed.reason
