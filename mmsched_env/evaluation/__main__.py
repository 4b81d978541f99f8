"""`mmsched evaluate`: any set of policies on the same traces of any set of scenarios."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hydra.core.hydra_config import HydraConfig
from numpy.typing import NDArray
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import hydra_app
from ..bounds.fluid import weighted_e2e_lower_bound, why_no_bound
from ..config import EnvConfig
from ..costmodel.profile import profile_hash
from ..errors import ConfigError
from ..workload import summary as trace_summary
from ..workload.splits import seed_of
from .cells import Cell, Result, read, run_cells
from .policies import make_policy
from .report import (
    comparison_table,
    difference_of,
    machine,
    print_table,
    revision,
    suite_table,
    write_json,
    write_parquet,
)
from .stats import holm, interquartile_mean, mean_over_episodes, p_value, paired_difference, probability_of_improvement
from .tuned import tuned_entry

COMMAND = "evaluate"
KEY = "mean_e2e_ms"
"""the figure that policies are compared by"""


@dataclass(frozen=True)
class Contender:
    """A policy of the comparison; several entries: trainings of one learned policy with different seeds."""

    label: str
    entries: tuple[Any, ...]


def evaluate(config: DictConfig) -> None:
    """Run what the composed configuration asks for; print the tables, write requests.parquet and summary.json."""
    check(config)
    policies = config.policies
    contenders = contenders_of(OmegaConf.to_container(policies) if OmegaConf.is_config(policies) else policies)
    first_seed = seed_of(config.split, config.seed)
    seed_of(config.split, config.seed + config.episodes - 1, "seed + episodes")
    scenarios = {name: (scenario, hydra_app.env_config_of(scenario)) for name, scenario in _scenarios(config).items()}
    out = Path(hydra_app.output_folder())
    cells = [
        cell
        for name, (scenario, _) in scenarios.items()
        for cell in _cells(config, out / "cells", name, scenario, contenders, first_seed)
    ]
    for name, (_, env) in scenarios.items():
        _print_trace(name, env, first_seed)
    run_all(cells, config.processes or os.cpu_count() or 1)
    results: dict[str, Any] = {}
    tables: list[pa.Table] = []
    processor_s = 0.0
    for name, (scenario, env) in scenarios.items():
        mine = [(cell, read(cell)) for cell in cells if cell.scenario == name]
        tables += [_table(cell, result) for cell, result in mine]
        processor_s += sum(result.processor_s for _, result in mine)
        results[name] = summarise(env, contenders, mine)
        results[name]["config"] = OmegaConf.to_container(scenario, resolve=True)
        results[name]["entries"] = {cell.policy: json.loads(cell.entry) for cell, _ in mine if cell.member == 0}
        results[name]["lower_bound_ms"] = _lower_bounds(env, config)
        if config.scenarios is None and config.loads is None:
            print_scenario(name, contenders, results[name], mine)
    correct_for_many(results)
    if config.scenarios is not None or config.loads is not None:
        print_table(suite_table([c.label for c in contenders], results))
    write_parquet(out / "requests.parquet", tables)
    facts = {key: config[key] for key in ("split", "seed", "warmup", "tuned")}
    facts["policies"] = [{"label": c.label, "members": len(c.entries)} for c in contenders]
    facts["command"] = shlex.join(["mmsched", "evaluate", *HydraConfig.get().overrides.task])
    facts["processor_s"] = processor_s
    write_json(out / "summary.json", {"revision": revision(), "machine": machine(), **facts, "scenarios": results})
    print(f"wrote {out / 'requests.parquet'} and {out / 'summary.json'}")


def check(config: DictConfig) -> None:
    """Raises ConfigError for a value out of range."""
    for key, low, accepted in (
        ("episodes", 1, "a whole number >= 1"),
        ("processes", 0, "a whole number >= 0 (0: one a CPU)"),
    ):
        if not isinstance(config[key], int) or isinstance(config[key], bool) or config[key] < low:
            raise ConfigError(f"{key} is {config[key]!r}; accepted: {accepted}")
    if not isinstance(config.tuned, bool):
        raise ConfigError(f"tuned is {config.tuned!r}; accepted: true or false")
    if not isinstance(config.warmup, int | float) or not 0 <= config.warmup < 1:
        raise ConfigError(f"warmup is {config.warmup!r}; accepted: a share of the requests, from 0 to below 1")
    loads = config.loads
    if loads is not None and not (
        isinstance(loads, ListConfig) and len(loads) and all(isinstance(load, int | float) for load in loads)
    ):
        raise ConfigError(f"loads is {config.loads!r}; accepted: a list such as [0.5,0.7,0.9]")


def contenders_of(entries: Any) -> list[Contender]:
    """Entries of ``policies=[...]``; ``{name: x, checkpoints: [a.zip, b.zip]}`` is one policy with two members.

    Raises
    ------
    ConfigError
        No list, an entry twice, or one that makes no policy.
    """
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"policies is {entries!r}; accepted: a list such as [fcfs,mect,runs/x/best.zip]")
    contenders = []
    for entry in entries:
        if isinstance(entry, Mapping) and "checkpoints" in entry:
            rest = {key: value for key, value in entry.items() if key not in ("name", "checkpoints")}
            paths = entry["checkpoints"]
            if not isinstance(paths, list) or not paths:
                raise ConfigError(f"checkpoints is {paths!r}; accepted: a list such as [a/best.json,b/best.json]")
            members = tuple({"name": path, **rest} for path in paths)
            for member in members:
                make_policy(member)
            contenders.append(Contender(str(entry.get("name", "learned")), members))
        else:
            contenders.append(Contender(make_policy(entry)[0], (entry,)))
    labels = [contender.label for contender in contenders]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"policies has an entry twice: {', '.join(labels)}; accepted: each once")
    return contenders


def _scenarios(config: DictConfig) -> dict[str, DictConfig]:
    """scenario -> its composed configuration, at every load of ``loads``."""
    chosen = _chosen_scenarios(config)
    if config.loads is None:
        return chosen
    at_loads = {}
    for name, scenario in chosen.items():
        for load in config.loads:
            if "rho" not in scenario.workload:
                raise ConfigError(f"loads is given, but the workload of {name} has no rho; accepted: kind=generator")
            changed = scenario.copy()
            changed.workload.rho = load
            at_loads[f"{name} rho={load:g}"] = changed
    return at_loads


def _chosen_scenarios(config: DictConfig) -> dict[str, DictConfig]:
    """Without ``scenarios`` the one already composed."""
    if config.scenarios is None:
        return {hydra_app.scenario_label(str(config.scenario.name)): config}
    chosen = config.scenarios
    names = hydra_app.scenario_names() if chosen == "all" else [chosen] if isinstance(chosen, str) else list(chosen)
    if not names:
        raise ConfigError(f"scenarios is []; accepted: all, or a list of {', '.join(hydra_app.scenario_names())}")
    composed = [hydra_app.with_scenario(COMMAND, str(name)) for name in names]
    return {hydra_app.scenario_label(str(scenario.scenario.name)): scenario for scenario in composed}


def _cells(
    config: DictConfig, folder: Path, name: str, scenario: DictConfig, contenders: Sequence[Contender], first_seed: int
) -> list[Cell]:
    """Episode e is the trace of seed ``first_seed + e`` for every policy."""
    plain = json.dumps(hydra_app.env_values_of(scenario), sort_keys=True)
    cells = []
    for contender in contenders:
        for member, given in enumerate(contender.entries):
            entry = json.dumps(tuned_entry(given, scenario.scenario.name) if config.tuned else given, sort_keys=True)
            cells += [
                Cell(folder, name, plain, contender.label, member, entry, e, first_seed + e, float(config.warmup))
                for e in range(config.episodes)
            ]
    return cells


def _lower_bounds(env: EnvConfig, config: DictConfig) -> list[float] | None:
    """What the weighted mean E2E of each trace cannot be below, in ms; None where there is no such bound."""
    if config.warmup > 0 or why_no_bound(env) is not None:
        return None
    seeds = [seed_of(config.split, config.seed + e) for e in range(config.episodes)]
    traces = [env.workload.sample(seed, env.models.names) for seed in seeds]
    return [1e3 * weighted_e2e_lower_bound(env, trace) for trace in traces]


def run_all(cells: Sequence[Cell], processes: int) -> None:
    """Run what is not there yet, with a bar where there is a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("episodes", total=len(cells))
        with closing(run_cells(cells, processes)) as running:  # closed: what is not begun is not run after an exception
            for _ in running:
                progress.advance(bar)


