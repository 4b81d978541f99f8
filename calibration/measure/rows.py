"""Samples to figures, and figures to rows of the measurement schema."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mmsched_env.costmodel.profile import ModelProfile, load_model
from mmsched_env.errors import ConfigError

from .. import schema
from ..importers.names import model_of_tag
from ..schema import Measurement
from .points import Point
from .results import Sample

IN_SCHEMA = ("load", "unload", "prefill", "decode", "save", "restore", "copy_h2d", "copy_d2h")
"""footprints and swaps stay in the file of samples"""

PAGE_LOCKED = "torch CUDA"
"""engine whose caches are saved to page-locked memory"""


@dataclass(frozen=True)
class Figures:
    """The samples of one point."""

    point: Point
    seconds: float
    """median of the undisturbed samples; where sums are predicted: mean of all of them"""
    deviation: float | None
    """standard deviation of a sample, s; None: one sample"""
    repeats: int
    size_bytes: int
    disturbed: int
    """of them: samples that stayed disturbed; they count only where no sample was undisturbed"""

    @property
    def spread(self) -> float | None:
        """Relative standard deviation of a sample."""
        return None if self.deviation is None or self.seconds == 0 else self.deviation / self.seconds


def figures(samples: Iterable[Sample], for_sums: bool = False) -> list[Figures]:
    """One entry a point, in the order of the points.

    A machine is best described by what it does undisturbed. What many operations take together on a machine that is disturbed now and
    then is predicted by their mean, disturbed ones included: `for_sums`.
    """
    groups: defaultdict[Point, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.round >= 1:
            groups[sample.point].append(sample)
    return [_figures(point, groups[point], for_sums) for point in sorted(groups)]


def _figures(point: Point, samples: list[Sample], for_sums: bool) -> Figures:
    clean = [sample for sample in samples if not sample.disturbed]
    used = samples if for_sums else clean or samples
    center = statistics.mean if for_sums else statistics.median
    seconds = [sample.seconds for sample in used]
    size = int(statistics.median(sample.size_bytes for sample in used))
    deviation = statistics.stdev(seconds) if len(seconds) > 1 else None
    return Figures(point, center(seconds), deviation, len(used), size, 0 if clean else len(used))


def of_operation(found: Iterable[Figures], operation: str) -> list[tuple[Figures, ModelProfile]]:
    """Figures of an operation with the catalogue's model; those of other models are left out."""
    pairs = [(one, profile_of(one.point.model)) for one in found if one.point.operation == operation]
    return [(one, model) for one, model in pairs if model is not None]


def slowdowns(found: Sequence[Figures], operations: Collection[str]) -> list[float]:
    """How much longer what was measured beside something else took than alone, as a share; one entry a model and operation."""
    by_point = {one.point: one.seconds for one in found}
    shares = []
    for one in found:
        alone = dataclasses.replace(one.point, operation=one.point.operation.split("_")[0])
        if one.point.operation in operations and alone in by_point:
            shares.append(one.seconds / by_point[alone] - 1)
    return shares


def rows(
    found: Iterable[Figures], common: dict[str, Any], weights: dict[str, int], layers_known: bool = True
) -> list[Measurement]:
    """Measurements of the schema.

    Parameters
    ----------
    found
        What `figures` gives.
    common
        Columns that all rows share: gpu, num_gpus, host, engine, engine_version, ubatch, date, source.
    weights
        Bytes of each model's weights.
    layers_known
        Whether the points say where the layers were: a server that runs already has put them where it likes.
    """
    made = [_row(one, common, weights) for one in found if one.point.operation in IN_SCHEMA]
    return made if layers_known else [dataclasses.replace(row, n_gpu_layers=None) for row in made]


def _row(one: Figures, common: dict[str, Any], weights: dict[str, int]) -> Measurement:
    point = one.point
    columns: dict[str, Any] = {
        "series": f"{point.model} {point.operation}".strip(),
        "operation": point.operation,
        "repeats": one.repeats,
        "provenance": "measured",
        "note": _note(one),
    }
    if point.model:
        columns |= _model_columns(point)
    if point.tier:
        columns["tier"] = point.tier
    if point.mode in ("pinned", "pageable"):
        columns["pinned"] = point.mode == "pinned"
    if point.operation in ("save", "restore") and common.get("engine") == PAGE_LOCKED:
        columns["pinned"] = True
    if point.operation in ("prefill", "decode"):
        tokens = point.tokens if point.operation == "prefill" else point.batch
        rate = tokens / one.seconds
        columns |= {"value": rate, "unit": schema.RATE, "spread": None if one.spread is None else rate * one.spread}
        columns |= {"tokens": point.tokens, "depth": point.depth, "batch": point.batch}
        columns["size_bytes"] = weights.get(point.model) or None
        if point.operation == "decode":
            columns["ubatch"] = None
    else:
        columns |= {"value": one.seconds, "unit": schema.SECONDS, "spread": one.deviation}
        columns |= {"size_bytes": one.size_bytes or None, "tokens": point.tokens or None, "ubatch": None}
    return Measurement(**{**common, **columns})


def _note(one: Figures) -> str:
    parts = []
    if one.point.operation == "load":
        parts.append(
            f"load mode {one.point.mode}" + (", with the first token" if one.point.mode in ("mmap", "served") else "")
        )
    if one.disturbed:
        parts.append("the machine was busy beside every sample")
    return "; ".join(parts)


def _model_columns(point: Point) -> dict[str, Any]:
    model = profile_of(point.model)
    if model is None:
        name, quant = model_of_tag(point.model)
        return {"model": name, "quant": quant, "n_gpu_layers": point.n_gpu_layers}
    arch = model.architecture
    return {
        "model": point.model.removesuffix(f"-{model.quant}"),
        "quant": model.quant.upper(),
        "params_b": model.params / 1e9,
        "num_layers": arch.layers,
        "n_gpu_layers": point.n_gpu_layers,
    }


def profile_of(model: str) -> ModelProfile | None:
    """The catalogue's profile of a measured model; None for a file of the user's."""
    try:
        return load_model(model)
    except ConfigError:
        return None
