"""Two measurements of one box: do their profiles agree within what each states it may be off by?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsched_env.costmodel.number import Curve, Number
from mmsched_env.costmodel.profile import GpuProfile, HostProfile, load_gpu, load_host
from mmsched_env.errors import ConfigError

from .results import NAME, read
from .rows import Figures, figures

ERRORS = 2.0
"""standard errors of the difference that agreement allows"""

OWN = ("fitted", "measured")


@dataclass(frozen=True)
class Pair:
    """One figure of both."""

    what: str
    one: float
    other: float
    allowed: float
    """largest relative difference that the spreads explain"""

    @property
    def difference(self) -> float:
        return self.one / self.other - 1 if self.other else 0.0 if self.one == self.other else math.inf

    @property
    def agrees(self) -> bool:
        return abs(self.difference) <= self.allowed


def compared(ours: Path, theirs: Path) -> str:
    """Both folders' profiles, a line a number, and how many of their single figures agree.

    Raises
    ------
    ConfigError
        A folder without a measurement.
    """
    lines = [f"{'number of the profile':<28} {'this':>12} {'other':>12} {'difference':>11} {'allowed':>9}"]
    numbers = list(_profile_pairs(ours, theirs))
    for pair in numbers:
        mark = "" if pair.agrees else "  apart"
        lines.append(
            f"{pair.what:<28} {pair.one:>12.4g} {pair.other:>12.4g} {pair.difference:>+11.1%} {pair.allowed:>9.1%}{mark}"
        )
    points = list(_point_pairs(_figures(ours), _figures(theirs)))
    apart = [pair for pair in points if not pair.agrees]
    worst = max(points, key=lambda pair: abs(pair.difference), default=None)
    lines.append(f"profiles: {sum(pair.agrees for pair in numbers)} of {len(numbers)} numbers agree")
    lines.append(f"single figures: {len(points) - len(apart)} of {len(points)} agree")
    if worst:
        typical = sorted(abs(pair.difference) for pair in points)[len(points) // 2]
        lines.append(f"their difference: median {typical:.1%}; largest {worst.difference:+.1%} ({worst.what})")
    return "\n".join(lines)


def require(folder: Path) -> None:
    """Raises ConfigError for a folder without a measurement."""
    if not (folder / NAME).is_file():
        raise ConfigError(f"against={folder} holds no measurement; accepted: the out= of an earlier one")
    _name(folder, "gpus")


def _figures(folder: Path) -> list[Figures]:
    return figures(read(folder / NAME)[1])


def _point_pairs(ours: Sequence[Figures], theirs: Sequence[Figures]) -> Iterator[Pair]:
    """Medians of both, with the standard error that each one's spread gives its median."""
    other = {one.point: one for one in theirs}
    for one in ours:
        match = other.get(one.point)
        if match is not None and one.seconds and match.seconds:
            yield Pair(str(one.point), one.seconds, match.seconds, _allowed(_error(one), _error(match)))


def _error(one: Figures) -> float:
    """Relative standard error of the median of normal samples."""
    return (one.spread or 0.0) * math.sqrt(math.pi / 2 / one.repeats)


def _allowed(one: float, other: float) -> float:
    return ERRORS * math.hypot(one, other)


def _profile_pairs(ours: Path, theirs: Path) -> Iterator[Pair]:
    for kind, load in (("gpus", load_gpu), ("hosts", load_host)):
        sides = [dict(_numbers(load(_name(folder, kind), folder / "profiles"))) for folder in (ours, theirs)]
        for what, (value, spread) in sides[0].items():
            if what in sides[1]:
                other, error = sides[1][what]
                yield Pair(what, value, other, _allowed(spread, error))


def _name(folder: Path, kind: str) -> str:
    found = sorted((folder / "profiles" / kind).glob("*.yaml"))
    if not found:
        raise ConfigError(f"{folder} holds no profile; accepted: a measurement of models of the catalogue")
    return found[0].stem


def _numbers(profile: GpuProfile | HostProfile) -> Iterator[tuple[str, tuple[float, float]]]:
    """(name, (value, relative standard error)) of all that was measured itself."""
    for field in dataclasses.fields(profile):
        value = getattr(profile, field.name)
        if isinstance(value, Curve) and value.provenance in OWN:
            for at, height in value.value[1:]:
                yield f"{field.name}[{at:g}]", (height, value.spread or 0.0)
        elif isinstance(value, (Number, Mapping)):
            for name, number in {field.name: value}.items() if isinstance(value, Number) else value.items():
                if isinstance(number, Number) and number.provenance in OWN and number.spread is not None:
                    label = field.name if name == field.name else f"{field.name}.{name}"
                    yield label, (number.value, number.spread)
