"""`mmsched calibrate replay key=value ...`"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsched_env.config import EnvConfig, build
from mmsched_env.costmodel.tables import CostTables, build_tables
from mmsched_env.errors import ConfigError
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.workload.trace import RequestTrace

from ..atomic import write_atomic
from ..measure import machine
from ..measure.command import ended_by_signal, settings
from ..measure.llama_cpp import READ, LlamaCpp
from ..measure.points import Preset
from ..measure.results import Results, locked
from ..measure.rows import figures
from ..measure.runner import Rules, Run
from . import compare, plots
from .mirror import simulation_with
from .real import Outcome, RealSystem
from .retime import retime, simulate
from .scenarios import Scenario, scenario_of
from .timings import measured_tables

SEED = 2**62
"""traces of a replay are of no training seed"""


@dataclass(frozen=True)
class ReplayConfig:
    """Settings of a replay."""

    scenario: str = "steady"
    """steady, swap-thrash or preemption-heavy"""
    policies: tuple[str, ...] = ()
    """rules; the first one is compared in full, all are ranked; empty: the scenario's"""
    requests: int = 0
    """0: the scenario's"""
    repeats: int = 5
    """real runs of the first policy; of the others there is one"""
    seed: int = 0
    out: str = "runs/replay"
    """folder of the samples, the runs and the report; must be new or empty"""
    cache: str = "~/.cache/mmsched/models"
    """folder of the model files"""
    cores: tuple[int, ...] = ()
    """processor cores of the device; empty: the last one"""
    server: str = ""
    """path of a llama-server; empty: xllamacpp"""
    rounds: int = 3
    """calibration right before: samples of every figure"""
    tries: int = 2
    max_foreign: float = 0.1
    """cores that other processes may use beside a sample of the calibration"""
    nice: int = 0
    """priority of the servers; below 0 needs root"""

    def __post_init__(self) -> None:
        scenario_of(self.scenario)
        for key, low in {"requests": 0, "repeats": 1, "rounds": 1, "tries": 1, "seed": 0}.items():
            if getattr(self, key) < low:
                raise ConfigError(f"{key} is {getattr(self, key)}; accepted: a whole number >= {low}")
        have = os.sched_getaffinity(0)
        if not set(self.cores) <= have:
            raise ConfigError(f"cores is {list(self.cores)}; accepted: of {sorted(have)}")
        if self.nice < 0 and os.geteuid() != 0:
            raise ConfigError(f"nice is {self.nice}; accepted: 0 or more without root")


@dataclass(frozen=True)
class Replay:
    """What a replay needs, once calibrated."""

    scenario: Scenario
    config: EnvConfig
    tables: CostTables
    trace: RequestTrace
    seed: int


def main(arguments: Sequence[str]) -> int:
    """Calibrate, replay, simulate, compare; print and write the report. Returns the exit status.

    Raises
    ------
    ConfigError
        A setting that cannot be used, a folder in use or not empty, no room on the disk.
    MmschedError
        A server that died; runs that had ended are kept.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print("usage: mmsched calibrate replay key=value ...\n")
        print("\n".join(f"  {field.name}={field.default}" for field in dataclasses.fields(ReplayConfig)))
        return 0
    config = build(ReplayConfig, settings(arguments))
    out = Path(config.out)
    for policy in config.policies:
        make_policy(policy)
    with locked(out), ended_by_signal():
        if any(out.glob("real-*")):
            raise ConfigError(f"out={out} holds an earlier replay; accepted: another folder")
        return run(config, out)


def run(config: ReplayConfig, out: Path) -> int:
    """The command in a folder that is locked."""
    scenario = scenario_of(config.scenario)
    policies = config.policies or (scenario.policy,)
    cores = config.cores or (max(os.sched_getaffinity(0)),)
    backend = LlamaCpp(
        Path(config.cache).expanduser(),
        cores,
        out / "server.log",
        config.server,
        seats=scenario.seats,
        context=scenario.context,
        ubatch=scenario.ubatch,
        nice=config.nice,
        modes=(READ,),
    )
    try:
        for model in scenario.models:
            backend.prepare(model)
        replay = calibrated(config, scenario, backend, out)
        system = RealSystem(
            simulation_with(replay.config, replay.tables),
            [backend.launcher],
            [backend.path_of(model) for model in scenario.models],
            backend.settings,
        )
        try:
            real = {
                policy: list(runs(system, replay, policy, config.repeats if policy == policies[0] else 1, out))
                for policy in policies
            }
        finally:
            system.close()
    finally:
        backend.close()
    text = report(config, replay, real, out)
    write_atomic(out / "report.md", text)
    print(text)
    return 0


def calibrated(config: ReplayConfig, scenario: Scenario, backend: LlamaCpp, out: Path) -> Replay:
    """Measure what the scenario's trace will ask for, right before it is asked for."""
    env = scenario.config(config.requests)
    trace = env.workload.sample(SEED + config.seed, env.models.names)
    preset = preset_for(trace, scenario.seats, config.rounds)
    header = {"scenario": config.scenario, "seed": config.seed, "machine": machine.description()}
    results = Results(out, header | {"engine": backend.engine, "engine_version": backend.version})
    rules = Rules(config.tries, config.max_foreign, config.seed)
    Run(backend, scenario.models, preset, rules, results).go()
    base = build_tables(env.cluster, env.models, env.limits.levels, env.limits.batch)
    tables = measured_tables(base, scenario.models, figures(results.samples), int(scenario.memory_gb * 1e9))
    return Replay(scenario, env, tables, trace, config.seed)