def _print_trace(name: str, env: EnvConfig, seed: int) -> None:
    trace = env.workload.sample(seed, env.models.names)
    figures = trace_summary(trace)
    notes = "; ".join(trace.notes)
    load = f", offered load {env.workload.rho:g}" if getattr(env.workload, "rho", None) is not None else ""
    print(f"{name}: {len(trace)} requests, {figures['rate_per_s']:.3f} per s{load}" + (f" ({notes})" if notes else ""))


def summarise(env: EnvConfig, contenders: Sequence[Contender], mine: Sequence[tuple[Cell, Result]]) -> dict[str, Any]:
    """The scenario's figures, with everything needed to judge them."""
    reference = contenders[0].label
    values = {c.label: _values(c, mine) for c in contenders}
    base = values[reference][KEY].mean(axis=0)
    figures: dict[str, Any] = {}
    for c in contenders:
        ours = values[c.label][KEY]
        figures[c.label] = {"reference": reference, **vars(paired_difference(ours, base))}
        figures[c.label] |= {"p_value": p_value(ours, base), "p_better": probability_of_improvement(ours, base)}
    del figures[reference]
    return {
        "episodes": len({cell.episode for cell, _ in mine}),
        "rate_per_s": getattr(env.workload, "rate_per_s", None),
        "mean": {p: {key: mean_over_episodes(v) for key, v in rows.items()} for p, rows in values.items()},
        "iqm_e2e_ms": {p: interquartile_mean(rows[KEY]) for p, rows in values.items()},
        "per_episode": {p: {key: v.tolist() for key, v in rows.items()} for p, rows in values.items()},
        "mean_e2e_ms_difference": figures,
        "decision_us": {c.label: _decision_us(c, mine) for c in contenders},
        "profile_hash": profile_hash(env.cluster.gpus, env.cluster.hosts, env.models.names),
    }


