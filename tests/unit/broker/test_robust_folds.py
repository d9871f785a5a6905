"""Every combination rule on a frozen buffer on disk: what a plain computation gives, however it is folded."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.broker import frozen
from fedmq.broker.aggregator import PREVIOUS, fold
from fedmq.broker.fold_job import FoldJob
from fedmq.broker.frozen import SEGMENT, FrozenBuffer
from fedmq.broker.rows import AcceptRow
from fedmq.broker.store.versions import VersionStore
from fedmq.fedcore import config, kernels
from fedmq.fedcore.errors import StateError
from fedmq.fedcore.strategy.combination import Coordinates, Mixture
from fedmq.fedcore.strategy.staleness import Polynomial, dyadic

from .test_aggregator import SMALL_TILE, N, State, plan

K = 11
ENCODINGS = ("f32", "f16", "bf16", "i8", "topk")
TAUS = (0, 0, 3, 0, 1, 0, 0, 8, 0, 0, 2)
RNG = np.random.default_rng(5)
TRUTH = RNG.normal(size=N)
UPDATES = [(TRUTH + 0.5 * RNG.normal(size=N)).astype(np.float32) for _ in range(K - 2)]
UPDATES += [np.full(N, 40, np.float32), (-30 * TRUTH).astype(np.float32)]  # two that lie

RULES = [
    config.Median(),
    config.TrimmedMean(trim=0.2),
    config.Krum(byzantine=2),
    config.MultiKrum(byzantine=2),
    config.MultiKrum(byzantine=2, selected=3),
    config.Bulyan(byzantine=2),
    config.GeometricMedian(),
    config.CenteredClipping(radius=60.0, iterations=2),
    config.NormBound(max_norm=150.0),
]


def accept_all(state: State, *, inline: bool = False) -> list[AcceptRow]:
    """K updates in all encodings, spooled unless they are to be inline, some of them stale."""
    return [
        state.accept(
            x,
            encoding=encoding,
            inline=inline,
            tau=tau,
            weight=dyadic(Polynomial(0.5)(tau)),
            task=bytes([i * 37 % 251]),
        )
        for i, (x, encoding, tau) in enumerate(zip(UPDATES, itertools.cycle(ENCODINGS), TAUS, strict=False))
    ]


def scaled(state: State, rows: list[AcceptRow], *, rounded: bool = True) -> np.ndarray:
    """The vectors u, float64[K, N], in the order of task ids; mixtures add them as they were before rounding."""
    found = []
    for row in sorted(rows, key=lambda row: row.task):
        payload = row.inline if row.inline is not None else bytes(state.spool.payload(row.task))
        x = kernels.decode(payload, row.encoding, N)
        u = x.astype(np.float64) * row.weight
        found.append(u.astype(np.float32).astype(np.float64) if rounded else u)
    return np.array(found)


def expected(rule: Any, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The combined update, from whole vectors in memory, as the papers write it."""
    k = len(u)
    sq = np.array([[((a - b) ** 2).sum() for b in u] for a in u])

    def score(i: int, among: list[int], f: int) -> float:
        return float(sum(sorted(sq[i, j] for j in among if j != i)[: max(len(among) - f - 2, 1)]))

    match rule:
        case config.Median():
            return np.median(u, axis=0)
        case config.TrimmedMean(trim=trim):
            cut = int(trim * k)
            return np.sort(u, axis=0)[cut : k - cut].mean(axis=0)
        case config.Krum(byzantine=f):
            return u[min(range(k), key=lambda i: score(i, list(range(k)), f))]
        case config.MultiKrum(byzantine=f, selected=m):
            best = sorted(range(k), key=lambda i: score(i, list(range(k)), f))[: m or k - f - 2]
            return u[best].mean(axis=0)
        case config.Bulyan(byzantine=f):
            left, chosen = list(range(k)), []
            for _ in range(k - 2 * f):
                chosen.append(min(left, key=lambda i: score(i, left, f)))
                left.remove(chosen[-1])
            x = u[chosen]
            near = np.argsort(np.abs(x - np.median(x, axis=0)), axis=0)[: k - 4 * f]
            return np.take_along_axis(x, near, axis=0).mean(axis=0)
        case config.GeometricMedian(iterations=steps, smoothing=nu):
            d = u.mean(axis=0)
            for _ in range(steps):
                beta = 1 / np.maximum(nu, np.linalg.norm(u - d, axis=1))
                d = (beta[:, None] * u).sum(axis=0) / beta.sum()
            return d
        case config.CenteredClipping(radius=radius, iterations=steps):
            d = v
            for _ in range(steps):
                distance = np.linalg.norm(u - d, axis=1)
                d = d + ((u - d) * np.minimum(1, radius / distance)[:, None]).mean(axis=0)
            return d
    raise AssertionError(rule)


