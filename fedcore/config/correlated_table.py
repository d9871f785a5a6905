"""``[privacy.correlated]``: noise that later versions take back, and what the claim for it holds a federation to.

Rules that hold here:

- The claim is about a whole run: T versions, in which a worker is k times at the most, b versions apart. So all three
  are constants, and z is of the run and not of a version.
- What else of the file it is held to, and why, is said by `check`; `whole` calls it.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from fedmq.fedcore.errors import ConfigError

__all__ = ["Correlated", "check"]


class Correlated(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Noise of the banded inverse square root (BISR): most of what a version adds, the next ones take back.

    With it noise_multiplier is that of the whole run: all versions cost what one release with it does.
    """

    form: ClassVar[str] = "a table, written [privacy.correlated]"

    versions: Annotated[
        int, Meta(ge=1, le=1_000_000, description="T: so many versions are made at the most.")
    ]
    min_separation: Annotated[
        int,
        Meta(
            ge=1, le=1_000_000, description="b: versions from one part of a worker to its next, at the least."
        ),
    ]
    bandwidth: Annotated[
        int | None,
        Meta(
            ge=1,
            le=1024,
            description="p: versions whose noise is mixed. Left out: what gives the least error.",
        ),
    ] = None


def check(table: Correlated, stop_versions: int, adaptive: object = None) -> None:
    """Hold the rest of a file to what the claim assumes.

    Parameters
    ----------
    table : Correlated
    stop_versions : int
        Of `[stop]`; 0 is no limit, and then T is the limit.
    adaptive : table or None
        What would change the clip norm, and with it the noise, from version to version.

    Raises
    ------
    ConfigError
        Naming the key, what it holds, what it may hold, and why.
    """
    for problem in _problems(table, stop_versions, adaptive):
        raise ConfigError(problem)


def _problems(table: Correlated, stop_versions: int, adaptive: object) -> Iterator[str]:
    if adaptive is not None:
        yield (
            "[privacy.correlated] and a clip norm that adapts exclude each other: what a version takes back must be as "
            "large as what an earlier one added, so that the noise is one constant for the whole run"
        )
    if stop_versions > table.versions:
        yield (
            f"stop.versions is {stop_versions}; it may be at most privacy.correlated.versions, which is "
            f"{table.versions}: the noise is planned for that many"
        )
