"""A replay in words, tables and pictures."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation
from mmsched_env.costmodel.tables import CostTables
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.workload.trace import RequestTrace

from ..atomic import write_atomic
from . import compare, plots
from .mirror import simulation_with
from .real import Outcome
from .retime import retime, simulate
from .scenarios import Scenario


@dataclass(frozen=True)
class Replay:
    """What a replay needs, once calibrated."""

    scenario: Scenario
    config: EnvConfig
    tables: CostTables
    trace: RequestTrace
    seed: int


def report(replay: Replay, real: Mapping[str, Sequence[Outcome]], where: str, out: Path) -> str:
    """The three levels, the ranking, and the pictures. `where`: the machine, one line."""
    first = next(iter(real))
    free = {p: simulate(_simulation(replay), make_policy(p)[1], replay.trace, replay.seed) for p in real}
    forced = [retime(_simulation(replay), one, replay.trace, replay.seed) for one in real[first]]
    for name, draw in (("scatter", plots.scatter), ("timelines", plots.timelines)):
        draw(out / f"{name}.png", real[first][0], forced[0][0], free[first], replay.scenario.models)
    runs = f"{len(real[first])} real run{'s' if len(real[first]) > 1 else ''}"
    parts = [
        f"# Replay of {replay.scenario.name}, {len(replay.trace)} requests, policy {first}, {runs}",
        where,
        operations_table(real[first], replay.tables),
        retimed_table(real[first], forced),
        free_table(real[first], free[first]),
        repeats_line(real[first]),
    ]
    if len(real) > 1:
        parts.append(ranking_table(real, free))
    results = {
        name: {"real": [compare.figures_of(o) for o in real[name]], "simulated": compare.figures_of(free[name])}
        for name in real
    }
    write_atomic(out / "figures.json", json.dumps(results, indent=1))
    return "\n\n".join(parts) + "\n"


def _simulation(replay: Replay) -> Simulation:
    return simulation_with(replay.config, replay.tables)


def operations_table(real: Sequence[Outcome], tables: CostTables) -> str:
    """Level 1: single operations by the calibrated tables."""
    lines = [
        "## Single operations, predicted over measured",
        "",
        "| operation | number | together | median |",
        "|---|---|---|---|",
    ]
    for what, (count, together, median) in compare.operations(real, tables).items():
        lines.append(f"| {what} | {count} | {together:+.1%} | {median:+.1%} |")
    return "\n".join(lines)


def retimed_table(real: Sequence[Outcome], forced: Sequence[tuple[Outcome, int]]) -> str:
    """Level 2: the real decisions, re-timed."""
    lines = ["## The real decisions, re-timed by the simulator", ""]
    lines += [
        "| run | busy | loading | E2E a request: median | p90 | decisions that had lost their meaning |",
        "|---|---|---|---|---|---|",
    ]
    for number, (one, (other, missed)) in enumerate(zip(real, forced, strict=True)):
        a, b, error = compare.figures_of(one), compare.figures_of(other), compare.per_request(one, other)
        busy, load = b["busy_s"] / a["busy_s"] - 1, b["load_s"] / a["load_s"] - 1
        lines.append(
            f"| {number} | {busy:+.1%} | {load:+.1%} | {error.median:.1%} | {error.p90:.1%} | {missed} of {len(one.decisions)} |"
        )
    return "\n".join(lines)


def free_table(real: Sequence[Outcome], free: Outcome) -> str:
    """Level 3: the policy decides in simulation."""
    lines = [
        "## Left to itself",
        "",
        "| figure | measured | sd of a run | simulated | error | bound | |",
        "|---|---|---|---|---|---|---|",
    ]
    for band in compare.bands(real, free):
        sd = "" if band.deviation is None else f"{band.deviation:.1%}"
        met = "met" if band.met else "missed"
        lines.append(
            f"| {band.figure} | {band.real:.4g} | {sd} | {band.simulated:.4g} | {band.error:+.1%} | {band.bound:.1%} | {met} |"
        )
    same = [compare.agreement(one.decisions, free.decisions) for one in real]
    lines += ["", f"Decisions in common with the real runs: {', '.join(f'{x:.0%}' for x in same)}"]
    return "\n".join(lines)


def repeats_line(real: Sequence[Outcome]) -> str:
    """Reality against itself."""
    if len(real) == 1:
        return "One real run: its own spread is not known."
    found = compare.pairs(real)
    medians = ", ".join(f"{error.median:.1%}" for error, _ in found)
    same = ", ".join(f"{share:.0%}" for _, share in found)
    return f"Real runs against each other: E2E a request, median difference {medians}; decisions in common {same}"


def ranking_table(real: Mapping[str, Sequence[Outcome]], free: Mapping[str, Outcome]) -> str:
    """Policies by mean E2E, measured and simulated."""
    runs = {p: [o.summary["mean_e2e_ms"] for o in real[p]] for p in real}
    means = {p: (float(np.mean(runs[p])), free[p].summary["mean_e2e_ms"]) for p in real}
    measured, simulated = compare.ranking(means)
    lines = ["## Policies by mean E2E", ""]
    lines += ["| policy | measured, ms | runs | simulated, ms | error |", "|---|---|---|---|---|"]
    for p in measured:
        one, other = means[p]
        each = ", ".join(f"{value:.0f}" for value in runs[p])
        lines.append(f"| {p} | {one:.0f} | {each} | {other:.0f} | {other / one - 1:+.1%} |")
    same = "the same" if measured == simulated else f"not the same: simulated {', '.join(simulated)}"
    lines += ["", f"The order is {same}."]
    apart = compare.told_apart(runs)
    if apart is not None:
        close = [pair for pair in itertools.combinations(measured, 2) if pair not in apart]
        turned = [f"{a} before {b}" for a, b in apart if means[a][1] > means[b][1]]
        ties = ", ".join(f"{a} and {b}" for a, b in close) or "none"
        lines.append(f"Closer than two standard errors of their difference: {ties}.")
        lines.append(f"Of the {len(apart)} other pairs simulation turns round: {', '.join(turned) or 'none'}.")
    return "\n".join(lines)