@pytest.fixture(params=["python", "native"])
def backend(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    try:
        using = kernels.use(request.param)
        using.__enter__()
    except ValueError:
        pytest.skip("no native kernels in this installation")
    yield kernels
    using.__exit__(None, None, None)


@pytest.mark.parametrize("rule", RULES[:-1], ids=lambda rule: rule.kind)
def test_a_fold_is_the_papers_computation(tmp_path: Path, rule: Any) -> None:
    """Of eleven updates in four encodings, some stale and two lying: numpy on whole vectors gives the same.

    To float32: d is rounded to it once, and where the rule is a function of coordinates, u is as well. What is summed
    lies on a grid of about 2⁻⁴⁰ of the longest update.
    """
    state = State(tmp_path, {"w": np.zeros(N, np.float32)})
    rows = accept_all(state)
    fold(plan(state, rows, rule=rule), state.versions, state.spool, tile=SMALL_TILE)
    by_coordinates = isinstance(rule, config.Median | config.TrimmedMean | config.Bulyan)
    d = expected(rule, scaled(state, rows, rounded=by_coordinates), np.zeros(N))
    np.testing.assert_allclose(state.flat(1), d, rtol=1e-7, atol=1e-9)
    if rule.kind in ("median", "krum"):  # one value, or the mean of two: nothing is left to round
        np.testing.assert_array_equal(state.flat(1), d.astype(np.float32))


def test_a_norm_bound_is_the_mean_of_clipped_updates(tmp_path: Path) -> None:
    """Σ wᵢ Δᵢ min(1, S / ‖Δᵢ‖) / Σ nᵢ: example counts weigh, and staleness scales, as in the mean."""
    state = State(tmp_path, {"w": np.zeros(N, np.float32)})
    rows = [
        state.accept(UPDATES[0], weight=30.0, examples=30),
        state.accept(UPDATES[-1], weight=5.0, examples=10, tau=3),
    ]
    job = plan(state, rows, rule=config.NormBound(max_norm=220.0), weighting="examples")
    fold(job, state.versions, state.spool)
    assert rows[0].norm < 220 < rows[1].norm
    d = (30 * UPDATES[0].astype(float) + 5 * UPDATES[-1].astype(float) * (220 / rows[1].norm)) / 40
    np.testing.assert_allclose(state.flat(1), d, rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("x", [5.0, 7.0, 11.0, 1.1e5, 3e9])
def test_rounding_up_to_a_bound_is_no_overflow(tmp_path: Path, x: float) -> None:
    """A bound just below a power of two: a clipped update may round to that power, and the grid has room for it."""
    state = State(tmp_path, {"w": np.zeros(1, np.float32)})
    rows = [
        state.accept(np.array([value], np.float32), task=bytes([i])) for i, value in enumerate((x, x + 3))
    ]
    fold(plan(state, rows, rule=config.NormBound(max_norm=np.nextafter(4, 0))), state.versions, state.spool)
    assert state.flat(1).tolist() == [4.0]


def test_an_infinite_bound_is_the_mean(tmp_path: Path) -> None:
    """Where nothing is clipped, the bytes are those of the mean."""
    states = [State(tmp_path / name) for name in ("bound", "mean")]
    rules = (config.NormBound(max_norm=1e30), config.Mean())
    files = [s.fold(plan(s, accept_all(s), rule=rule)) for s, rule in zip(states, rules, strict=True)]
    assert files[0] == files[1]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_neither_order_nor_tiles_nor_threads_nor_pieces_show(
    tmp_path: Path, rule: Any, backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows in another order, by other tiles, threads and pieces, inline, folded again: the same bytes."""
    state = State(tmp_path)
    rows = accept_all(state)
    job = plan(state, rows, rule=rule, optimizer=config.Momentum())
    reference = state.fold(job)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "versions").glob("*.f32")}
    assert ("v00000001.center.f32" in kept) == (rule.kind == "centered_clipping")

    def again(job: FoldJob, **options: Any) -> None:
        assert state.fold(job, **options) == reference
        for name, content in kept.items():
            assert (tmp_path / "versions" / name).read_bytes() == content

    assert plan(state, rows[::-1], rule=rule, optimizer=config.Momentum()) == job
    for threads, tile in ((1, SMALL_TILE), (2, 2 * SMALL_TILE)):
        again(msgspec.structs.replace(job, rows=job.rows[::-1], threads=threads), tile=tile)
    monkeypatch.setattr(frozen, "PIECE_VALUES", SEGMENT)
    again(job, tile=64 * SMALL_TILE)
    again(plan(state, accept_all(state, inline=True), rule=rule, optimizer=config.Momentum()))


def test_distances_are_the_same_sums_by_pieces_of_any_size(
    tmp_path: Path, backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segment after segment, from the first to the last: (a + b) + (c + d) would be other bits."""
    n = 7 * SEGMENT + 5
    state = State(tmp_path, {"w": np.zeros(n, np.float32)})
    rng = np.random.default_rng(2)
    rows = [
        state.accept(rng.normal(size=n).astype(np.float32), task=bytes([i]), weight=1 - i / 4)
        for i in range(3)
    ]
    buffer = FrozenBuffer(rows, state.spool, n)
    mixture = Mixture(weights=(1.0, 0.5, 0.25), denominator=2.0)
    found = set()
    for values in (1, 4 * SEGMENT, 6 * SEGMENT, 10 * SEGMENT, frozen.PIECE_VALUES):
        monkeypatch.setattr(frozen, "PIECE_VALUES", values)
        found.add((buffer.sq_distances().tobytes(), buffer.sq_distances_to(mixture).tobytes()))
    assert len(found) == 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_both_backends_fold_the_same_bytes(tmp_path: Path, rule: Any) -> None:
    """A broker that was restarted without its compiled kernels carries on exactly."""
    state = State(tmp_path)
    job = plan(state, accept_all(state), rule=rule)
    files = set()
    for name in ("python", "native"):
        try:
            with kernels.use(name):
                files.add(state.fold(job))
        except ValueError:
            pytest.skip("no native kernels in this installation")
    assert len(files) == 1


def test_centered_clipping_goes_on_from_the_last_combined_update(tmp_path: Path) -> None:
    """v is on disk beside its version, as an optimizer's state is: a new process finds it; older ones go."""
    state = State(tmp_path, {"w": np.zeros(N, np.float32)})
    rule, optimizer = config.CenteredClipping(radius=50.0), config.Sgd(lr=0.5)
    base, v = state.base, np.zeros(N)
    for x in UPDATES[:3]:
        versions = VersionStore(tmp_path / "versions", fsync=False)
        versions.recover(base.version)
        rows = [state.accept(x)]
        job = msgspec.structs.replace(plan(state, rows, rule=rule, optimizer=optimizer), base=base)
        base = fold(job, versions, state.spool, tile=SMALL_TILE).info
        v = expected(rule, scaled(state, rows), v).astype(np.float32).astype(np.float64)
        np.testing.assert_allclose(versions.state(base.version, PREVIOUS, N), v, rtol=2e-6, atol=1e-7)
    left = sorted(path.name for path in (tmp_path / "versions").glob("*.f32"))
    assert left == ["v00000002.center.f32", "v00000003.center.f32"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_liars_do_not_get_through(tmp_path: Path, rule: Any) -> None:
    """With two of eleven updates lying, every rule is closer to the truth than the mean is, by far."""
    truth = TRUTH * np.mean([dyadic(Polynomial(0.5)(tau)) for tau in TAUS])
    errors = []
    for each in (rule, config.Mean()):
        state = State(tmp_path / each.kind, {"w": np.zeros(N, np.float32)})
        fold(plan(state, accept_all(state), rule=each), state.versions, state.spool)
        errors.append(float(np.linalg.norm(state.flat(1) - truth)))
    assert errors[0] < errors[1] / 3


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.minimum > 1], ids=lambda rule: rule.kind)
def test_a_buffer_that_is_too_small_is_not_folded(tmp_path: Path, rule: Any) -> None:
    """Whatever the config promised: nothing is made of fewer updates than the rule needs."""
    state = State(tmp_path)
    rows = accept_all(state)[: rule.minimum - 1]
    with pytest.raises(StateError, match=f"too small for aggregate.rule, which needs {rule.minimum}"):
        fold(plan(state, rows, rule=rule), state.versions, state.spool)
    assert state.versions.versions() == (0,)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=3, max_size=9),
    st.lists(st.floats(0, 1e3), min_size=9, max_size=9).filter(lambda c: max(c[:3]) > 1e-3),
)
def test_distances_are_those_of_whole_vectors(
    tmp_path_factory: pytest.TempPathFactory, vectors: list[list[float]], weights: list[float]
) -> None:
    """Of all pairs, and to a mixture, for any vectors and weights."""
    state = State(tmp_path_factory.mktemp("state"), {"w": np.zeros(3, np.float32)})
    u = np.array(vectors)
    rows = [
        state.accept(np.array(x, np.float32), task=bytes([i]), inline=True) for i, x in enumerate(vectors)
    ]
    buffer = FrozenBuffer(rows, state.spool, 3)
    sq = ((u[:, None] - u) ** 2).sum(axis=2)
    np.testing.assert_allclose(buffer.sq_distances(), sq, rtol=1e-12)
    w = np.array([dyadic(x) if x else 0.0 for x in weights[: len(u)]])
    d = (w[:, None] * u).sum(axis=0) / w.sum()
    found = buffer.sq_distances_to(Mixture(weights=tuple(w.tolist()), denominator=float(w.sum())))
    scale = max(float(np.abs(u).max()), 1e-30)
    # d is rounded to float32: a distance is off by that, however short it is itself.
    np.testing.assert_allclose(
        np.sqrt(found), np.sqrt(((u - d) ** 2).sum(axis=1)), rtol=1e-6, atol=1e-6 * scale
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_a_model_without_floats_and_an_odd_one_fold(tmp_path: Path, rule: Any) -> None:
    """Nothing to combine is no error; neither is a single element."""
    for i, model in enumerate(({"i": np.arange(3)}, {"w": np.ones((), np.float32)})):
        state = State(tmp_path / str(i), model)
        one = np.ones(state.layout.n, np.float32)
        rows = [state.accept(one, inline=True, task=bytes([i])) for i in range(K)]
        fold(plan(state, rows, rule=rule), state.versions, state.spool)
        assert state.flat(1).tolist() == [2.0] * state.layout.n


def test_a_function_sees_the_rows_that_it_asked_for(tmp_path: Path) -> None:
    """In the order of task ids, scaled, piece by piece, and may overwrite them."""
    state = State(tmp_path, {"w": np.zeros(N, np.float32)})
    rows = accept_all(state)
    u = scaled(state, rows)
    out = np.empty(N, np.float32)

    def second(x: np.ndarray) -> np.ndarray:
        found = x[1].copy()
        x[:] = 0
        return found

    FrozenBuffer(rows, state.spool, N).combine(Coordinates(second, (4, 7)), None, 0, N, out)
    np.testing.assert_array_equal(out, u[7])
