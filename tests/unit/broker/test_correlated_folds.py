"""Correlated noise as the fold makes it: that of the matrices, the same bits however it is done, and less in sum."""

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from fedmq.broker.aggregator import fold
from fedmq.broker.events import Fold, Folded
from fedmq.broker.fold_job import FoldJob, plan_fold
from fedmq.broker.rows import AcceptRow, FreezeRow, VersionInfo, VersionRow
from fedmq.broker.store.journal import Journal
from fedmq.broker.store.spool import Spool
from fedmq.broker.store.versions import VersionStore
from fedmq.broker.threads import Folder
from fedmq.fedcore import config, kernels, model_file
from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.kernels.reference_noise import normals
from fedmq.fedcore.privacy.accounting import gaussian_noise
from fedmq.fedcore.privacy.correlated import Bisr, Participation
from fedmq.fedcore.privacy.correlated_level import CorrelatedWorkerLevel
from fedmq.fedcore.privacy.mechanisms import NOISE_NONCE, Mechanism, WorkerLevel

F32 = NDArray[np.float32]
SMALL_TILE = 16 * 1024
N = 2 * SMALL_TILE + 1003
VERSIONS, P, K, CLIP = 6, 4, 2, 0.5
NOISE = Bisr(
    bandwidth=P,
    noise_multiplier=1.5,
    participation=Participation(versions=VERSIONS, most=3, separation=2),
)
MECHANISM = CorrelatedWorkerLevel(CLIP, K, NOISE)
MASTER = bytes(range(32))


class State:
    """Versions that are folded one onto the other, with the keys of their noise, the last one's first."""

    def __init__(self, folder: Path, n: int = N) -> None:
        self.versions = VersionStore(folder / "versions", fsync=False)
        self.spool = Spool(folder / "spool", fsync=False)
        made = model_file.from_arrays({"w": np.zeros(n, np.float32)})
        written = self.versions.write(0, made.chunks)
        self.layout = made.layout
        self.base = VersionInfo(
            version=0, digest=written.digest, size=written.size, layout=made.layout.digest, n=n
        )
        self.keys: list[bytes] = []

    def plan(self, rows: Sequence[AcceptRow], used: Mechanism = MECHANISM) -> FoldJob:
        return plan_fold(
            self.base,
            rows,
            weighting="uniform",
            optimizer=config.Sgd(),
            mechanism=used,
            master_key=MASTER,
            earlier=self.keys,
        )

    def release(
        self, rows: Sequence[AcceptRow], used: Mechanism = MECHANISM, tile: int = SMALL_TILE
    ) -> Folded:
        """The next version, on which the one after it is folded."""
        job = self.plan(rows, used)
        made = fold(job, self.versions, self.spool, tile=tile)
        assert made.noise_key is not None
        self.base, self.keys = made.info, [made.noise_key, *self.keys]
        return made

    def flat(self, version: int) -> F32:
        return self.layout.flat(self.versions.file(version))


def update(version: int, i: int, n: int = N) -> F32:
    return np.random.default_rng((version, i)).standard_normal(n, dtype=np.float32)


def row(version: int, i: int, x: F32) -> AcceptRow:
    payload = x.tobytes()
    return AcceptRow(
        task=b"%d/%d" % (version, i),
        worker=f"w{i}",
        base=version - 1,
        buffer=version - 1,
        tau=0,
        weight=1.0,
        examples=1,
        norm=math.sqrt(kernels.sum_squares(payload)),
        encoding="f32",
        size=len(payload),
        digest=model_file.digest(payload),
        inline=payload,
    )


def rows(version: int, n: int = N) -> list[AcceptRow]:
    return [row(version, i, update(version, i, n)) for i in range(K)]


def stream(key: bytes, n: int) -> NDArray[np.float64]:
    """Z of one version over σ, from the numpy definition of the kernels."""
    return np.concatenate([values for _, values in normals(key, NOISE_NONCE, 0, n)])


