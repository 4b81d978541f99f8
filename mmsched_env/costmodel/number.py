"""One figure of a profile and the checks that every figure passes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Curve:
    """Knots (batch size, relative step time), first knot (1, 1), and where they came from."""

    value: tuple[tuple[float, float], ...]
    unit: str
    provenance: str
    source: str


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
    # A rate of zero would be a division by zero; a duration of zero is a fair fit.
    if not good or (value == 0 and unit != "s"):
        raise ConfigError(f"{where}.value is {value!r}; accepted: a finite number {'>=' if unit == 's' else '>'} 0")
    return Number(float(value), unit, data["provenance"], data["source"])


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
    return Curve(knots, unit, data["provenance"], data["source"])


def _check_number(data: Any, unit: str, where: str) -> None:
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is {data!r}; accepted: value, unit, provenance and source")
    keys = {"value", "unit", "provenance", "source"}
    check_keys(data, keys, keys, where)
    if data["unit"] != unit:
        raise ConfigError(f"{where}.unit is {data['unit']!r}; accepted: {unit}")
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
