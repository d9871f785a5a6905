"""``[privacy] unit = "worker"`` in rounds: the table, and what tells it from the asynchronous one.

Where ``mode.kind`` is "sync", a secret coin of the broker's decides which workers a round asks. That is another
mechanism than arrivals, with other constants; so it has a table of its own, under the same unit.
"""

from collections.abc import Iterable
from typing import Annotated, Final, Literal

from msgspec import Meta

from .clip_tables import AdaptiveClip
from .tables import Table

ELSEWHERE: Final = {
    "async": "workers that come by themselves are no sample, and the cap of a worker, privacy.max_participations, "
    "bounds what it spends",
    "sync": "a secret coin decides who is asked, and each round costs every worker the same: privacy.steps bounds it",
}
"""By the mode that a file has: why a key of the other mode's table does nothing in it."""


class SampledPrivacy(Table, frozen=True, kw_only=True):
    """Worker-level differential privacy in rounds: a secret coin asks each worker with probability `sampling_rate`.

    The broker clips each update to `clip_norm`, adds N(0, (noise_multiplier · clip_norm)²) to the sum of those that
    came, and divides by `divisor`, whoever was asked and whoever answered.
    """

    unit: Annotated[Literal["worker"], Meta(description="Whose presence is hidden.")] = "worker"
    epsilon: Annotated[float, Meta(gt=0, le=1000, description="Budget of each worker, for the whole run.")]
    delta: Annotated[float, Meta(gt=0, lt=1, description="Far below one over the number of workers.")]
    clip_norm: Annotated[float, Meta(gt=0, le=1e30, description="Each update is clipped to this L2 norm.")]
    sampling_rate: Annotated[float, Meta(gt=0, le=1, description="Probability that a round asks a worker.")]
    steps: Annotated[int, Meta(ge=1, description="Rounds that the budget is planned for.")]
    divisor: Annotated[float, Meta(gt=0, description="A public constant: sampling_rate x all workers.")]
    wait_for: Annotated[
        Literal["sample", "deadline"],
        Meta(description="What ends a round: all that were asked have answered, or its deadline, always."),
    ] = "sample"
    noise_multiplier: Annotated[
        float | None, Meta(gt=0, le=1e6, description="Left out: calibrated from the keys above.")
    ] = None
    adaptive_clip: Annotated[
        AdaptiveClip | None,
        Meta(extra={"form": AdaptiveClip.form}, description="Left out: clip_norm is that of every version."),
    ] = None


def misplaced(key: str, mode: str, others: Iterable[str]) -> str | None:
    """What to say of a key that only the other mode's worker-level table has; None where it is in neither.

    Parameters
    ----------
    key : str
        Of `[privacy]`, with unit = "worker".
    mode : {"async", "sync"}
        What the file has.
    others : iterable of str
        The keys of the table that belongs to the other mode.
    """
    if key not in others:
        return None
    other = "sync" if mode == "async" else "async"
    return (
        f'privacy.{key} belongs to mode.kind = "{other}", but mode.kind is "{mode}": with [privacy] unit = "worker" '
        f"{ELSEWHERE[mode]}"
    )
