"""What ``[aggregate] rule`` may hold: a rule by its name, a table with its parameters, or a user's own rule.

    rule = "mean"                                  # a name: the rule with its defaults
    rule = {kind = "krum", byzantine = 2}          # a table, where it has parameters
    rule = "my_rules:SignVote"                     # "module:attribute"

Each rule says here how many updates it needs at least (`minimum`) and what else of the file it holds to
(`most`, `uniform`, `one_per_worker`); `tables` checks it. What the rules compute stands in `strategy.robust`.
"""

import math
from typing import Annotated, ClassVar

from msgspec import Meta, Struct, structs

__all__ = [
    "RULES",
    "Bulyan",
    "CenteredClipping",
    "GeometricMedian",
    "Krum",
    "Mean",
    "Median",
    "MultiKrum",
    "NormBound",
    "Rule",
    "TrimmedMean",
    "UserRule",
    "name_of",
    "plain",
]

_Byzantine = Annotated[int, Meta(ge=1, description="f: so many of the updates may be anything at all.")]


PAIRS_MOST = 1000
"""Updates among which all distances are taken: 8 MB of them. Among 100,000 they would be 80 GB."""


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    """What all rules have in common."""

    kind: ClassVar[str]
    uniform: ClassVar[bool] = True
    """Every update counts the same: how many examples a worker has is its own claim."""
    one_per_worker: ClassVar[bool] = True
    """The rule outvotes a minority of *updates*: no worker may have two of them."""
    needs: ClassVar[str] = "three updates: a majority of fewer outvotes nobody"
    """Why it takes `minimum` updates."""
    most: ClassVar[int | None] = None
    """The most updates that a buffer may hold, where the rule compares each with every other."""

    @property
    def minimum(self) -> int:
        """The fewest updates that it combines."""
        return 3


class Mean(_Table, frozen=True, tag_field="kind", tag="mean"):
    """The weighted mean of all updates."""

    kind: ClassVar[str] = "mean"
    uniform: ClassVar[bool] = False
    one_per_worker: ClassVar[bool] = False
    needs: ClassVar[str] = "one update"

    @property
    def minimum(self) -> int:
        """The fewest updates that it combines."""
        return 1


class NormBound(_Table, frozen=True, kw_only=True, tag_field="kind", tag="norm_bound"):
    """The weighted mean of updates that were scaled down to a norm."""

    kind: ClassVar[str] = "norm_bound"
    uniform: ClassVar[bool] = False
    one_per_worker: ClassVar[bool] = False
    needs: ClassVar[str] = "one update"

    max_norm: Annotated[
        float, Meta(gt=0, le=1e30, description="An update with a larger L2 norm shrinks to it.")
    ]

    @property
    def minimum(self) -> int:
        """The fewest updates that it combines."""
        return 1


class Median(_Table, frozen=True, tag_field="kind", tag="median"):
    """The median of each coordinate."""

    kind: ClassVar[str] = "median"


class TrimmedMean(_Table, frozen=True, tag_field="kind", tag="trimmed_mean"):
    """The mean of each coordinate without its extremes."""

    kind: ClassVar[str] = "trimmed_mean"
    needs: ClassVar[str] = "1 / trim updates, for with fewer nothing would be cut"

    trim: Annotated[
        float, Meta(gt=0, lt=0.5, description="Share of the updates that is cut at each end.")
    ] = 0.2

    def cut(self, k: int) -> int:
        """How many of `k` values are cut at each end: trim · k, rounded down.

        Examples
        --------
        >>> TrimmedMean(trim=0.29).cut(100)  # 0.29 * 100 is 28.999999999999996
        29
        """
        return math.floor(round(self.trim * k, 9))

    @property
    def minimum(self) -> int:
        """The fewest updates that it combines."""
        k = math.floor(1 / self.trim)
        return max(k if self.cut(k) else k + 1, 3)


