"""The figures that describe a workload: load, burstiness, lengths, popularity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .trace import RequestTrace

PERCENTILES = (50, 90, 95, 99)


def summary(trace: RequestTrace) -> dict[str, Any]:
    """Figures of a trace, in plain types.

    ``rate_per_s`` is requests over ``span_s``, the time from first to last arrival. ``cv`` is the standard deviation
    over the mean of the gaps. ``fano_1s`` and ``fano_60s``: see `fano`. ``peak_60s`` is the busiest whole minute over
    the mean one. ``switch_share`` is the share of requests that ask for another model than the request before. Figures
    a trace is too short for are NaN.
    """
    gaps = np.diff(trace.arrival_s)
    span_s = float(gaps.sum())
    minutes = window_counts(trace.arrival_s, 60)
    shares = np.bincount(trace.model, minlength=len(trace.model_names)) / len(trace)
    return {
        "num_requests": len(trace),
        "span_s": span_s,
        "rate_per_s": len(trace) / span_s if span_s > 0 else math.nan,
        "cv": float(gaps.std() / gaps.mean()) if span_s > 0 else math.nan,
        "fano_1s": fano(trace, 1),
        "fano_60s": fano(trace, 60),
        "peak_60s": float(minutes.max() / minutes.mean()) if minutes.any() else math.nan,
        "prompt_tokens": _lengths(trace.prompt_tokens),
        "output_tokens": _lengths(trace.output_tokens),
        "image_share": float((trace.image_tokens > 0).mean()),
        "model_shares": dict(zip(trace.model_names, shares.tolist(), strict=True)),
        "switch_share": float((np.diff(trace.model) != 0).mean()) if len(trace) > 1 else math.nan,
        "notes": list(trace.notes),
    }


def window_counts(arrival_s: NDArray[np.float64], window_s: float, partial: bool = False) -> NDArray[np.int64]:
    """Arrivals in each window of `window_s` seconds from the first arrival on; `partial` keeps the cut-off last one."""
    window = ((arrival_s - arrival_s[0]) // window_s).astype(np.int64)
    counts = np.bincount(window)
    return counts if partial else counts[:-1]


def fano(trace: RequestTrace, window_s: float, partial: bool = False) -> float:
    """`fano_of` the trace's arrivals."""
    return fano_of(trace.arrival_s, window_s, partial)


def fano_of(arrival_s: NDArray[np.float64], window_s: float, partial: bool = False) -> float:
    """Variance over mean of `window_counts`: 1 for Poisson, more for bursts. NaN with fewer than two windows.

    The last window is cut off by the end of the trace. Counting it (`partial`) inflates the figure of a short trace, so
    it is left out by default.
    """
    counts = window_counts(arrival_s, window_s, partial)
    return float(counts.var() / counts.mean()) if counts.any() and len(counts) > 1 else math.nan


def _lengths(tokens: NDArray[np.int32]) -> dict[str, float]:
    percentiles = np.percentile(tokens, PERCENTILES).tolist()
    names = [f"p{p}" for p in PERCENTILES]
    return {"mean": float(tokens.mean()), **dict(zip(names, percentiles, strict=True)), "max": float(tokens.max())}
