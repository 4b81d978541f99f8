"""One figure of a profile and the checks that every figure passes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

from mmsched_env.errors import ConfigError, unknown_name

from .shapes import RECIPES

PROVENANCES = ("measured", "imported", "fitted", "predicted", "assumed")


@dataclass(frozen=True)
class Number:
    """One figure and where it came from."""

    value: float
    unit: str
    provenance: str
    source: str
    spread: float | None = None
    """relative standard error; None: not known"""


@dataclass(frozen=True)
class Curve:
    """Knots (batch size, relative step time), first knot (1, 1), and where they came from."""

    value: tuple[tuple[float, float], ...]
    unit: str
    provenance: str
    source: str
    spread: float | None = None
    """relative standard error of every knot but the first; None: not known"""


MOST_DEVIATIONS = 2.0
"""standard errors that a drawn figure is at most off by"""


def drawn(figure: Number | Curve, deviations: float) -> Number | Curve:
    """The figure, off by `deviations` of its standard error (log-normally, so that it stays positive).

    A figure without a stated error is as it is. Of a curve the first knot stays, it is 1 by definition.
    """
    factor = math.exp((figure.spread or 0.0) * max(-MOST_DEVIATIONS, min(MOST_DEVIATIONS, deviations)))
    if isinstance(figure, Curve):
        return replace(figure, value=tuple((batch, 1 + (time - 1) * factor) for batch, time in figure.value))
    return replace(figure, value=figure.value * factor)


def number_or_curve(kind: Any, unit: str, data: Any, where: str) -> Number | Curve | dict[str, Number]:
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is {data!r}; accepted: value, unit, provenance and source")
    if kind is Curve:
        return _curve(data, unit, where)
    if kind is Number:
        return _number(data, unit, where)
    if not data or any(q not in RECIPES for q in data):
        raise ConfigError(f"{where} has {', '.join(data) or 'nothing'}; accepted: {', '.join(RECIPES)}")
    return {quant: _number(entry, unit, f"{where}.{quant}") for quant, entry in data.items()}


def _number(data: dict[str, Any], unit: str, where: str) -> Number:
    _check_number(data, unit, where)
    value = data["value"]
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    # A rate of zero would be a division by zero; a duration of zero is a fair fit, and a share of zero is none.
    may_be_zero = unit in ("s", "share")
    if not good or (value == 0 and not may_be_zero):
        raise ConfigError(f"{where}.value is {value!r}; accepted: a finite number {'>=' if may_be_zero else '>'} 0")
    return Number(float(value), unit, data["provenance"], data["source"], data.get("spread"))


def _curve(data: dict[str, Any], unit: str, where: str) -> Curve:
    _check_number(data, unit, where)
    try:
        knots = tuple((float(b), float(t)) for b, t in data["value"])
    except (TypeError, ValueError):
        knots = ()
    rising = all(b0 < b1 and t0 <= t1 for (b0, t0), (b1, t1) in itertools.pairwise(knots))
    if len(knots) < 2 or knots[0] != (1.0, 1.0) or not rising or not all(math.isfinite(t) for _, t in knots):
        raise ConfigError(
            f"{where}.value is {data['value']!r}; accepted: [batch, relative time] pairs rising from [1, 1]"
        )
    return Curve(knots, unit, data["provenance"], data["source"], data.get("spread"))


def _check_number(data: Any, unit: str, where: str) -> None:
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is {data!r}; accepted: value, unit, provenance and source")
    keys = {"value", "unit", "provenance", "source"}
    check_keys(data, keys, keys | {"spread"}, where)
    if data["unit"] != unit:
        raise ConfigError(f"{where}.unit is {data['unit']!r}; accepted: {unit}")
    spread = data.get("spread", 0.0)
    if not isinstance(spread, (int, float)) or isinstance(spread, bool) or not 0 <= spread < math.inf:
        raise ConfigError(f"{where}.spread is {spread!r}; accepted: a finite relative standard error >= 0")
    check_origin(data, where)


def check_origin(data: dict[str, Any], where: str) -> None:
    if data["provenance"] not in PROVENANCES:
        raise ConfigError(f"{where}.provenance is {data['provenance']!r}; accepted: {', '.join(PROVENANCES)}")
    if not isinstance(data["source"], str) or not data["source"].strip():
        raise ConfigError(
            f"{where}.source is {data['source']!r}; accepted: where the number comes from, or why assumed"
        )


def check_keys(data: dict[str, Any], needed: set[str], known: set[str], where: str) -> None:
    missing = sorted(needed - set(data))
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} missing; accepted: {', '.join(sorted(known))}")
    for key in data:
        if key not in known:
            raise unknown_name("profile key", f"{where}: {key}", known)
