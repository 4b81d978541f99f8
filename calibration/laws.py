"""The regressions: each law is linear in seconds per unit of work, fitted on relative error with a robust loss."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from mmsched_env.costmodel.profile import FitError

from .measurements import Decode, Prefill, Split

FloatArray = NDArray[np.float64]
Item = TypeVar("Item")

ROBUST_SCALE = 0.03
"""relative residual beyond which a row counts as an outlier (repeats of the published tables differ by 1-3 %)"""


@dataclass(frozen=True)
class Fit:
    """Seconds per unit of work by name, all >= 0."""

    coefficients: dict[str, float]

    def seconds(self, work: dict[str, float]) -> float:
        """Predicted time of one row."""
        return sum(self.coefficients[name] * amount for name, amount in work.items())


def fit_linear(rows: Sequence[tuple[dict[str, float], float]]) -> Fit:
    """Non-negative robust least squares of sum(coefficient * work) against seconds, on relative error."""
    names = sorted({name for work, _ in rows for name in work})
    design = np.array([[work.get(name, 0.0) / seconds for name in names] for work, seconds in rows])
    scale = np.abs(design).max(axis=0)

    def residual(x: FloatArray) -> FloatArray:
        out: FloatArray = (design / scale) @ x - 1.0
        return out

    start = np.full(len(names), 1.0 / len(names))
    solution = least_squares(
        residual, start, bounds=(0, np.inf), loss="soft_l1", f_scale=ROBUST_SCALE, xtol=1e-12, ftol=1e-12, gtol=1e-12
    )
    return Fit(dict(zip(names, (solution.x / scale).tolist(), strict=True)))


Work = Callable[[Item], tuple[dict[str, float], float]]
"""a measurement -> work by coefficient, and seconds"""


def relative_error(row: tuple[dict[str, float], float], fit: Fit) -> float:
    """Absolute relative error of one row."""
    return abs(fit.seconds(row[0]) / row[1] - 1)


def errors_left_out(items: Sequence[Item], work: Work[Item], group: Callable[[Item], Hashable]) -> list[float]:
    """Error of each group's rows, predicted from a fit without them."""
    errors: list[float] = []
    for left in dict.fromkeys(group(i) for i in items):
        fit = fit_linear([work(i) for i in items if group(i) != left])
        errors += [relative_error(work(i), fit) for i in items if group(i) == left]
    return errors


def fit_error(items: Sequence[Item], work: Work[Item], fit: Fit, left: Sequence[float], what: str) -> FitError:
    """Summary of the errors of `items`: in the fit, and left out of it."""
    inside = [relative_error(work(i), fit) for i in items]
    return FitError(len(items), float(np.median(inside)), float(np.median(left)), float(np.max(left)), what)


# -- the laws ----------------------------------------------------------------------------------------------------------


def decode_work(item: Decode) -> tuple[dict[str, float], float]:
    """Launches of every layer (shared by all GPUs), weights at the rate of (GPU, quantisation), KV at the GPU's."""
    work = {
        "layer": float(item.layers),
        f"read {item.gpu} {item.quant}": item.weight_bytes,
        f"kv {item.gpu}": item.kv_bytes,
    }
    return work, item.seconds


def prefill_work(item: Prefill, decode_fit: Fit, exponent: float) -> tuple[dict[str, float], float]:
    """Arithmetic at a rate that grows with width, net of what every chunk pays: launches and a read of the weights."""
    read_s = decode_fit.coefficients[f"read {item.gpu} {item.quant}"]
    chunk_s = item.layers * decode_fit.coefficients["layer"] + item.weight_bytes * read_s
    work = {f"compute {item.quant}": item.flops / item.width**exponent, "attention": item.attention_flops}
    return work, max(item.seconds - item.chunks * chunk_s, 1e-9)


def sweep_work(item: Split, box: str, layer_s: float) -> tuple[dict[str, float], float]:
    """Bytes on each side at the rates of that box, and a constant for running on both sides (shared by all boxes)."""
    work = {f"host {box}": item.cpu_bytes, f"gpu {box}": item.gpu_bytes}
    if item.units_on_gpu and item.cpu_bytes > 0:
        work["hybrid"] = 1.0
    return work, item.seconds - layer_s * item.gpu_layers


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Least-squares (slope, intercept)."""
    slope, intercept = np.polyfit(np.array(x), np.array(y), 1)
    return float(slope), float(intercept)
