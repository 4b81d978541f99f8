"""Comparing policies over the same traces (common random numbers).

A figure comes as an array [members, traces]: members are trainings of one learned policy with different seeds, one for a
rule. Lower is better throughout. Interquartile mean and probability of improvement as Agarwal et al. define them (Deep
reinforcement learning at the edge of the statistical precipice, NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, permutation_test, trim_mean

CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True)
class Difference:
    """Mean paired difference and its interval; NaN bounds with fewer than two traces."""

    mean: float
    low: float
    high: float


def paired_difference(ours: ArrayLike, reference: ArrayLike, seed: int = 0) -> Difference:
    """`ours` - `reference` with a 95 % bootstrap interval.

    Over traces (BCa) for one member; over members, then traces, where there are several: two traces of one training are
    not independent. Traces for which a figure does not exist are left out.

    Parameters
    ----------
    ours : [traces] or [members, traces]
    reference : [traces]
    """
    difference = np.atleast_2d(np.asarray(ours, np.float64)) - np.asarray(reference, np.float64)
    difference = difference[:, ~np.isnan(difference).any(axis=0)]
    mean = float(difference.mean()) if difference.size else float("nan")
    if difference.shape[1] < 2:
        return Difference(mean, float("nan"), float("nan"))
    if np.ptp(difference) == 0:
        return Difference(mean, mean, mean)
    rng = np.random.default_rng(seed)
    if len(difference) > 1:
        low, high = np.quantile(_hierarchical(difference, rng), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Difference(mean, float(low), float(high))
    interval = bootstrap(
        (difference[0],), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="BCa", rng=rng
    ).confidence_interval
    return Difference(mean, float(interval.low), float(interval.high))


def _hierarchical(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of resamples [RESAMPLES] of members, and of traces common to them (they all met the same)."""
    members, traces = values.shape
    picked = rng.integers(members, size=(RESAMPLES, members))
    over_members = np.stack([(picked == m).mean(axis=1) for m in range(members)], axis=1)  # [RESAMPLES, members]
    over_traces = rng.multinomial(traces, np.full(traces, 1 / traces), size=RESAMPLES) / traces
    means: NDArray[np.float64] = np.einsum("rm,mt,rt->r", over_members, values, over_traces)
    return means


def interquartile_mean(values: ArrayLike) -> float:
    """Mean of the middle half of all members and traces; NaN entries left out."""
    flat = np.asarray(values, np.float64).ravel()
    flat = flat[~np.isnan(flat)]
    return float(trim_mean(flat, 0.25)) if len(flat) else float("nan")


def probability_of_improvement(ours: ArrayLike, reference: ArrayLike) -> float:
    """Share of (member, trace) pairs in which `ours` is below `reference` on the same trace, ties half."""
    difference = np.atleast_2d(np.asarray(ours, np.float64)) - np.asarray(reference, np.float64)
    difference = difference[~np.isnan(difference)]
    return float(np.mean((difference < 0) + 0.5 * (difference == 0))) if difference.size else float("nan")


def p_value(ours: ArrayLike, reference: ArrayLike, seed: int = 0) -> float:
    """Two-sided sign-flip test of no difference in mean over traces (a learned policy: the mean of its members)."""
    difference = np.atleast_2d(np.asarray(ours, np.float64)).mean(axis=0) - np.asarray(reference, np.float64)
    difference = difference[~np.isnan(difference)]
    if len(difference) < 2:
        return float("nan")
    if np.ptp(difference) == 0:
        return 1.0 if difference[0] == 0 else 2.0 ** (1 - len(difference))
    test = permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for looking at all of them (Holm, 1979); NaN stays NaN and does not count."""
    known = [i for i, p in enumerate(p_values) if p == p]
    corrected = [float("nan")] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def mean_over_episodes(values: ArrayLike) -> float:
    """Mean that leaves out episodes in which the figure does not exist."""
    array = np.asarray(values, np.float64)
    array = array[~np.isnan(array)]
    return float(array.mean()) if len(array) else float("nan")
