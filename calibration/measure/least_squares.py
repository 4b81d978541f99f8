"""Non-negative least squares on relative errors: seconds per unit of each kind of work, none of them negative."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from mmsched_env.costmodel.profile import FitError

NARROWEST, WIDEST = 0.001, 0.99
"""relative standard errors stated at least and at most"""

Terms = dict[str, float]
"""term -> units of its work, or seconds a unit"""


@dataclass(frozen=True)
class Fit:
    """Seconds per unit of work, by term."""

    values: Terms
    in_sample: float
    leave_out: float
    worst: float
    rows: int
    left_out: str
    spreads: Terms
    """relative standard errors of the values"""

    def seconds(self, terms: Terms) -> float:
        """What the fit says of some work."""
        return sum(work * self.values.get(name, 0.0) for name, work in terms.items())

    def error(self) -> FitError:
        """As a profile states it."""
        return FitError(self.rows, self.in_sample, self.leave_out, self.worst, self.left_out)


@dataclass(frozen=True)
class Observation:
    """Work of each kind, and the seconds it took."""

    terms: Terms
    seconds: float
    group: str
    """left out together"""


def fit(observations: Sequence[Observation]) -> Fit:
    """Non-negative seconds per unit of each term, least squares of relative errors; each group left out once."""
    values = _solve(observations)
    inside = [abs(_seconds(values, o.terms) / o.seconds - 1) for o in observations]
    groups = sorted({o.group for o in observations})
    outside: list[float] = []
    for group in groups if len(groups) > 1 else []:
        rest = _solve([o for o in observations if o.group != group])
        known = [o for o in observations if o.group == group and all(name in rest for name in o.terms)]
        outside += [abs(_seconds(rest, o.terms) / o.seconds - 1) for o in known]
    left = outside or inside
    alone = "nothing: one model alone was measured" if len(groups) == 1 else "nothing: each model has a rate of its own"
    what = "one model" if outside else alone
    errors = statistics.median(inside), statistics.median(left), max(left)
    return Fit(values, *errors, len(observations), what, _jackknife(observations, values))


def _jackknife(observations: Sequence[Observation], values: Terms) -> Terms:
    """Relative standard errors by leaving out each observation in turn. What came out as zero has none: WIDEST."""
    count = len(observations)
    solved = [_solve([o for o in observations if o is not left]) for left in observations] if count > 1 else []
    spreads = {}
    for name, value in values.items():
        found = [one[name] for one in solved if name in one]
        squares = sum((x - value) ** 2 for x in found) * (count - 1) / count
        spreads[name] = float(np.clip(squares**0.5 / value, NARROWEST, WIDEST)) if value > 0 and found else WIDEST
    return spreads


def _solve(observations: Sequence[Observation]) -> Terms:
    names = sorted({name for o in observations for name in o.terms})
    matrix = np.array([[o.terms.get(name, 0.0) / o.seconds for name in names] for o in observations])
    scale = np.where(matrix.max(axis=0) > 0, matrix.max(axis=0), 1.0)
    found = nnls(matrix / scale, np.ones(len(observations)))[0] / scale
    return dict(zip(names, map(float, found), strict=True))


def _seconds(values: Terms, terms: Terms) -> float:
    return sum(work * values[name] for name, work in terms.items())
