"""Folding: exact, the same bytes however it is done, durable or not there, and in little memory."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.broker import frozen
from fedmq.broker.aggregator import fold
from fedmq.broker.fold_job import FoldJob, plan_fold
from fedmq.broker.rows import AcceptRow, VersionInfo
from fedmq.broker.store.spool import Spool
from fedmq.broker.store.versions import VersionStore, VersionWriter
from fedmq.fedcore import config, kernels, model_file
from fedmq.fedcore.codecs import payload_size
from fedmq.fedcore.errors import StateError
from fedmq.fedcore.privacy.mechanisms import NOISE_NONCE, RecordLevel, WorkerLevel
from fedmq.fedcore.state_dict import unpack

SMALL_TILE = 16 * 1024
N = 2 * SMALL_TILE + 1000 + 3
RNG = np.random.default_rng(11)
MODEL = {
    "steps": np.array(5),
    "w": RNG.normal(size=(SMALL_TILE + 500, 2)).astype(np.float32),
    "b": RNG.normal(size=3),
}
DELTAS = [RNG.normal(size=N).astype(np.float32) for _ in range(5)]
RECORD = RecordLevel(max_grad_norm=0.5, noise_multiplier=1.5, sampling_rate=0.1, divisor=64.0, max_batch=100)
MASTER = bytes(range(32))


class State:
    """A broker's state folder with version 0 in it."""

    def __init__(self, folder: Path, model: dict[str, Any] = MODEL) -> None:
        self.versions = VersionStore(folder / "versions", fsync=False)
        self.spool = Spool(folder / "spool", fsync=False)
        made = model_file.from_arrays(model)
        written = self.versions.write(0, made.chunks)
        self.layout = made.layout
        self.base = VersionInfo(
            version=0, digest=written.digest, size=written.size, layout=made.layout.digest, n=made.layout.n
        )

    def accept(
        self, x: np.ndarray, *, encoding: str = "f32", inline: bool = False, **fields: Any
    ) -> AcceptRow:
        """Put an update where it belongs and write its row."""
        payload = kernels.encode(x, encoding, key=bytes(32))
        digest = model_file.digest(payload)
        task = fields.pop("task", digest)
        if not inline:
            self.spool.open(task, len(payload), encoding)
            self.spool.write(task, 0, payload)
            self.spool.seal(task)
        values: dict[str, Any] = {
            "worker": "w",
            "base": 0,
            "buffer": 0,
            "tau": 0,
            "weight": 1.0,
            "examples": 1,
            "norm": math.sqrt(kernels.sum_squares(payload, encoding=encoding)),
        }
        return AcceptRow(
            task=task,
            encoding=encoding,
            size=len(payload),
            digest=digest,
            inline=payload if inline else None,
            **(values | fields),
        )

    def fold(self, job: FoldJob, **options: Any) -> bytes:
        """Fold and give the version's file, as it is on disk: the store may still map one that was replaced."""
        return self.versions.path(fold(job, self.versions, self.spool, **options).info.version).read_bytes()

    def flat(self, version: int) -> np.ndarray:
        return self.layout.flat(self.versions.file(version))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "versions").iterdir())


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path)


def plan(state: State, rows: Sequence[AcceptRow], **options: Any) -> FoldJob:
    return plan_fold(state.base, rows, **({"weighting": "uniform", "optimizer": config.Sgd()} | options))


