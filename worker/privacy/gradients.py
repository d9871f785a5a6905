"""What a model must give for private training, and the sum of clipped gradients, exact.

Rules that hold here:

* The gradient of *one* record is one flat float32 vector over all trained tensors; its joint norm is clipped, 0-d
  parameters included.
* Sums are those of the broker (`fedmq.fedcore.kernels.Accumulator`): norms and clip factors in float64, every clipped
  gradient truncated to a grid of integers, integers added. So one record moves a sum by S at most, not by S and some
  rounding, and the noise is added on the same grid. numpy and C++ give the same bits.
* The grid depends on public numbers alone.
* A gradient that is not finite counts as zero. To refuse it would tell whoever sees the failure about a record.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedmq.fedcore import kernels
from fedmq.fedcore.apps import Weights
from fedmq.fedcore.layout import Flat

from .sampling import MAX_RECORDS, Indices

__all__ = ["Gradients", "Trained", "clipped_sum"]

Rows = NDArray[np.float32]


class Trained:
    """The tensors that are trained, in the order in which they make one flat vector.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Names and shapes.
    ties : mapping of str to str
        Further names, and whose values they share.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], ties: Mapping[str, str] | None = None) -> None:
        self.shapes = dict(shapes)
        self.ties = dict(ties or {})
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]

    @property
    def n(self) -> int:
        """The length of the flat vector."""
        return sum(self.sizes)

    def flatten(self, weights: Weights) -> Flat:
        """The trained part of `weights` as a new float32[n]."""
        parts = [np.asarray(weights[name], np.float32).reshape(-1) for name in self.shapes]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def unflatten(self, flat: NDArray[Any], weights: Weights) -> Weights:
        """`weights` with the trained part from a flat vector of any float type; everything else as it was."""
        trained = dict(weights)
        ends = np.cumsum(self.sizes, dtype=np.intp)
        for (name, shape), part in zip(self.shapes.items(), np.split(flat, ends[:-1]), strict=True):
            trained[name] = part.reshape(shape)
        for alias, name in self.ties.items():
            trained[alias] = trained[name]
        return trained


class Gradients(Protocol):
    """A model with its worker's records."""

    @property
    def trained(self) -> Trained:
        """What the gradient is of."""
        ...

    @property
    def records(self) -> int:
        """How many records there are."""
        ...

    def rows(self, flat: Flat, indices: Indices) -> Iterator[Rows]:
        """Each record's gradient at `flat`, a few at a time.

        Parameters
        ----------
        flat : ndarray of float32, shape (n,)
        indices : ndarray of intp
            Which records, none or more.

        Yields
        ------
        ndarray of float32, shape (b, n), C-contiguous
            One row a record, not clipped.
        """
        ...


def clipped_sum(
    batches: Iterable[Rows],
    n: int,
    *,
    max_grad_norm: float,
    sigma: float = 0.0,
    at_most: int = MAX_RECORDS,
) -> "tuple[kernels.Accumulator, int]":
    """Sum gradients, each scaled down to a norm of at most `max_grad_norm`.

    Parameters
    ----------
    batches : iterable of float32[b, n]
        One row a record.
    n : int
        The length of a gradient.
    max_grad_norm : float
        S.
    sigma : float
        The standard deviation of the noise that will be added, for which the grid has to leave room.
    at_most : int
        A public bound on the number of rows, at most 2^31; the smaller, the finer the grid.

    Returns
    -------
    Accumulator
        The sum. Its `add_noise` is the mechanism, its `mean` divides.
    int
        How many rows were not finite, and count as zero.
    """
    sums = kernels.Accumulator(n, frac_bits=kernels.frac_bits_for(max_grad_norm, at_most, sigma))
    left_out = 0
    for rows in batches:
        for row in rows:
            norm = math.sqrt(kernels.sum_squares(row))
            if math.isfinite(norm):
                sums.add(row, norm=norm, max_norm=max_grad_norm, truncate=True)
            else:
                left_out += 1
    return sums, left_out
