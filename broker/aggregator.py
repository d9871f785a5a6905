"""A frozen buffer becomes the next version: one pass, tile by tile, in the aggregation thread.

    total = Σ wᵢ Δᵢ  (exact integers)  →  + noise  →  / D  →  optimizer  →  the next version's files

Without privacy another rule than the mean may stand in the place of the sum: it looks at the buffer first, in as many
passes as it needs (`frozen`), and says what to combine, and how.

Rules that hold here:

- A `FoldJob` (`fold_job`) says all that there is to know. The same job gives the same bytes, whatever the order of its
  rows, the size of a tile, the number of threads, the kernels' backend, and however often it is folded
  again after a crash.
- Memory is a tile for each thread, whatever the rule. Payloads, the previous version and the optimizer's state are
  read through maps; the next files are written as they come (`tiles`).
- FedAsync mixes in the model that its one update was trained from: that version's file is kept for it (`Config.reach`).
- Nothing is visible until everything is durable (`VersionWriter.commit`); the journal names it afterwards.
- Under privacy an update that is not finite counts as zero and keeps its slot: who is in a buffer must not
  depend on data. Without privacy such an update was never accepted.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from fedmq.fedcore import kernels
from fedmq.fedcore.errors import StateError
from fedmq.fedcore.layout import Flat
from fedmq.fedcore.strategy import optimizers, robust
from fedmq.fedcore.strategy.combination import Combination, Coordinates, Mixture

from .events import Folded
from .fold_job import FoldJob
from .frozen import FrozenBuffer
from .rows import VersionInfo
from .store.refusals import patiently
from .store.spool import Spool
from .store.versions import VersionStore, VersionWriter
from .tiles import HANDS, Finish, Work, in_turns

__all__ = ["PREVIOUS", "TILE", "fold"]

TILE: Final = 1 << 17
"""Elements that a thread folds at a time; a multiple of 16 Ki, so that no tile cuts a block of noise or norm. The sums
of so many are a MiB, which stays near the core that adds to them."""

PREVIOUS: Final = "center"
"""The slot, beside the optimizer's, in which the combined update is kept for a rule that is seeded with it."""


def fold(job: FoldJob, versions: VersionStore, spool: Spool, *, tile: int = TILE) -> Folded:
    """Make the next version's files from a job; durable, and not yet named by the journal, on return.

    Parameters
    ----------
    tile
        Elements folded at a time, a multiple of 16 Ki. The result does not depend on it.

    Raises
    ------
    StateError
        When a file is missing, damaged or cannot be written, the buffer is too small for its rule, or the next
        version would not be finite. The previous version is untouched.
    """
    started = time.monotonic()
    version = job.base.version + 1
    file = patiently(lambda: versions.file(job.base.version))
    layout = versions.layout(job.base.version)
    if (layout.digest, layout.n) != (job.base.layout, job.base.n):
        raise StateError(f"{versions.path(job.base.version)} does not have the layout that the journal says")
    optimizer = optimizers.make(job.optimizer)
    base = layout.flat(file)
    states = {slot: _state(versions, job.base.version, slot, layout.n) for slot in optimizer.slots}
    rule = robust.make(job.rule)
    if len(job.rows) < rule.minimum and job.release is None:
        raise StateError(
            f"a buffer of {len(job.rows)} updates is too small for aggregate.rule, which needs {rule.minimum}"
        )
    buffer = FrozenBuffer(
        job.rows,
        spool,
        layout.n,
        by_examples=job.weighting == "examples",
        previous=_state(versions, job.base.version, PREVIOUS, layout.n) if rule.seeded else None,
        threads=job.threads,
    )
    combination = None if job.release is not None else rule.prepare(buffer)
    frac_bits, divisor = _terms(job, buffer, combination)
    step = _step(job, optimizer, versions, divisor)
    kept = (*optimizer.slots, PREVIOUS) if rule.seeded else optimizer.slots
    norm = kernels.Norm("f32")
    # A rule of the user's own need not bear two calls at once.
    hands = (
        1 if isinstance(combination, Coordinates) else min(job.threads or kernels.info()["threads"], HANDS)
    )
    threads = job.threads if hands == 1 else 1

    with versions.writer(version, kept, size=len(file), n=layout.n) as writer:

        def hand() -> Work:
            """What folds a tile, and then has its files written."""
            mine = buffer.hand(threads, hands)
            delta, params, *state = (
                np.empty(min(tile, layout.n), np.float32) for _ in range(2 + len(states))
            )

            def work(at: slice) -> Finish:
                n = at.stop - at.start
                d, w, moments = delta[:n], params[:n], [array[:n] for array in state]
                if combination is None:
                    _release(job, mine, at.start, at.stop, d)
                else:
                    mine.combine(combination, frac_bits, at.start, at.stop, d)
                np.copyto(w, base[at])
                for array, before in zip(moments, states.values(), strict=True):
                    np.copyto(array, before[at])
                step(w, moments, d, at, threads)
                # The squares of all float32s together are a finite float64.
                if not math.isfinite(kernels.sum_squares(w, threads=threads)):
                    raise StateError(
                        f"version {version} would not be finite: the federation has diverged; start again with a "
                        "smaller optimizer.lr or aggregate.max_update_norm"
                    )
                return lambda: finish(w, (*moments, d))

            return work

        def finish(params: Flat, vectors: Sequence[Flat]) -> None:
            norm.update(vectors[-1].data)
            _write(writer, kept, params, vectors)

        writer.model(file[: layout.data_start])
        starts = range(0, layout.n, tile)
        in_turns([slice(start, min(start + tile, layout.n)) for start in starts], hand, hands)
        writer.model(file[layout.data_start + 4 * layout.n :])
        made = writer.commit()
    # What this fold built on is committed, so nothing will fold onto an older version again.
    versions.delete_states_before(job.base.version)
    return Folded(
        info=VersionInfo(
            version=version,
            digest=made.digest,
            size=made.size,
            layout=layout.digest,
            n=layout.n,
            clip_norm=job.release.next_clip_norm if job.release else None,
        ),
        updates=len(job.rows),
        examples=sum(row.examples for row in job.rows),
        frac_bits=frac_bits,
        denominator=divisor,
        update_norm=norm.value(),
        seconds=time.monotonic() - started,
        sigma=job.release.sigma if job.release else 0.0,
        noise_key=job.release.key if job.release else None,
        charged=job.release.charged if job.release else None,
        whole_run=job.release is not None and job.release.whole_run,
    )