@pytest.mark.parametrize("private", [False, True])
def test_more_payloads_than_may_be_mapped_together(
    state: State, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    """Groups of payloads make the bytes of one group; which ones stay mapped does not show."""
    rows = [
        state.accept(x, encoding=e) for x, e in zip(DELTAS, ("f32", "i8", "f32", "f16", "bf16"), strict=True)
    ]
    options: dict[str, Any] = {"mechanism": RECORD, "master_key": MASTER} if private else {}
    job = plan(state, rows, **options)
    whole = state.fold(job, tile=SMALL_TILE)
    for together in (1, 2, 3):
        monkeypatch.setattr(frozen, "TOGETHER", together)
        assert state.fold(job, tile=SMALL_TILE) == whole


def test_a_version_is_the_base_plus_the_mean(state: State) -> None:
    """w + Σ Δ / K, to the last bit of float32 that a float64 reference has; integers are unchanged."""
    rows = [state.accept(x) for x in DELTAS]
    folded = fold(plan(state, rows), state.versions, state.spool)
    mean = (sum(x.astype(np.float64) for x in DELTAS) / 5).astype(np.float32)
    expected = (state.flat(0).astype(np.float64) + mean).astype(np.float32)
    np.testing.assert_array_equal(state.flat(1), expected)
    assert (folded.updates, folded.examples, folded.denominator) == (5, 5, 5.0)
    assert folded.update_norm == pytest.approx(float(np.linalg.norm(mean.astype(np.float64))), rel=1e-12)
    assert unpack(state.layout, state.versions.file(1))["steps"] == 5


def test_what_is_made_is_a_model_file_like_the_one_before(state: State) -> None:
    """The next file differs in its floats only; its digest and size are those of its bytes."""
    folded = fold(plan(state, [state.accept(DELTAS[0])]), state.versions, state.spool)
    file = bytes(state.versions.file(1))
    assert file[: state.layout.data_start] == state.layout.header()
    assert folded.info == VersionInfo(
        version=1, digest=model_file.digest(file), size=len(file), layout=state.layout.digest, n=N
    )
    loaded = safetensors.numpy.load(file)
    assert loaded["w"].shape == MODEL["w"].shape
    assert loaded["steps"] == 5


def test_inline_and_spooled_payloads_of_any_encoding_fold_alike(state: State, tmp_path: Path) -> None:
    """Where a payload lies does not matter; each is decoded by its own encoding."""
    encodings = ["f32", "f16", "bf16", "i8", "topk"]
    spooled = [state.accept(x, encoding=e) for x, e in zip(DELTAS, encodings, strict=True)]
    inline = [state.accept(x, encoding=e, inline=True) for x, e in zip(DELTAS, encodings, strict=True)]
    file = state.fold(plan(state, spooled), tile=SMALL_TILE)
    assert State(tmp_path / "other").fold(plan(state, inline)) == file
    decoded = [kernels.decode(r.inline or b"", r.encoding, N).astype(np.float64) for r in inline]
    np.testing.assert_allclose(state.flat(1) - state.flat(0), sum(decoded) / 5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(range(5)), tile=st.sampled_from([1, 2, 64]), threads=st.sampled_from([None, 1, 2])
)
def test_the_same_rows_give_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], tile: int, threads: int | None
) -> None:
    """Order of arrival, tiles, threads and repetition do not show, with noise and momentum as well."""
    state = State(tmp_path_factory.mktemp("state"))
    rows = [state.accept(x, inline=True) for x in DELTAS]
    options: dict[str, Any] = {
        "optimizer": config.Momentum(lr=0.5),
        "mechanism": RECORD,
        "master_key": MASTER,
    }
    reference = state.fold(plan(state, rows, **options))
    assert plan(state, [rows[i] for i in order], **options) == plan(state, rows, **options)
    job = msgspec.structs.replace(
        plan(state, rows, threads=threads, **options), rows=tuple(rows[i] for i in order)
    )
    assert state.fold(job, tile=tile * SMALL_TILE) == reference


def test_weights_and_denominators_are_the_papers(state: State) -> None:
    """FedBuff divides by K, or by the sum of examples; staleness shrinks the step, and enlarges no other."""
    rows = [
        state.accept(DELTAS[0], weight=30.0, examples=30),
        state.accept(DELTAS[1], weight=5.0, examples=10, tau=3),
    ]
    by_examples = plan(state, rows, weighting="examples")
    assert by_examples.denominator == 40.0
    state.fold(by_examples)
    expected = (30 * DELTAS[0].astype(np.float64) + 5 * DELTAS[1]) / 40
    np.testing.assert_allclose(state.flat(1) - state.flat(0), expected, atol=1e-6)
    uniform = [msgspec.structs.replace(rows[0], weight=1.0), msgspec.structs.replace(rows[1], weight=0.5)]
    assert plan(state, uniform).denominator == 2.0


