"""Means over episodes and paired differences: every policy sees the same traces (common random numbers)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean paired difference and its interval; NaN bounds with fewer than two episodes."""

    mean: float
    low: float
    high: float

    @property
    def off_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_difference(ours: ArrayLike, reference: ArrayLike, seed: int = 0) -> Difference:
    """`ours` - `reference`, one value per trace each, with a 95 % BCa bootstrap interval over traces."""
    difference = np.asarray(ours, np.float64) - np.asarray(reference, np.float64)
    mean = float(difference.mean())
    if len(difference) < 2:
        return Difference(mean, float("nan"), float("nan"))
    if np.ptp(difference) == 0:
        return Difference(mean, mean, mean)
    interval = bootstrap(
        (difference,), np.mean, confidence_level=CONFIDENCE, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Difference(mean, float(interval.low), float(interval.high))


def mean_over_episodes(values: ArrayLike) -> float:
    """Mean that leaves out episodes in which the figure does not exist."""
    array = np.asarray(values, np.float64)
    array = array[~np.isnan(array)]
    return float(array.mean()) if len(array) else float("nan")
