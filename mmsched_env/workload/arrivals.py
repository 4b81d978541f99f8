"""Arrival processes: the gaps between requests. Another renewal process is one more function in `ARRIVALS`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

GapFunction = Callable[[np.random.Generator, int, float, float], NDArray[np.float64]]
"""(stream, number of gaps, mean rate in requests/s, CV of the gaps) -> gaps in seconds"""


def poisson(rng: np.random.Generator, size: int, rate_per_s: float, cv: float) -> NDArray[np.float64]:
    """[size] exponential gaps in seconds: arrivals without memory, CV 1."""
    return rng.exponential(1 / rate_per_s, size)


def gamma(rng: np.random.Generator, size: int, rate_per_s: float, cv: float) -> NDArray[np.float64]:
    """[size] Gamma gaps in seconds of shape 1/CV^2: bursts above CV 1, more regular than Poisson below it."""
    return rng.gamma(cv**-2, cv**2 / rate_per_s, size)


ARRIVALS: dict[str, GapFunction] = {"poisson": poisson, "gamma": gamma}