def _values(contender: Contender, mine: Sequence[tuple[Cell, Result]]) -> dict[str, NDArray[np.float64]]:
    """figure -> [members, traces]"""
    summaries: dict[int, list[dict[str, float]]] = {}
    for cell, result in mine:
        if cell.policy == contender.label:
            summaries.setdefault(cell.member, []).append(result.summary)
    keys = summaries[0][0]
    return {key: np.array([[s[key] for s in summaries[m]] for m in sorted(summaries)]) for key in keys}


def _decision_us(contender: Contender, mine: Sequence[tuple[Cell, Result]]) -> dict[str, float]:
    """Mean over the episodes of their percentiles."""
    found = [result.decision_us for cell, result in mine if cell.policy == contender.label]
    return {key: float(np.mean([one[key] for one in found])) for key in found[0]}


def correct_for_many(results: dict[str, Any]) -> None:
    """Add to every difference the p-value corrected for the number of scenarios."""
    for policy in next(iter(results.values()))["mean_e2e_ms_difference"]:
        rows = [result["mean_e2e_ms_difference"][policy] for result in results.values()]
        for row, corrected in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
            row["p_holm"] = corrected


def print_scenario(
    name: str, contenders: Sequence[Contender], result: dict[str, Any], mine: Sequence[tuple[Cell, Result]]
) -> None:
    """One scenario's table, and what became of every request."""
    count, labels = result["episodes"], [c.label for c in contenders]
    versus = {p: difference_of(result, p) for p in labels[1:]}
    print_table(comparison_table(f"{name}, mean over {count} traces", labels[0], result["mean"], versus))
    for p in labels:
        tables = [r.table for cell, r in mine if cell.policy == p]
        arrived, done, dropped = (
            sum(int(np.sum(table[key].to_numpy())) for table in tables) for key in ("arrived", "finished", "dropped")
        )
        tail = f", {dropped} dropped" if dropped else ""
        print(f"  {p}: {arrived} requests arrived, {done} finished, {arrived - done - dropped} unfinished{tail}")


def _table(cell: Cell, result: Result) -> pa.Table:
    count = result.table.num_rows
    fixed = {
        "scenario": pa.array([cell.scenario] * count).dictionary_encode(),
        "policy": pa.array([cell.policy] * count).dictionary_encode(),
        "member": pa.array(np.full(count, cell.member)),
        "episode": pa.array(np.full(count, cell.episode)),
    }
    return pa.table(fixed | {name: result.table[name] for name in result.table.column_names})


def main(arguments: Sequence[str]) -> None:
    hydra_app.run(COMMAND, evaluate, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
