"""Which model a request asks for: Zipf shares over the models, constant or drifting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .checks import require, require_share
from .source import stream

ORDERS = ("shuffled", "listed")


def zipf_shares(count: int, exponent: float) -> NDArray[np.float64]:
    """[count] shares summing to 1, falling as ``rank ** -exponent``; exponent 0 is uniform."""
    weights: NDArray[np.float64] = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def draw_by_share(uniform: NDArray[np.float64], shares: Sequence[float] | NDArray[np.float64]) -> NDArray[np.int64]:
    """[N] indices into `shares`, from [N] draws in [0, 1); shares need not sum to 1."""
    edges = np.cumsum(np.asarray(shares, np.float64))
    index: NDArray[np.int64] = np.searchsorted(edges, uniform * edges[-1], side="right")
    return np.minimum(index, len(edges) - 1)


@dataclass(frozen=True)
class DriftConfig:
    """Models that rise and die: each has a season in a cycle, at a time the seed draws, and is asked for around it."""

    cycle_s: float | None = None
    """seconds after which the seasons come again; none: popularity does not change"""
    season: float = 0.25
    """length of a season (standard deviation of its bell) as a share of the cycle"""
    floor: float = 0.02
    """popularity out of season, as a share of that at its height"""

    def check(self, key: str) -> None:
        """Raise `ConfigError` for a value that cannot be used; `key` is where this stands in the configuration."""
        ok = self.cycle_s is None or 0 < self.cycle_s < np.inf
        require(ok, f"{key}.cycle_s", self.cycle_s, "none, or seconds > 0")
        require(0 < self.season <= 1, f"{key}.season", self.season, "a share in (0, 1]")
        require_share(f"{key}.floor", self.floor)

    def draw(
        self, seed: int, uniform: NDArray[np.float64], arrival_s: NDArray[np.float64], shares: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """[N] indices into `shares` at the requests' times (stream "drift" for the seasons)."""
        if self.cycle_s is None:
            return draw_by_share(uniform, shares)
        height_at = stream(seed, "drift").random(len(shares))
        away = (arrival_s[:, None] / self.cycle_s - height_at + 0.5) % 1.0 - 0.5  # in cycles, from the season
        weight = shares * np.maximum(np.exp(-0.5 * (away / self.season) ** 2), self.floor)
        edges = np.cumsum(weight, axis=1)
        index: NDArray[np.int64] = (edges <= uniform[:, None] * edges[:, -1:]).sum(axis=1)
        return np.minimum(index, len(shares) - 1)
