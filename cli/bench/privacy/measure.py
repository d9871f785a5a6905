"""All arms of a run, one after the other: the features of 70,000 images are held once."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ...demo.data import Dataset
from ...progress import Moment, View
from ..strategies import settings as federations
from . import arms
from .features import featured
from .report import TITLES, Run

__all__ = ["measure"]

_KINDS: Final[dict[str, tuple[arms.Kind, ...]]] = {
    "network": ("central", "federated", "pixels"),
    "once": ("head", "once"),
    "each": ("each",),
    "worker": ("worker",),
}


def measure(
    run: Run,
    kinds: Collection[str],
    dataset: Dataset,
    plain: federations.Setting,
    *,
    cache: Path | None,
    shown: View,
    earlier: Mapping[arms.Arm, arms.Found] = MappingProxyType({}),
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Run the arms of some kinds, and put what they come to into `run`.

    Parameters
    ----------
    run : Run
        Filled arm by arm, so that what there is when somebody stops it can be shown.
    kinds : collection of str
        Of ``network``, ``once``, ``each`` and ``worker``.
    dataset : Dataset
        Of pixels.
    plain : Setting
        Of the arms without privacy.
    cache : path or None
        Where features are kept.
    shown : View
    earlier : mapping
        What is there already, and is not run again.
    keep : callable
        Called after each arm.
    """
    wanted = {kind for name in kinds for kind in _KINDS[name]}
    features: Dataset | None = None
    for arm in arms.arms(run.setting):
        if arm.kind not in wanted:
            continue
        if arm in earlier:
            run.found.append(earlier[arm])
            continue
        if arm.kind in arms.FEATURED and features is None:
            with shown.arm("features") as show:
                features = featured(
                    dataset,
                    cache=cache,
                    done=lambda count, total: show(
                        Moment(counted="image", version=count, versions=total, note="scattering")
                    ),
                )
        note = "no privacy" if arm.epsilon is None else f"epsilon {arm.epsilon:g}"
        name = TITLES[arm.kind] + (f", {arm.workers:,} workers" if arm.kind == "worker" else "")
        with shown.arm(f"{name}, {note}") as show:
            images = features if arm.kind in arms.FEATURED and features is not None else dataset
            run.found.append(
                arms.run(
                    arm,
                    images,
                    run.setting,
                    plain,
                    seeds=run.seeds,
                    progress=lambda number, of: show(
                        Moment(counted="step", version=number, versions=of, note="")
                    ),
                )
            )
            keep()
