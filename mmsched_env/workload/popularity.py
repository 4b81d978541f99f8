"""Which model a request asks for: Zipf shares over the models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ORDERS = ("shuffled", "listed")


def zipf_shares(count: int, exponent: float) -> NDArray[np.float64]:
    """[count] shares summing to 1, falling as ``rank ** -exponent``; exponent 0 is uniform."""
    weights: NDArray[np.float64] = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def draw_by_share(
    rng: np.random.Generator, shares: Sequence[float] | NDArray[np.float64], size: int
) -> NDArray[np.int64]:
    """[size] indices into `shares`, one uniform draw a request; shares need not sum to 1."""
    edges = np.cumsum(np.asarray(shares, np.float64))
    index: NDArray[np.int64] = np.searchsorted(edges, rng.random(size) * edges[-1], side="right")
    return np.minimum(index, len(edges) - 1)
