"""Arrival processes: the gaps between requests. Another renewal process is one more function in `ARRIVALS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import gamma as gamma_function

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
GapFunction = Callable[[np.random.Generator, int, float, float], FloatArray]
"""(stream, number of gaps, mean rate in requests/s, CV of the gaps) -> gaps in seconds"""


def poisson(rng: np.random.Generator, size: int, rate_per_s: float, cv: float) -> FloatArray:
    """[size] exponential gaps in seconds: arrivals without memory, CV 1."""
    return rng.exponential(1 / rate_per_s, size)


def gamma(rng: np.random.Generator, size: int, rate_per_s: float, cv: float) -> FloatArray:
    """[size] Gamma gaps in seconds of shape 1/CV^2: bursts above CV 1, more regular than Poisson below it."""
    return rng.gamma(cv**-2, cv**2 / rate_per_s, size)


def weibull(rng: np.random.Generator, size: int, rate_per_s: float, cv: float) -> FloatArray:
    """[size] Weibull gaps in seconds; beside Gamma of the same CV > 1 fewer tiny gaps and a longer tail."""
    shape = weibull_shape(cv)
    return rng.weibull(shape, size) / (rate_per_s * gamma_function(1 + 1 / shape))


ARRIVALS: dict[str, GapFunction] = {"poisson": poisson, "gamma": gamma, "weibull": weibull}


@cache
def weibull_shape(cv: float) -> float:
    """Shape parameter whose coefficient of variation is `cv`, by bisection."""
    low, high = 0.05, 200.0  # CV from 1e6 down to 0.006
    for _ in range(100):
        middle = (low * high) ** 0.5
        mean = gamma_function(1 + 1 / middle)
        squared_cv = gamma_function(1 + 2 / middle) / mean**2 - 1
        low, high = (middle, high) if squared_cv > cv**2 else (low, middle)
    return low


def shape_of(family: str, cv: float) -> float:
    """Shape parameter of a family of gaps with this CV; a Poisson process has Gamma gaps of shape 1."""
    return {"poisson": 1.0, "gamma": cv**-2}.get(family) or weibull_shape(cv)


def first_gap(rng: np.random.Generator, family: str, rate_per_s: float, shape: float) -> float:
    """Seconds to the first arrival of a renewal process that has been running for long.

    A gap that contains a given instant is longer than most (its density is weighted by its length), and the instant
    lies anywhere in it. Without this, many bursty clients that all start at second 0 would open with one great burst.
    """
    if family == "weibull":
        long_gap = rng.gamma(1 + 1 / shape) ** (1 / shape) / (rate_per_s * gamma_function(1 + 1 / shape))
    else:
        long_gap = rng.gamma(shape + 1) / (shape * rate_per_s)
    return float(long_gap * rng.random())


def gaps_of(rng: np.random.Generator, family: str, rate_per_s: float, shape: float, size: int) -> FloatArray:
    """[size] gaps in seconds of a family by its shape parameter, of mean 1/`rate_per_s`."""
    if family == "weibull":
        return rng.weibull(shape, size) / (rate_per_s * gamma_function(1 + 1 / shape))
    return rng.gamma(shape, 1 / (shape * rate_per_s), size)


def renewal_times(
    rng: np.random.Generator, family: str, rate_per_s: float, shape: float, duration_s: float
) -> FloatArray:
    """Arrival times in [0, `duration_s`) of a renewal process that has been running for long.

    A longer `duration_s` begins with the same times.
    """
    times = np.array([first_gap(rng, family, rate_per_s, shape)])
    block = 16 + int(1.2 * rate_per_s * duration_s)
    while times[-1] < duration_s:
        gaps = gaps_of(rng, family, rate_per_s, shape, block)
        times = np.append(times, times[-1] + np.cumsum(gaps))
    return times[times < duration_s]
