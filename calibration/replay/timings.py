"""Measured figures to cost tables of these very models on this very device: no law between models, only within one.

The profile of a device shares its rates between models, which costs accuracy where a few models were measured anyway. Here every
entry is the model's own: decode by knots of depth and by batch, prefill by a parabola, loads and unloads as they were.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from mmsched_env.costmodel.tables import NUM_KNOTS, CostTables
from mmsched_env.errors import ConfigError

from ..measure.points import BESIDE_LOAD, Point
from ..measure.rows import Figures, slowdowns

SHORT_S = 1e-5
"""an operation must take time"""

FASTEST = 1e14

FloatArray = NDArray[np.float64]


def measured_tables(base: CostTables, models: Sequence[str], found: Sequence[Figures], memory_bytes: int) -> CostTables:
    """`base` with every figure of time replaced, and the memory of every device.

    Parameters
    ----------
    base
        Tables of the models, from any profile: sizes are taken from it. Models must be wholly on the device (one level).
    models
        Names as in the figures, in the order of `base`.
    found
        Of `calibration.measure.rows.figures`.
    memory_bytes
        What each device may hold.

    Raises
    ------
    ConfigError
        A model without one of the figures.
    """
    one = {model: ModelTimes(model, [f for f in found if f.point.model == model]) for model in models}
    shape = base.iter_const.shape
    arrays: dict[str, Any] = {
        field.name: np.array(getattr(base, field.name)) for field in dataclasses.fields(CostTables)
    }
    for name in ("iter_const", "gpu_head", "stream_s", "cpu_base", "cpu_head", "cpu_kv", "cpu_attn", "prefill_cpu"):
        arrays[name] = np.zeros(shape)
    for m, model in enumerate(models):
        for name, value in one[model].entries(base, m).items():
            arrays[name][m] = value
    arrays["save_s"][:], arrays["kv_out_cap"][:], arrays["kv_in_cap"][:] = copies(found, base, models)
    arrays["gpu_bytes"][:] = memory_bytes
    arrays["stream_min_tokens"][:] = 10**9
    arrays["operation_share"][:] = max(0.0, statistics.mean(slowdowns(found, BESIDE_LOAD) or [0.0]))
    arrays["link_in_rate"][:] = max(arrays["link_in_cap"].max(), arrays["kv_in_cap"].max())
    arrays["link_out_rate"][:] = arrays["kv_out_cap"].max()
    arrays["disk_rate"][:] = arrays["disk_cap"].max()
    return CostTables(**arrays)


class ModelTimes:
    """The figures of one model."""

    def __init__(self, model: str, found: Sequence[Figures]) -> None:
        self.model, self.found = model, found

    def seconds(self, **fields: Any) -> list[tuple[Point, float]]:
        """(point, median seconds) of the points that have these fields. Raises ConfigError if there is none."""
        wanted = [f for f in self.found if all(getattr(f.point, key) == value for key, value in fields.items())]
        if not wanted:
            said = ", ".join(f"{key}={value}" for key, value in fields.items())
            raise ConfigError(f"model {self.model} was not measured with {said}; accepted: a complete measurement")
        return [(f.point, f.seconds) for f in wanted]

    def entries(self, base: CostTables, m: int) -> dict[str, Any]:
        """The model's row of each array."""
        knots, slopes, step = self._depth()
        prefill, pairs = self._prefill(step)
        warm, cold = self._load("page_cache"), self._load("disk")
        weights, file = base.gpu_weight_bytes[m].max(), base.file_bytes[m]
        return {
            "gpu_base": step,
            "gpu_kv": slopes[0],
            "depth_knot": _padded(knots, np.inf),
            "depth_gpu": _padded([slope / slopes[0] for slope in slopes], 1.0),
            "batch_gpu": self._batch(step, base.batch_gpu.shape[2]),
            "prefill_gpu": prefill,
            "prefill_gpu_stream": prefill,
            "gpu_attn": pairs,
            "init_s": SHORT_S,
            "link_in_cap": weights / (warm - SHORT_S),
            "disk_cap": file / max(cold - warm, file / FASTEST),
            "unload_s": max(SHORT_S, self.seconds(operation="unload")[0][1]),
        }

    def _load(self, tier: str) -> float:
        return self.seconds(operation="load", tier=tier, mode="read")[0][1]

    def _depth(self) -> tuple[list[float], list[float], float]:
        """(knots, seconds per token of depth from each on, seconds of a step at depth 0), at batch 1."""
        points = sorted((p.depth + p.tokens / 2, s) for p, s in self.seconds(operation="decode", batch=1))
        depths, seconds = np.array([d for d, _ in points]), np.maximum.accumulate([s for _, s in points])
        if len(depths) == 1:
            return [0.0], [SHORT_S * 1e-6], float(seconds[0])
        slopes = np.maximum(np.diff(seconds) / np.diff(depths), 1e-12)[:NUM_KNOTS]
        knots = [0.0, *depths[1 : len(slopes)]]
        return [float(k) for k in knots], [float(s) for s in slopes], float(seconds[0] - slopes[0] * depths[0])

    def _deeper(self, depth: float) -> float:
        """Seconds that one sequence's context adds to a step."""
        knots, slopes, _ = self._depth()
        ends = [*knots[1:], np.inf]
        return sum(s * max(0.0, min(depth, end) - begin) for begin, end, s in zip(knots, ends, slopes, strict=True))

    def _batch(self, step: float, largest: int) -> FloatArray:
        """Step time over that at batch 1, context taken off: mean over the depths measured, linear between."""
        ratios: dict[int, list[float]] = {1: [1.0]}
        for point, seconds in self.seconds(operation="decode"):
            if point.batch > 1:
                context = point.batch * self._deeper(point.depth + point.tokens / 2)
                ratios.setdefault(point.batch, []).append(max(1.0, (seconds - context) / step))
        known = sorted(ratios)
        means = [statistics.mean(ratios[b]) for b in known]
        wanted = np.arange(1, largest + 1)
        beyond = (means[-1] - means[-2]) / (known[-1] - known[-2]) if len(known) > 1 else 1.0
        table: FloatArray = np.interp(wanted, known, means) + np.maximum(0, wanted - known[-1]) * beyond
        return table

    def _prefill(self, step: float) -> tuple[float, float]:
        """Seconds per token and per pair of tokens, beyond a step's."""
        points = [(p.tokens, s - step) for p, s in self.seconds(operation="prefill")]
        tokens, seconds = np.array(points, np.float64).T
        terms = np.array([tokens, tokens**2 / 2]).T
        found, _ = nnls(terms / seconds[:, None], np.ones(len(seconds)))
        return float(found[0]), float(found[1])


def copies(found: Sequence[Figures], base: CostTables, models: Sequence[str]) -> tuple[float, float, float]:
    """(seconds of every save or restore, bytes/s out, bytes/s in), of the KV bytes that the simulator counts."""
    rows, seconds = [], []
    for one in found:
        if one.point.operation in ("save", "restore") and one.point.model in models:
            size = one.point.tokens * float(base.kv_gpu_bytes[models.index(one.point.model)].max())
            out = one.point.operation == "save"
            rows.append([1.0, size if out else 0.0, 0.0 if out else size])
            seconds.append(one.seconds)
    if not rows:
        raise ConfigError("no save or restore was measured; accepted: a complete measurement")
    scaled = np.array(rows) / np.array(seconds)[:, None]
    scale = scaled.max(axis=0)
    fixed, save, restore = nnls(scaled / scale, np.ones(len(rows)))[0] / scale
    return max(SHORT_S, float(fixed)), min(FASTEST, 1 / max(save, 1e-30)), min(FASTEST, 1 / max(restore, 1e-30))


def _padded(values: Sequence[float], rest: float) -> FloatArray:
    return np.array([*values, *[rest] * (NUM_KNOTS - len(values))])