def preset_for(trace: RequestTrace, seats: int, rounds: int) -> Preset:
    """Prompts, depths and batches of a trace."""
    prompt = np.asarray(trace.prompt_tokens)
    context = prompt + np.asarray(trace.output_tokens)
    quantiles = [int(q) for q in np.quantile(prompt, [0.1, 0.5, 1.0])]
    depths = [0, int(np.median(context)), int(context.max())]
    steps = int(np.clip(np.median(trace.output_tokens), 4, 32))
    batches = tuple(range(1, seats + 1))
    caches = (int(np.median(context)), int(context.max()))
    return Preset(tuple(sorted(set(quantiles))), tuple(depths), batches, tuple(depths[:2]), caches, steps, rounds)


def runs(system: RealSystem, replay: Replay, policy: str, repeats: int, out: Path) -> Iterable[Outcome]:
    """Real runs, each written as it ends."""
    for number in range(repeats):
        outcome = system.run(make_policy(policy)[1], replay.trace, replay.seed)
        write_run(out / f"real-{policy}-{number}", outcome)
        print(f"{policy}, real run {number}: mean E2E {outcome.summary['mean_e2e_ms']:.0f} ms", flush=True)
        yield outcome


def write_run(stem: Path, outcome: Outcome) -> None:
    """Requests, operations and decisions of a run, a CSV each."""
    columns = compare.rows_of(outcome)
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    write_atomic(stem.with_name(f"{stem.name}-requests.csv"), _csv(list(columns), rows))
    fields = [field.name for field in dataclasses.fields(type(outcome.operations[0]))] if outcome.operations else []
    write_atomic(
        stem.with_name(f"{stem.name}-operations.csv"), _csv(fields, map(dataclasses.astuple, outcome.operations))
    )
    names = ("time_s", "kind", "request", "model", "gpu", "level", "scope")
    made = ([getattr(d, name) if name != "kind" else d.kind.name for name in names] for d in outcome.decisions)
    write_atomic(stem.with_name(f"{stem.name}-decisions.csv"), _csv(names, made))


def _csv(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def report(config: ReplayConfig, replay: Replay, real: dict[str, list[Outcome]], out: Path) -> str:
    """The three levels, the ranking, and the pictures."""
    first = next(iter(real))
    free = {p: simulate(_simulation(replay), make_policy(p)[1], replay.trace, replay.seed) for p in real}
    forced = [retime(_simulation(replay), one.decisions, replay.trace, replay.seed) for one in real[first]]
    for name, draw in (("scatter", plots.scatter), ("timelines", plots.timelines)):
        draw(out / f"{name}.png", real[first][0], forced[0][0], free[first], replay.scenario.models)
    write_run(out / f"simulated-{first}", free[first])
    parts = [
        f"# Replay of {config.scenario}, {len(replay.trace)} requests, policy {first}, {len(real[first])} real runs",
        f"{machine.host()}; cores {list(config.cores) or [max(os.sched_getaffinity(0))]}, priority {config.nice}",
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


def _simulation(replay: Replay) -> Any:
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
        "| run | busy | loading | E2E a request: median | p90 | decisions that could not be taken |",
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


def ranking_table(real: dict[str, list[Outcome]], free: dict[str, Outcome]) -> str:
    """Policies by mean E2E, measured and simulated."""
    means = {
        p: (float(np.mean([o.summary["mean_e2e_ms"] for o in real[p]])), free[p].summary["mean_e2e_ms"]) for p in real
    }
    measured, simulated = compare.ranking(means)
    lines = ["## Policies by mean E2E", "", "| policy | measured, ms | simulated, ms | error |", "|---|---|---|---|"]
    lines += [
        f"| {p} | {means[p][0]:.0f} | {means[p][1]:.0f} | {means[p][1] / means[p][0] - 1:+.1%} |" for p in measured
    ]
    same = "the same" if measured == simulated else f"not the same: simulated {', '.join(simulated)}"
    return "\n".join([*lines, "", f"The order is {same}."])
