"""Krum's choice among K vectors, from the squared distances between them.

    score(i) = Σ ‖uᵢ − uⱼ‖² over the k − f − 2 other vectors j that are closest to i

Rules that hold here:

- Sums are exact (`math.fsum`), so the order of the vectors shows only where two scores are equal: then the first
  of them, in the order of task ids, is chosen.
- What an attacker controls is his vectors; task ids are the broker's.

References
----------
Blanchard et al., *Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent*, arXiv:1703.02757;
El Mhamdi et al., *The Hidden Vulnerability of Distributed Learning in Byzantium* (Bulyan), arXiv:1802.07927.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["krum_order", "repeated_krum", "scores"]


def scores(sq_distances: NDArray[np.float64], f: int, among: Sequence[int] | None = None) -> list[float]:
    """The score of each of the vectors `among` (all by default), counting distances between these alone.

    With k vectors, each has k − f − 2 neighbours that count; at least one, where Bulyan has left so few.

    Examples
    --------
    >>> line = np.array([0.0, 1.0, 2.0, 4.0, 100.0])
    >>> scores((line[:, None] - line) ** 2, f=1)
    [5.0, 2.0, 5.0, 13.0, 18820.0]
    """
    chosen = range(len(sq_distances)) if among is None else among
    neighbours = max(len(chosen) - f - 2, 1)
    return [
        math.fsum(sorted(float(sq_distances[i, j]) for j in chosen if j != i)[:neighbours]) for i in chosen
    ]


def krum_order(sq_distances: NDArray[np.float64], f: int) -> list[int]:
    """All vectors, the one with the lowest score first: Krum takes the first, Multi-Krum the first m."""
    found = scores(sq_distances, f)
    return sorted(range(len(found)), key=lambda i: (found[i], i))


def repeated_krum(sq_distances: NDArray[np.float64], f: int, count: int) -> list[int]:
    """Choose by Krum, take what was chosen out, choose among the rest, `count` times; ascending.

    Not the `count` lowest scores of one round: a score changes when a neighbour has gone.
    """
    left = list(range(len(sq_distances)))
    for _ in range(count):
        found = scores(sq_distances, f, left)
        del left[min(range(len(left)), key=lambda i: (found[i], i))]
    return sorted(set(range(len(sq_distances))).difference(left))