def test_versions_are_the_sums_and_the_inverse_of_c_times_z(tmp_path: Path) -> None:
    """An independent construction: each Z drawn by its key, mixed by the dense matrix, rounded on the grid."""
    state = State(tmp_path)
    made = [state.release(rows(version)) for version in range(1, VERSIONS + 1)]
    keys = [folded.noise_key for folded in made]
    assert len(set(keys)) == VERSIONS
    z = np.stack([stream(key or b"", N) for key in keys])
    inverse = np.zeros((VERSIONS, VERSIONS))
    for t in range(VERSIONS):
        for j in range(min(P, t + 1)):
            inverse[t, t - j] = NOISE.coefficients[j]
    sigma = 1.5 * NOISE.sensitivity * CLIP
    expected = np.zeros(N, np.float32)
    for t, folded in enumerate(made):
        assert folded.sigma == sigma
        assert folded.frac_bits is not None
        unit = 2.0**folded.frac_bits
        clipped = np.zeros(N, np.int64)
        for x in (update(t + 1, i) for i in range(K)):
            scale = CLIP / (math.sqrt(kernels.sum_squares(x)) * (1 + 2.0**-32))
            clipped += np.trunc(x.astype(np.float64) * (scale * unit)).astype(np.int64)
        terms = [np.rint(z[i] * (inverse[t, i] * sigma * unit)) for i in range(t + 1) if inverse[t, i]]
        dense = (inverse[t] @ z) * sigma * unit
        assert np.abs(sum(terms) - dense).max() <= P / 2 + 1e-9 * np.abs(dense).max()
        total = clipped + sum(term.astype(np.int64) for term in terms)
        d = (total.astype(np.float64) / (K * unit)).astype(np.float32)
        expected = (expected.astype(np.float64) + d).astype(np.float32)
        np.testing.assert_array_equal(state.flat(t + 1), expected)


def test_tiles_threads_and_backends_give_the_same_bits(tmp_path: Path) -> None:
    """A stream that is taken back is drawn by position, in whatever pieces it was added."""
    digests = set()
    for i, (tile, threads, backend) in enumerate(
        ((SMALL_TILE, None, None), (1 << 19, 1, None), (2 * SMALL_TILE, 3, None), (1 << 19, None, "python"))
    ):
        state = State(tmp_path / str(i))
        with kernels.use(backend or kernels.backend):
            for version in range(1, VERSIONS + 1):
                job = msgspec.structs.replace(state.plan(rows(version)), threads=threads)
                made = fold(job, state.versions, state.spool, tile=tile)
                assert made.noise_key is not None
                state.base, state.keys = made.info, [made.noise_key, *state.keys]
        digests.add(state.base.digest)
    assert len(digests) == 1


def test_killed_anywhere_a_version_is_folded_again_to_the_same_bits(tmp_path: Path) -> None:
    """The aggregation thread has the earlier keys from the journal: it names a version before the next is folded."""
    state = State(tmp_path)
    settings = config.Config(
        model=config.Model(initial="app:initial"),
        mode=config.AsyncMode(buffer=K, one_per_worker=True),
        aggregate=config.Aggregate(weight="uniform"),
        evaluate=config.Evaluate(fraction=0.0),
        privacy=config.WorkerPrivacy(
            epsilon=8.0,
            delta=1e-5,
            clip_norm=CLIP,
            max_participations=3,
            correlated=config.Correlated(versions=VERSIONS, min_separation=2, bandwidth=P),
        ),
    )
    path = tmp_path / "journal.db"
    with_noise: list[VersionRow] = [VersionRow(info=state.base)]

    def folded(journal: Journal, buffer: list[AcceptRow]) -> Folded:
        work = Folder(settings, journal, state.versions, state.spool, MECHANISM, MASTER)
        bare = tuple(msgspec.structs.replace(r, inline=b"") for r in buffer)
        (made,) = work(deque([Fold(state.base.version, state.base, bare)]))
        assert isinstance(made, Folded)
        return made

    for version in range(1, VERSIONS + 1):
        buffer = rows(version)
        journal = Journal.open(path, "os")
        journal.apply([with_noise[-1], *buffer, FreezeRow(buffer=version - 1, reason="full")])
        first = folded(journal, buffer)
        journal.close()  # a kill here: the version's row was never written
        journal = Journal.open(path, "os")
        again = folded(journal, buffer[::-1])
        journal.close()
        assert (again.info, again.noise_key) == (first.info, first.noise_key)
        state.base = first.info
        with_noise.append(VersionRow(info=first.info, noise_key=first.noise_key, sigma=first.sigma))
    assert np.isfinite(state.flat(VERSIONS)).all()


