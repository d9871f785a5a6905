"""The part of a privacy statement that is about correlated noise: what each worker paid, and whether the claim holds.

All T versions are one Gaussian release of C x, whose ε is that of a worker that was in as many versions, as soon again,
as it may be. One that was in fewer has moved C x less far: participation is public, so its ε is that of the versions
that it was in, taken as given. Both are computed from the updates in the journal; that a worker was never in a version
too often or too soon is looked at there as well, for else nothing is claimed.
"""

import itertools
from collections.abc import Mapping, Sequence

import msgspec

from fedmq.fedcore.privacy.accounting import gaussian_epsilon
from fedmq.fedcore.privacy.correlated import Bisr

__all__ = ["Pattern", "broken", "spent"]


class Pattern(msgspec.Struct, frozen=True, kw_only=True):
    """What the claim for correlated noise rests on.

    Attributes
    ----------
    bandwidth
        p: versions whose noise is mixed.
    min_separation
        b: versions from one part of a worker to its next, at the least.
    versions
        T: versions that are made at the most.
    sensitivity
        How far a worker at all limits moves the one release, in clip norms.
    broken
        What in the journal the claim does not allow; empty while it holds.
    """

    bandwidth: int
    min_separation: int
    versions: int
    sensitivity: float
    broken: tuple[str, ...] = ()

    @classmethod
    def of(cls, noise: Bisr, parts: Mapping[str, Sequence[int]], releases: int) -> "Pattern":
        """The pattern of a mechanism, held against what a journal has."""
        pattern = noise.participation
        return cls(
            bandwidth=noise.bandwidth,
            min_separation=pattern.separation,
            versions=pattern.versions,
            sensitivity=noise.sensitivity,
            broken=broken(noise, parts, releases),
        )


def spent(noise: Bisr, versions: Sequence[int], releases: int, delta: float) -> float:
    """The ε of a worker that was in these versions: whatever they are, and also where more were made than planned."""
    longer = msgspec.structs.replace(
        noise.participation, versions=max(noise.participation.versions, releases)
    )
    moved = msgspec.structs.replace(noise, participation=longer).sensitivity_of(versions)
    return gaussian_epsilon(noise.deviation / moved, delta)


def broken(noise: Bisr, parts: Mapping[str, Sequence[int]], releases: int) -> tuple[str, ...]:
    """Each way in which a journal is not within the pattern, in words."""
    pattern = noise.participation
    found = []
    if releases > pattern.versions:
        found.append(f"{releases} versions were made, and {pattern.versions} are planned for")
    for worker, versions in parts.items():
        if len(versions) > pattern.most:
            found.append(f"{worker} was in {len(versions)} versions")
        if any(later - sooner < pattern.separation for sooner, later in itertools.pairwise(versions)):
            found.append(f"{worker} was in two versions less than {pattern.separation} apart")
    return tuple(found)