def _step(
    job: FoldJob,
    optimizer: optimizers.ServerOptimizer | optimizers.Mixing,
    versions: VersionStore,
    divisor: float | None,
) -> Callable[[Flat, Sequence[Flat], Flat, slice, int | None], None]:
    """What moves a tile of the model: called with it, its state, the combined update, where it lies, and threads."""
    if isinstance(optimizer, optimizers.Mixing):
        (row,) = job.rows
        assert divisor is not None
        origin = versions.layout(row.base).flat(patiently(lambda: versions.file(row.base)))
        share = row.weight / divisor
        return lambda params, state, d, at, threads: optimizer.apply(params, d, origin[at], share=share)
    tau_max = max((row.tau for row in job.rows), default=0)
    return lambda params, state, d, at, threads: optimizer.apply(
        params, state, d, step=job.base.version + 1, tau_max=tau_max, threads=threads
    )


def _write(writer: VersionWriter, kept: Sequence[str], params: Flat, vectors: Sequence[Flat]) -> None:
    """Append a tile to the files; `kept` names those of `vectors` that are kept, from the first."""
    writer.model(params.data)
    for slot, array in zip(kept, vectors, strict=False):
        writer.state(slot, array.data)


def _state(versions: VersionStore, version: int, slot: str, n: int) -> Flat:
    return patiently(lambda: versions.state(version, slot, n))


def _terms(
    job: FoldJob, buffer: FrozenBuffer, combination: Combination | None
) -> tuple[int | None, float | None]:
    """F and D of the exact sum; None where there is no sum."""
    if job.frac_bits is not None or not isinstance(combination, Mixture):
        return job.frac_bits, job.denominator
    return buffer.grid(combination), combination.denominator


def _release(job: FoldJob, buffer: FrozenBuffer, start: int, stop: int, out: Flat) -> None:
    """Elements [start, stop) of the clipped and noised sum over D, into `out`."""
    release = job.release
    assert release is not None
    assert job.frac_bits is not None
    assert job.denominator is not None
    buffer.noisy_mean(
        job.frac_bits,
        job.denominator,
        start,
        stop,
        out,
        max_norm=release.max_norm,
        sigma=release.sigma,
        key=release.key,
        taken_back=release.taken_back,
    )