def test_a_key_binds_the_noise_that_it_takes_back(tmp_path: Path) -> None:
    """From a backup an earlier version may come out otherwise; the same rows then get another Z.

    With the same Z_t, (first − second) of version t would be c₁ (Z_{t−1} − Z'_{t−1}), exactly, and that of version
    t − 1 without its noise: two sums of updates, told apart to the last bit.
    """
    state = State(tmp_path, 8)
    state.release(rows(1, 8))
    once = state.plan(rows(2, 8)).release
    before = state.keys
    state.keys = [bytes(32)]
    other = state.plan(rows(2, 8)).release
    state.keys = before
    again = state.plan(rows(2, 8)[::-1]).release
    assert once is not None
    assert other is not None
    assert once.key != other.key
    assert once == again


def test_no_version_is_made_that_is_not_planned_for(tmp_path: Path) -> None:
    """Nor one whose earlier keys are not all there: it would take back less than the claim says."""
    state = State(tmp_path, 8)
    for version in range(1, VERSIONS + 1):
        state.release(rows(version, 8))
    with pytest.raises(PrivacyError, match="version 7 is none of the 6"):
        state.plan(rows(VERSIONS + 1, 8))
    state.base = msgspec.structs.replace(state.base, version=3)
    state.keys = state.keys[:2]
    with pytest.raises(PrivacyError, match="of 3 versions before it, and 2 keys are here"):
        state.plan(rows(4, 8))


@pytest.mark.parametrize(("last", "separation", "bandwidth", "less"), [(50, 5, 4, 1.71), (200, 20, 16, 2.93)])
def test_released_noise_adds_up_to_less_than_independent_noise_does(
    tmp_path: Path, last: int, separation: int, bandwidth: int, less: float
) -> None:
    """k = 10 at ε = 8: root mean square of what the model holds after each version, of real folds, at equal ε."""
    n, z = 16_384, gaussian_noise(8.0, 1e-5)
    pattern = Participation(versions=last, most=10, separation=separation)
    noise = Bisr(bandwidth=bandwidth, noise_multiplier=z, participation=pattern)
    used: list[Mechanism] = [
        CorrelatedWorkerLevel(1.0, 1, noise),
        WorkerLevel(clip_norm=1.0, noise_multiplier=z * math.sqrt(10), buffer=1),
    ]
    found = []
    for i, mechanism in enumerate(used):
        state = State(tmp_path / str(i), n)
        squares = []
        for version in range(1, last + 1):
            state.release([row(version, 0, np.zeros(n, np.float32))], mechanism)
            squares.append(float(np.mean(state.flat(version).astype(np.float64) ** 2)))
        found.append(math.sqrt(np.mean(squares)))
    assert found[0] == pytest.approx(noise.root_mean_square_error(), rel=0.02)
    assert found[1] == pytest.approx(z * math.sqrt(10 * (last + 1) / 2), rel=0.02)
    assert found[1] / found[0] == pytest.approx(less, rel=0.03)


def test_who_filters_the_noise_back_finds_what_was_claimed(tmp_path: Path) -> None:
    """C times what is released is the updates through C, and white noise of σ: nothing of it has cancelled.

    The best that an adversary can do about a worker in versions 1, 3 and 5 is to look along the sum of these columns.
    Along it the worker moves what is released by ‖·‖² S, and the noise has the deviation ‖·‖ σ: a quotient of 1 / z.
    """
    n = 65_536
    state = State(tmp_path, n)
    made = [state.release([row(t, 0, np.zeros(n, np.float32))]) for t in range(1, VERSIONS + 1)]
    models = np.stack([state.flat(t).astype(np.float64) for t in range(VERSIONS + 1)])
    noise = np.diff(models, axis=0) * K
    inverse = np.zeros((VERSIONS, VERSIONS))
    for j, c in enumerate(NOISE.coefficients):
        inverse += np.diag(np.full(VERSIONS - j, c), -j)
    columns = np.linalg.inv(inverse)
    white = columns @ noise
    covariance = white @ white.T / n / made[0].sigma ** 2
    np.testing.assert_allclose(covariance, np.eye(VERSIONS), atol=6 * math.sqrt(2 / n))
    along = columns[:, [0, 2, 4]].sum(axis=1)
    moved = float(along @ along) * CLIP
    assert moved / np.std(along @ white) == pytest.approx(
        1 / NOISE.noise_multiplier, rel=6 / math.sqrt(2 * n)
    )
