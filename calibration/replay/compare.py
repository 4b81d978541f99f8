"""How far the simulator is from what happened, and how far reality is from itself."""

from __future__ import annotations

import difflib
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmsched_env.costmodel.tables import CostTables
from mmsched_env.sim import events

from .mirror import Decision
from .real import Operation, Outcome

FREE = ("mean_e2e_ms", "p50_e2e_ms", "p95_e2e_ms", "mean_ttft_ms", "duration_s", "load_s")
"""figures of an episode that are compared"""

FLOOR = 0.05
"""an error of this or less is accepted even where the real runs agree better"""


@dataclass(frozen=True)
class PerRequest:
    """Relative errors of the requests' E2E."""

    median: float
    p90: float


@dataclass(frozen=True)
class Band:
    """One figure of the free-running simulation against the real repeats."""

    figure: str
    real: float
    """mean of the repeats"""
    deviation: float | None
    """of one repeat, relative; None: there was one"""
    simulated: float

    @property
    def error(self) -> float:
        return self.simulated / self.real - 1 if self.real else 0.0

    @property
    def bound(self) -> float:
        """The larger of 5 % and twice the real runs' own standard deviation."""
        return max(FLOOR, 2 * (self.deviation or 0.0))

    @property
    def met(self) -> bool:
        return abs(self.error) <= self.bound


def per_request(real: Outcome, simulated: Outcome) -> PerRequest:
    """Of the simulated requests against the real ones."""
    error = np.abs(simulated.rows["e2e_s"] / real.rows["e2e_s"] - 1)
    return PerRequest(float(np.median(error)), float(np.percentile(error, 90)))


def figures_of(outcome: Outcome) -> dict[str, float]:
    """The compared figures of an episode, and the seconds its devices were busy with requests."""
    loads = seconds_between(outcome.log, events.LOAD_START, events.LOAD_END)
    busy = outcome.summary["gpu_busy_share"] * outcome.summary["duration_s"]
    chosen = {name: outcome.summary[name] for name in FREE if name in outcome.summary}
    return chosen | {"load_s": loads, "busy_s": busy}


def seconds_between(log: NDArray[np.void], begin: int, end: int) -> float:
    """Seconds from events of one kind to the next of another on the same instance, together."""
    since: dict[int, float] = {}
    total = 0.0
    for row in log:
        if row["kind"] == begin:
            since[int(row["instance"])] = float(row["time_s"])
        elif row["kind"] == end and int(row["instance"]) in since:
            total += float(row["time_s"]) - since.pop(int(row["instance"]))
    return total


def bands(real: Sequence[Outcome], simulated: Outcome) -> list[Band]:
    """The free-running simulation against the real repeats."""
    repeats, ours = [figures_of(outcome) for outcome in real], figures_of(simulated)
    found = []
    for name in FREE:
        values = [one[name] for one in repeats]
        mean = statistics.mean(values)
        deviation = statistics.stdev(values) / mean if len(values) > 1 and mean else None
        found.append(Band(name, mean, deviation, ours[name]))
    return found


def agreement(one: Sequence[Decision], other: Sequence[Decision]) -> float:
    """Share of the decisions that two runs have in common in the same order, of both runs' decisions."""
    a, b = ([decision.what for decision in run] for run in (one, other))
    return float(difflib.SequenceMatcher(None, a, b, autojunk=False).ratio())


def pairs(real: Sequence[Outcome]) -> list[tuple[PerRequest, float]]:
    """(per-request difference, decision agreement) of every two real repeats."""
    return [(per_request(a, b), agreement(a.decisions, b.decisions)) for a, b in itertools.combinations(real, 2)]


def operations(real: Sequence[Outcome], tables: CostTables) -> dict[str, tuple[int, float, float]]:
    """Kind of operation -> (how many, relative error of their seconds together, median of single ones'), of the tables."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for outcome in real:
        loaded: set[int] = set()
        for operation in outcome.operations:
            predicted = _predicted(operation, tables, operation.model not in loaded)
            if operation.what == "load":
                loaded.add(operation.model)
            groups.setdefault(operation.what, []).append((predicted, operation.seconds))
    return {
        what: (
            len(found),
            sum(p for p, _ in found) / sum(r for _, r in found) - 1,
            statistics.median(p / r - 1 for p, r in found),
        )
        for what, found in sorted(groups.items())
    }


def _predicted(operation: Operation, tables: CostTables, cold: bool) -> float:
    """Seconds by the tables, on GPU 0 at the top level."""
    m = operation.model
    if operation.what == "load":
        seconds = tables.init_s[m, 0] + tables.gpu_weight_bytes[m, -1] / tables.link_in_cap[m, 0]
        return float(seconds + (tables.file_bytes[m] / tables.disk_cap[m, 0] if cold else 0.0))
    if operation.what == "unload":
        return float(tables.unload_s[m, 0, -1])
    size = operation.size_bytes  # of the real cache: a little more than the keys and values
    rate = tables.kv_out_cap[0] if operation.what == "save" else tables.kv_in_cap[0]
    return float(tables.save_s[0] + size / rate)


def ranking(means: dict[str, tuple[float, float]]) -> tuple[list[str], list[str]]:
    """Policies from the lowest mean E2E up, (real, simulated); `means`: policy -> (real, simulated)."""
    return sorted(means, key=lambda p: means[p][0]), sorted(means, key=lambda p: means[p][1])


def told_apart(runs: Mapping[str, Sequence[float]]) -> list[tuple[str, str]] | None:
    """Pairs (lower, higher) whose means differ by more than two standard errors; None where no policy ran twice.

    The relative deviation of a run is pooled over the policies: two or three runs of one say little.
    """
    means = {p: statistics.mean(values) for p, values in runs.items()}
    again = [values for values in runs.values() if len(values) > 1]
    if not again:
        return None
    free = sum(len(values) - 1 for values in again)
    squares = sum((x / statistics.mean(values) - 1) ** 2 for values in again for x in values)
    deviation = math.sqrt(squares / free)

    def error(p: str) -> float:
        return deviation * means[p] / math.sqrt(len(runs[p]))

    ordered = itertools.combinations(sorted(means, key=lambda p: means[p]), 2)
    return [(a, b) for a, b in ordered if means[b] - means[a] > 2 * math.hypot(error(a), error(b))]
