"""What a combination rule gets and what it gives back: the interface that all rules share, a user's own as well.

A rule looks at a frozen buffer as K vectors

    uᵢ = float32(wᵢ · Δᵢ),      i = 0 … K − 1 in the order of task ids,

the updates as the mean would add them. All but the mean and the norm bound have wᵢ = s(τᵢ), the staleness factor:
there all updates count the same, however many examples they claim. A rule may ask for scalars that take a pass
over all of them (`Updates`), and answers with a recipe for the combined update d, of two kinds:

* `Mixture`: one linear combination, d = (Σ wᵢ Δᵢ + p · v) / D. It is folded in exact integers, as the mean is.
* `Coordinates`: a function of the K values of each coordinate, applied to pieces of the model.

Rules that hold for whatever implements this:

- No rule sees a whole model, and none needs more memory than a piece of each update.
- The same updates give the same bits: nothing may depend on a clock, on chance, on the order of arrival, or on
  where a piece begins. A broker folds a buffer again after a crash, and `fedmq verify` does years later.
- A rule has no state but v, the combined update of the version before, which the broker keeps where `seeded`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from .. import kernels

__all__ = ["Combination", "Coordinates", "Mixture", "Rule", "Updates", "mixture_of"]

_LARGEST: Final = 2.0**20
"""What the largest coefficient of a mixture is scaled to: then 2⁻²⁰ is 2⁻⁴⁰ of it."""


class Mixture(msgspec.Struct, frozen=True, kw_only=True):
    """d = (Σ wᵢ clip(Δᵢ) + p · v) / D.

    Parameters
    ----------
    weights : tuple of float
        wᵢ ≥ 0, a multiple of 2⁻²⁰ (others are rounded to it); an update with weight 0 is not read.
    denominator : float
        D > 0.
    max_norm : float, optional
        Each Δᵢ whose norm is larger is scaled down to it.
    previous : float
        p ≥ 0, the weight of the combined update of the version before; for rules that are `seeded`.
    """

    weights: tuple[float, ...]
    denominator: float
    max_norm: float | None = None
    previous: float = 0.0


class Coordinates(msgspec.Struct, frozen=True):
    """d_j = function of the values of coordinate j.

    Parameters
    ----------
    function : callable
        Gets float32[K', m], the coordinates of a piece of the model with a row for each update, which it may
        overwrite; returns m finite numbers. Each must depend on its own column alone.
    rows : tuple of int, optional
        Which updates it gets; all of them by default.
    """

    function: Callable[[NDArray[np.float32]], NDArray[Any]]
    rows: tuple[int, ...] | None = None


Combination: TypeAlias = Mixture | Coordinates


class Updates(Protocol):
    """A frozen buffer, as a rule sees it.

    Attributes
    ----------
    n : int
        Elements of the model.
    weights : tuple of float
        wᵢ of each update, a multiple of 2⁻²⁰: s(τᵢ), times its examples where `aggregate.weight` says so.
    masses : tuple of int
        What each adds to the mean's denominator: 1, or its examples.
    norms : tuple of float
        wᵢ · ‖Δᵢ‖, known without reading anything.
    """

    @property
    def n(self) -> int: ...

    @property
    def weights(self) -> tuple[float, ...]: ...

    @property
    def masses(self) -> tuple[int, ...]: ...

    @property
    def norms(self) -> tuple[float, ...]: ...

    def __len__(self) -> int:
        """K."""
        ...

    def sq_distances(self) -> NDArray[np.float64]:
        """‖uᵢ − uⱼ‖² of all pairs, float64[K, K]: one pass."""
        ...

    def sq_distances_to(self, mixture: Mixture) -> NDArray[np.float64]:
        """‖uᵢ − d‖² for the d that a mixture makes, float64[K]: one pass, which reads each update twice."""
        ...


class Rule(Protocol):
    """How the updates of a buffer become one.

    Attributes
    ----------
    minimum : int
        The fewest updates that it combines: the config is held to it, and the fold as well.
    seeded : bool
        Whether it uses v. The broker then keeps each combined update beside its version, durably, as it keeps
        an optimizer's state; v is zero for the first.
    """

    @property
    def minimum(self) -> int: ...

    @property
    def seeded(self) -> bool: ...

    def prepare(self, updates: Updates) -> Combination:
        """Look at a frozen buffer of at least `minimum` updates, and say how to combine it."""
        ...


def mixture_of(coefficients: Sequence[float], weights: Sequence[float], previous: float = 0.0) -> Mixture:
    """The weighted average of the uᵢ (and of v), (Σ cᵢ uᵢ + p v) / (Σ cᵢ + p), on a grid on which it is exact.

    Coefficients are scaled so that the largest is 2²⁰, and rounded to multiples of 2⁻²⁰, that is to 2⁻⁴⁰ of the
    largest. The denominator is the sum of what was rounded: an average stays an average.

    Raises
    ------
    ValueError
        When a coefficient is negative or not finite, or all are zero.

    Examples
    --------
    >>> mixture = mixture_of([1.0, 4.0], [1.0, 0.5])
    >>> mixture.weights, mixture.denominator
    ((262144.0, 524288.0), 1310720.0)
    """
    largest = max([*coefficients, previous])
    if not (largest > 0 and all(0 <= c < math.inf for c in [*coefficients, previous])):
        raise ValueError("coefficients must be finite and ≥ 0, and one of them above 0")
    scaled = [kernels.dyadic(c / largest * _LARGEST) for c in [*coefficients, previous]]
    *own, last = scaled
    return Mixture(
        weights=tuple(kernels.dyadic(c * w) for c, w in zip(own, weights, strict=True)),
        denominator=math.fsum(scaled),
        previous=last,
    )