@given(
    st.lists(st.tuples(st.integers(1, 1 << 40), st.floats(0, 1e9)), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
)
def test_the_grid_comes_from_the_largest_row(rows: list[tuple[int, float]], random: Any) -> None:
    """F is as large as the largest weighted norm allows, whatever the order of the rows."""
    base = VersionInfo(version=0, digest=b"", size=0, layout=b"", n=1)
    made = [
        AcceptRow(
            task=bytes([i]),
            worker="w",
            base=0,
            buffer=0,
            tau=0,
            weight=weight / 2**20,
            examples=1,
            norm=norm,
            encoding="f32",
            size=4,
            digest=b"",
        )
        for i, (weight, norm) in enumerate(rows)
    ]
    job = plan_fold(base, made, weighting="uniform", optimizer=config.Sgd())
    random.shuffle(made)
    assert plan_fold(base, made, weighting="uniform", optimizer=config.Sgd()) == job
    bound = max(row.weight * row.norm for row in made)
    assert bound * 2.0**job.frac_bits < 2**51
    assert len(made) * bound * 2.0**job.frac_bits < 2**62
    if 0 < job.frac_bits < 100:
        more = job.frac_bits + 1
        assert bound * 2.0**more >= 2**51 or len(made) * bound * 2.0**more >= 2**62


def test_momentum_goes_on_from_the_state_on_disk(state: State, tmp_path: Path) -> None:
    """v = βv + d, w += ηv over three versions, with a new process in between; old state is dropped."""
    optimizer = config.Momentum(lr=0.5, beta=0.5)
    w, v = state.flat(0).copy(), np.zeros(N, np.float32)
    base = state.base
    for x in DELTAS[:3]:
        versions = VersionStore(tmp_path / "versions", fsync=False)
        versions.recover(base.version)
        job = plan_fold(base, [state.accept(x)], weighting="uniform", optimizer=optimizer)
        base = fold(job, versions, state.spool, tile=SMALL_TILE).info
        kernels.momentum_(w, v, x, lr=0.5, beta=0.5)
    np.testing.assert_array_equal(state.flat(3), w)
    np.testing.assert_array_equal(state.versions.state(3, "velocity", N), v)
    left = sorted(path.name for path in (tmp_path / "versions").glob("*.f32"))
    assert left == ["v00000002.velocity.f32", "v00000003.velocity.f32"]


@pytest.mark.parametrize(
    "optimizer",
    [config.Adagrad(), config.Adam(bias_correction=True), config.Yogi(), config.Fadas()],
    ids=lambda optimizer: optimizer.kind,
)
def test_every_optimizer_keeps_its_state_by_tiles(state: State, tmp_path: Path, optimizer: Any) -> None:
    """Two versions in tiles are the two versions in one piece, state included."""
    whole = State(tmp_path / "whole")
    for one, tile in ((state, SMALL_TILE), (whole, 1 << 20)):
        base = one.base
        for x in DELTAS[:2]:
            rows = [one.accept(x, inline=True, tau=9)]
            job = plan_fold(base, rows, weighting="uniform", optimizer=optimizer)
            base = fold(job, one.versions, one.spool, tile=tile).info
    assert bytes(state.versions.file(2)) == bytes(whole.versions.file(2))
    assert not np.array_equal(state.flat(1), state.flat(2))
    slots = {path.name.split(".")[1] for path in (tmp_path / "versions").glob("v00000002.*.f32")}
    assert slots
    for slot in slots:
        np.testing.assert_array_equal(state.versions.state(2, slot, N), whole.versions.state(2, slot, N))


def test_a_private_sum_is_clipped_noised_and_divided_by_a_constant(state: State) -> None:
    """(Σ clip(Δ) + N(0, σ²)) / D: what the mechanism says, and nothing that depends on data."""
    large = state.accept(DELTAS[0] * 10)
    small = state.accept(DELTAS[1] / 1000)
    job = plan(state, [large, small], mechanism=RECORD, master_key=MASTER)
    assert job.denominator == 64.0
    assert job.release is not None
    folded = fold(job, state.versions, state.spool, tile=SMALL_TILE)
    assert (folded.sigma, folded.noise_key) == (0.75, job.release.key)

    total = kernels.Accumulator(N, frac_bits=job.frac_bits)
    total.add(DELTAS[0] * 10, norm=large.norm, max_norm=50.0, truncate=True)
    total.add(DELTAS[1] / 1000, norm=small.norm, max_norm=50.0, truncate=True)
    total.add_noise(0.75, key=job.release.key, nonce=NOISE_NONCE)
    params = state.flat(0).copy()
    kernels.sgd_(params, total.mean(64.0), lr=1.0)
    np.testing.assert_array_equal(state.flat(1), params)
    noise = (state.flat(1) - state.flat(0)) * 64 - DELTAS[0] * 10 * (50 / large.norm) - DELTAS[1] / 1000
    assert np.std(noise) == pytest.approx(0.75, rel=0.02)


def test_a_private_update_that_is_not_finite_counts_as_zero(state: State) -> None:
    """It keeps its slot: the version is that of the other updates, with noise of its own."""
    bad = DELTAS[0].copy()
    bad[7] = np.nan
    row, other = state.accept(bad), state.accept(DELTAS[1] / 1000)
    assert math.isnan(row.norm)
    job = plan(state, [row, other], mechanism=RECORD, master_key=MASTER)
    with_bad = state.fold(job)
    without = state.fold(msgspec.structs.replace(job, rows=(other,)))
    assert with_bad == without
    alone = plan(state, [other], mechanism=RECORD, master_key=MASTER)
    assert job.release is not None
    assert alone.release is not None
    assert job.release.key != alone.release.key
    with pytest.raises(ValueError, match="norm is not finite"):
        plan(state, [row, other])


def test_an_empty_private_round_is_released_with_noise(state: State) -> None:
    """That nobody came must not show; without privacy there is no mean of nothing."""
    state.fold(plan(state, [], mechanism=RECORD, master_key=MASTER))
    assert np.std((state.flat(1) - state.flat(0)) * 64) == pytest.approx(0.75, rel=0.02)
    with pytest.raises(ValueError, match="the mean of no updates"):
        plan(state, [])


def test_the_grid_of_a_private_sum_is_public(state: State) -> None:
    """F depends on the mechanism's constants, not on norms, nor on how many of up to 1024 came."""
    rows = [state.accept(x * scale, inline=True) for x in DELTAS for scale in (1e-3, 1.0, 1e3)]
    grids = {plan(state, rows[:k], mechanism=RECORD, master_key=MASTER).frac_bits for k in range(len(rows))}
    assert grids == {45}
    assert 50.0 * 2.0**45 < 2**51 <= 50.0 * 2.0**46


def test_noise_keys_are_of_their_rows_and_version(state: State) -> None:
    """The same rows get the same noise again; another row, version or master key never does."""
    a, b = state.accept(DELTAS[0]), state.accept(DELTAS[1])
    later = msgspec.structs.replace(state.base, version=1)
    keys = [
        job.release.key
        for job in (
            plan(state, [a, b], mechanism=RECORD, master_key=MASTER),
            plan(state, [b, a], mechanism=RECORD, master_key=MASTER),
            plan(state, [a], mechanism=RECORD, master_key=MASTER),
            plan(state, [a, b], mechanism=RECORD, master_key=bytes(32)),
            plan_fold(
                later,
                [a, b],
                weighting="uniform",
                optimizer=config.Sgd(),
                mechanism=RECORD,
                master_key=MASTER,
            ),
        )
        if job.release is not None
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


def test_a_private_update_has_weight_one(state: State) -> None:
    """The mechanism's sensitivity is that of an unweighted sum."""
    with pytest.raises(ValueError, match="weight its mechanism does not admit"):
        plan(state, [state.accept(DELTAS[0], weight=2.0)], mechanism=RECORD, master_key=MASTER)


def test_a_private_sum_of_workers_is_clipped_weighted_noised_and_divided_by_k(state: State) -> None:
    """(Σ wᵢ clip_S(Δᵢ) + N(0, (z·S)²)) / K with w ≤ 1: noise and denominator are those of w = 1, always."""
    workers = WorkerLevel(clip_norm=2.0, noise_multiplier=1.5, buffer=4)
    large = state.accept(DELTAS[0] * 10, weight=0.5)
    small = state.accept(DELTAS[1] / 1000)
    compressed = state.accept(DELTAS[2] * 10, encoding="i8", weight=0.75)
    broken = state.accept(np.full(N, np.inf, np.float32))
    job = plan(state, [large, small, compressed, broken], mechanism=workers, master_key=MASTER)
    folded = fold(job, state.versions, state.spool, tile=SMALL_TILE)
    assert (folded.denominator, folded.sigma, folded.charged) == (4.0, 3.0, 1.5)
    decoded = kernels.decode(state.spool.payload(compressed.task), "i8", N).astype(np.float64)
    clipped = 0.5 * 2.0 * DELTAS[0] / np.linalg.norm(DELTAS[0]) + DELTAS[1] / 1000
    clipped = clipped + 0.75 * 2.0 * decoded / np.linalg.norm(decoded)
    noise = kernels.Accumulator(N, frac_bits=job.frac_bits)
    assert job.release is not None
    noise.add_noise(3.0, key=job.release.key, nonce=NOISE_NONCE)
    expected = (clipped + noise.mean(1.0)) / 4.0
    assert np.abs((state.flat(1) - state.flat(0)) - expected).max() < 1e-6
    assert np.std(noise.mean(1.0)) == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize("weight", [2.0, -0.5])
def test_no_worker_weighs_more_than_one(state: State, weight: float) -> None:
    """It could move the sum by more than the clip norm, which is what the noise hides."""
    workers = WorkerLevel(clip_norm=2.0, noise_multiplier=1.5, buffer=4)
    with pytest.raises(ValueError, match="weight its mechanism does not admit"):
        plan(state, [state.accept(DELTAS[0], weight=weight)], mechanism=workers, master_key=MASTER)


def test_a_crash_before_the_end_leaves_the_old_version_in_force(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the rename, the same job folds to the same bytes again."""
    job = plan(state, [state.accept(x) for x in DELTAS], optimizer=config.Momentum())

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    def close_only(writer: VersionWriter) -> None:
        for file in writer._files.values():
            file.close()

    with monkeypatch.context() as patch:
        patch.setattr(VersionWriter, "commit", die)
        patch.setattr(VersionWriter, "_discard", close_only)  # a dead process cleans nothing up
        with pytest.raises(Killed):
            fold(job, state.versions, state.spool, tile=SMALL_TILE)
    assert len(names(tmp_path)) == 3
    assert state.versions.recover(0) == (0,)
    assert names(tmp_path) == ["v00000000.safetensors"]
    first = state.fold(job)
    # Committed to disk, but killed before the journal knew: it is made again.
    assert state.versions.recover(0) == (0,)
    assert state.fold(job, tile=SMALL_TILE) == first


def test_what_is_missing_or_damaged_is_a_state_error(state: State, tmp_path: Path) -> None:
    """A payload that is gone or short, a base that is another model: nothing is made."""
    row = state.accept(DELTAS[0])
    job = plan(state, [row])
    os.truncate(state.spool.path(row.task), 4 * N - 4)
    with pytest.raises(StateError, match="is damaged"):
        fold(job, state.versions, state.spool, tile=SMALL_TILE)
    state.spool.delete([row.task])
    with pytest.raises(StateError, match="cannot be read"):
        fold(job, state.versions, state.spool)
    with pytest.raises(StateError, match="layout"):
        fold(
            msgspec.structs.replace(job, base=msgspec.structs.replace(job.base, n=5)),
            state.versions,
            state.spool,
        )
    assert names(tmp_path) == ["v00000000.safetensors"]


def test_a_version_that_would_not_be_finite_is_not_made(tmp_path: Path) -> None:
    """A federation that diverged stops with its last finite version, and says what to change."""
    state = State(tmp_path, {"w": np.full(3, 3e38, np.float32)})
    job = plan(state, [state.accept(np.full(3, 1e38, np.float32))])
    with pytest.raises(StateError, match=r"diverged; start again with a smaller optimizer\.lr"):
        fold(job, state.versions, state.spool)
    assert state.versions.versions() == (0,)


def test_a_model_without_floats_and_an_odd_one_fold(tmp_path: Path) -> None:
    """Nothing to average is no error; neither is a single element."""
    for i, model in enumerate(({"i": np.arange(3)}, {"w": np.ones((), np.float32)})):
        state = State(tmp_path / str(i), model)
        state.fold(plan(state, [state.accept(np.ones(state.layout.n, np.float32), inline=True)]))
        assert state.flat(1).tolist() == [2.0] * state.layout.n


PROGRAM = """
import json, re, sys, threading
from pathlib import Path
import numpy as np
from fedmq.broker.aggregator import fold
from fedmq.broker.fold_job import plan_fold
from fedmq.broker.rows import AcceptRow, VersionInfo
from fedmq.broker.store.spool import Spool
from fedmq.broker.store.versions import VersionStore
from fedmq.fedcore import config, model_file
from fedmq.fedcore.layout import Layout

folder, n, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
tables = {"aggregate": {"rule": json.loads(sys.argv[4])}, "mode": {"buffer": max(count, 3)}}
rule = config.parse(tables).aggregate.rule
versions, spool = VersionStore(folder / "versions", fsync=False), Spool(folder / "spool", fsync=False)
layout = Layout.plan([("w", "F32", (n,))])
with versions.writer(0) as writer:
    writer.model(layout.header())
    for start in range(0, n, 1 << 20):
        writer.model(bytes(4 * min(1 << 20, n - start)))
    written = writer.commit()
base = VersionInfo(version=0, digest=written.digest, size=written.size, layout=layout.digest, n=n)
block = np.ones(1 << 18, np.float32).tobytes()
rows = []
for i in range(count):
    task = bytes([i])
    spool.path(task).write_bytes(b"")
    with spool.path(task).open("wb") as file:
        for start in range(0, 4 * n, len(block)):
            file.write(block[: 4 * n - start])
    rows.append(AcceptRow(task=task, worker="w", base=0, buffer=0, tau=0, weight=1.0, examples=1, norm=n**0.5,
                          encoding="f32", size=4 * n, digest=b""))

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, anonymous())
before = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
job = plan_fold(base, rows, weighting="uniform", optimizer=config.Momentum(), rule=rule)
fold(job, versions, spool)
done.set()
watcher.join()
assert layout.flat(versions.file(1))[[0, -1]].tolist() == [1.0, 1.0]
print(max(peak, anonymous()) - before)
"""


@pytest.mark.parametrize(
    ("n", "count", "rule"),
    [
        (8 << 20, 4, "mean"),
        (3 << 20, 11, "median"),
        (3 << 20, 11, {"kind": "multi_krum", "byzantine": 2}),
        (3 << 20, 11, {"kind": "bulyan", "byzantine": 2}),
        (3 << 20, 11, {"kind": "centered_clipping", "radius": 1e9}),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else str(value),
)
def test_memory_depends_on_neither_model_nor_buffer(tmp_path: Path, n: int, count: int, rule: Any) -> None:
    """Folding updates of 128 MiB in files and more takes a few tiles of anonymous memory, by any rule."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(n), str(count), json.dumps(rule)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 60 << 10, run.stdout


def test_payload_sizes_of_tiles_add_up() -> None:
    """A tile's bytes start where the tile before it ends, in every encoding."""
    for encoding in ("f32", "f16", "bf16", "i8"):
        sizes = [payload_size(encoding, SMALL_TILE * i) for i in range(4)]
        assert sizes == [sizes[1] * i for i in range(4)]


def test_sparse_updates_fold_alike_whatever_the_tile(state: State) -> None:
    """A tile's part of a topk payload is found in it, inline or spooled; values that are not there are zeros."""
    few = [np.where(np.arange(N) % (7 + i) == 0, x, np.float32(0)) for i, x in enumerate(DELTAS)]
    spooled = [state.accept(x, encoding="topk") for x in few]
    inline = [state.accept(x, encoding="topk", inline=True) for x in few]
    decoded = [state.accept(kernels.decode(row.inline or b"", "topk", N)) for row in inline]
    files = {
        state.fold(plan(state, rows), tile=tile)
        for rows in (spooled, inline)
        for tile in (SMALL_TILE, 1 << 20)
    }
    assert files == {state.fold(plan(state, decoded))}