class Krum(_Table, frozen=True, kw_only=True, tag_field="kind", tag="krum"):
    """The one update that is closest to its neighbours."""

    kind: ClassVar[str] = "krum"
    most: ClassVar[int | None] = PAIRS_MOST
    needs: ClassVar[str] = "2 x byzantine + 3 updates"

    byzantine: _Byzantine

    @property
    def minimum(self) -> int:
        """The fewest updates that it combines."""
        return 2 * self.byzantine + 3


class MultiKrum(_Table, frozen=True, kw_only=True, tag_field="kind", tag="multi_krum"):
    """The mean of the updates that are closest to their neighbours."""

    kind: ClassVar[str] = "multi_krum"
    most: ClassVar[int | None] = PAIRS_MOST
    needs: ClassVar[str] = "2 x byzantine + 3 and selected + byzantine + 2 updates"

    byzantine: _Byzantine
    selected: Annotated[
        int, Meta(ge=0, description="m, how many are averaged; 0: all but byzantine + 2 of them.")
    ] = 0

    @property
    def minimum(self) -> int:
        """The fewest updates that it combines."""
        return max(2 * self.byzantine + 3, self.selected + self.byzantine + 2)


class Bulyan(_Table, frozen=True, kw_only=True, tag_field="kind", tag="bulyan"):
    """Krum, again and again, then a trimmed mean around the median of those chosen."""

    kind: ClassVar[str] = "bulyan"
    most: ClassVar[int | None] = PAIRS_MOST
    needs: ClassVar[str] = "4 x byzantine + 3 updates"

    byzantine: _Byzantine

    @property
    def minimum(self) -> int:
        """The fewest updates that it combines."""
        return 4 * self.byzantine + 3


class GeometricMedian(_Table, frozen=True, tag_field="kind", tag="geometric_median"):
    """The point with the smallest sum of distances to the updates (RFA)."""

    kind: ClassVar[str] = "geometric_median"

    iterations: Annotated[int, Meta(ge=1, le=100, description="Of Weiszfeld; each reads all updates.")] = 3
    smoothing: Annotated[float, Meta(gt=0, description="nu: distances below it count as this.")] = 1e-6


class CenteredClipping(_Table, frozen=True, kw_only=True, tag_field="kind", tag="centered_clipping"):
    """The last combined update, moved by what each update adds within a radius."""

    kind: ClassVar[str] = "centered_clipping"
    needs: ClassVar[str] = "one update"

    radius: Annotated[float, Meta(gt=0, description="How far an update may pull: beyond, it is clipped.")]
    iterations: Annotated[int, Meta(ge=1, le=100, description="Of clipping; each reads all updates.")] = 1

    @property
    def minimum(self) -> int:
        """The fewest updates that it combines."""
        return 1


class UserRule(Struct, frozen=True):
    """A rule of the user's: ``"module:attribute"``. Its minimum is known once it is loaded."""

    app: str

    kind: ClassVar[str] = ""
    uniform: ClassVar[bool] = True
    one_per_worker: ClassVar[bool] = False
    most: ClassVar[int | None] = None


Rule = (
    Mean
    | Median
    | TrimmedMean
    | Krum
    | MultiKrum
    | Bulyan
    | GeometricMedian
    | CenteredClipping
    | NormBound
    | UserRule
)

RULES: dict[str, type[Struct]] = {
    table.kind: table
    for table in (
        Mean,
        Median,
        TrimmedMean,
        Krum,
        MultiKrum,
        Bulyan,
        GeometricMedian,
        CenteredClipping,
        NormBound,
    )
}


def name_of(rule: Rule) -> str:
    """What an error calls a rule: its kind, or where it is imported from."""
    return rule.app if isinstance(rule, UserRule) else rule.kind


def plain(rule: Rule) -> str | dict[str, object]:
    """A rule as a file writes it: its name where it has no parameters, else a table.

    Examples
    --------
    >>> plain(Mean()), plain(Krum(byzantine=2)), plain(UserRule("rules:vote"))
    ('mean', {'kind': 'krum', 'byzantine': 2}, 'rules:vote')
    """
    if isinstance(rule, UserRule):
        return rule.app
    parameters = structs.asdict(rule)
    return {"kind": rule.kind, **parameters} if parameters else rule.kind
