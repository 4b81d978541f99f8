"""How many experts a batch reaches: one number out of batch series of three mixtures of experts on one machine.

The same machine ran a dense model, whose growth with the batch is that of the weights that all requests share. What a
mixture of experts grows by beyond it are experts. Routing prefers some, so that a batch reaches fewer than at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from mmsched_env.costmodel import roofline
from mmsched_env.costmodel.number import Curve
from mmsched_env.costmodel.profile import ModelProfile
from mmsched_env.errors import ConfigError

from . import decode
from .loglinear import Fit
from .names import Spec, model_of
from .schema import Measurement

FloatArray = NDArray[np.float64]

TABLE = "batches.csv"

SOURCE = "llama-batched-bench on a DGX Spark; https://github.com/ggml-org/llama.cpp/blob/4c7e9893/benches/dgx-spark.md"

Reach = tuple[float, float, int]
"""the power (GpuProfile.expert_reach), its relative standard error by leaving out each model, number of models"""


@dataclass(frozen=True)
class Series:
    """Decode steps of one model at several batch sizes."""

    model: ModelProfile
    batch: FloatArray
    seconds: FloatArray
    launches_s: float

    @property
    def per_byte(self) -> float:
        """Seconds a byte, from the step of one sequence."""
        here = roofline.sides(self.model, roofline.units(self.model))[0]
        return float(self.seconds[0] - self.launches_s) / (here.read + here.head)

    def predicted(self, grown: FloatArray) -> FloatArray:
        """Steps with what is read of the layers `grown` so many times."""
        here = roofline.sides(self.model, roofline.units(self.model))[0]
        return self.launches_s + self.per_byte * (here.head + here.read * grown)


def series(rows: Sequence[Measurement], decoded: Fit, specs: dict[str, Spec]) -> list[Series]:
    """Of each series of the table, in its order.

    Raises
    ------
    ConfigError
        A model the catalogue does not know, or a series that does not begin with a single sequence.
    """
    found = []
    for name in dict.fromkeys(row.series for row in rows):
        own = [row for row in rows if row.series == name]
        model = model_of(own[0].model, own[0].quant, own[0].params_b)
        if model is None or own[0].batch != 1:
            raise ConfigError(f"{TABLE}: series {name}; accepted: a model of the catalogue, from batch 1 on")
        batch = np.array([row.batch for row in own], dtype=np.float64)
        found.append(
            Series(model, batch, batch / np.array([row.value for row in own]), _launches(model, decoded, specs))
        )
    return found


def _launches(model: ModelProfile, decoded: Fit, specs: dict[str, Spec]) -> float:
    """What launching its layers takes on GPUs in general."""
    layer = math.exp(decoded.log(decode.launch_factors(None, "", False, specs))[0])
    expert = math.exp(decoded.log(((("expert layer",), 1.0),))[0]) if model.architecture.experts else 0.0
    return model.architecture.layers * layer * (1 + expert)


def dense_curve(one: Series) -> Curve:
    """Growth of a dense model's layers with the batch."""
    here = roofline.sides(one.model, roofline.units(one.model))[0]
    grown = (one.seconds - one.launches_s - one.per_byte * here.head) / (one.per_byte * here.read)
    return Curve(tuple(zip(one.batch.tolist(), grown.tolist(), strict=True)), "relative", "fitted", SOURCE)


def errors(one: Series, dense: Curve, reach: float) -> FloatArray:
    """Relative errors on the seconds of a step, beyond the single sequence that sets the rate."""
    table = roofline.grown(one.model, dense, int(one.batch[-1]), reach)
    grown = table[one.batch.astype(int) - 1]
    result: FloatArray = one.predicted(grown)[1:] / one.seconds[1:] - 1
    return result


def split(found: Sequence[Series]) -> tuple[Curve, list[Series]]:
    """Growth of the dense model, and the mixtures of experts."""
    (dense,) = (one for one in found if one.model.architecture.experts is None)
    return dense_curve(dense), [one for one in found if one.model.architecture.experts]


def fit_reach(rows: Sequence[Measurement], decoded: Fit, specs: dict[str, Spec]) -> Reach:
    """The power that fits all mixtures of experts best, by relative errors."""
    dense, experts = split(series(rows, decoded, specs))
    alone = [best(dense, [other for other in experts if other is not one]) for one in experts]
    value = best(dense, experts)
    # The jackknife's standard error.
    spread = math.sqrt((len(alone) - 1) / len(alone) * sum((other - np.mean(alone)) ** 2 for other in alone)) / value
    return value, spread, len(experts)


def best(dense: Curve, experts: Sequence[Series]) -> float:
    """Least squares of the logarithm."""

    def cost(reach: float) -> float:
        return float(sum(np.sum(np.log1p(errors(one, dense, reach)) ** 2) for one in experts))

    return float(minimize_scalar(cost, bounds=(0.1, 1.0), method="bounded", options={"xatol": 1e-6}).x)


def left_out(rows: Sequence[Measurement], decoded: Fit, specs: dict[str, Spec]) -> Mapping[str, FloatArray]:
    """Relative errors of each mixture of experts, with the power fitted to the others."""
    dense, experts = split(series(rows, decoded, specs))
    return {
        one.model.name: errors(one, dense, best(dense, [other for other in experts if other is not one]))
        for one in experts
    }
