"""`mmsched evaluate`: any set of policies on the same traces of any set of scenarios."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress

from .. import hydra_app
from ..config import EnvConfig
from ..core import Simulation
from ..costmodel.profile import profile_hash
from ..errors import ConfigError
from ..policy import Policy
from ..workload import summary as trace_summary
from .policies import make_policy
from .report import comparison_table, print_table, revision, write_json, write_parquet
from .rollout import Episode, run_episode
from .stats import mean_over_episodes, paired_difference

COMMAND = "evaluate"


def evaluate(config: DictConfig) -> None:
    """Run what the composed configuration asks for; print the tables, write requests.parquet and summary.json."""
    if not isinstance(config.episodes, int) or config.episodes < 1:
        raise ConfigError(f"episodes is {config.episodes!r}; accepted: a whole number >= 1")
    entries = OmegaConf.to_container(config.policies)
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"policies is {entries!r}; accepted: a list such as [fcfs,mect,runs/x/best.zip]")
    made = [make_policy(entry) for entry in entries]
    policies = dict(made)
    if len(policies) < len(made):
        raise ConfigError(f"policies has an entry twice: {', '.join(label for label, _ in made)}; accepted: each once")
    scenarios = _scenarios(config)
    tables: list[pa.Table] = []
    results: dict[str, Any] = {}
    for name, scenario in scenarios.items():
        env = hydra_app.env_config_of(scenario)
        episodes = run_scenario(name, env, policies, config.episodes, config.seed)
        tables += [_table(name, policy, e, episode) for (policy, e), episode in episodes.items()]
        results[name] = summarise(name, env, list(policies), episodes)
        results[name]["config"] = OmegaConf.to_container(scenario, resolve=True)
    out = Path(hydra_app.output_folder())
    out.mkdir(parents=True, exist_ok=True)
    write_parquet(out / "requests.parquet", tables)
    write_json(out / "summary.json", {"revision": revision(), "seed": config.seed, "scenarios": results})
    print(f"wrote {out / 'requests.parquet'} and {out / 'summary.json'}")


def _scenarios(config: DictConfig) -> dict[str, DictConfig]:
    """scenario -> its composed configuration; without ``scenarios`` the one already composed."""
    if config.scenarios is None:
        return {hydra_app.scenario_label(str(config.scenario.name)): config}
    chosen = config.scenarios
    names = hydra_app.scenario_names() if chosen == "all" else [chosen] if isinstance(chosen, str) else list(chosen)
    composed = [hydra_app.with_scenario(COMMAND, name) for name in names]
    return {hydra_app.scenario_label(str(scenario.scenario.name)): scenario for scenario in composed}


def run_scenario(
    name: str, env: EnvConfig, policies: dict[str, Policy], num_episodes: int, seed: int
) -> dict[tuple[str, int], Episode]:
    """(policy, episode) -> what came of it. Episode e is the trace of seed ``seed + e`` for every policy."""
    simulation = Simulation(env, 1)
    episodes: dict[tuple[str, int], Episode] = {}
    with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(name, total=num_episodes * len(policies))
        for e in range(num_episodes):
            trace = env.workload.sample(seed + e, env.models.names)
            if e == 0:
                _print_trace(name, trace)
            for label, policy in policies.items():
                episodes[label, e] = run_episode(simulation, policy, trace, seed + e)
                progress.advance(bar)
    return episodes


def _print_trace(name: str, trace: Any) -> None:
    figures = trace_summary(trace)
    notes = "; ".join(trace.notes)
    print(f"{name}: {len(trace)} requests, {figures['rate_per_s']:.3f} per s" + (f" ({notes})" if notes else ""))


def summarise(name: str, env: EnvConfig, labels: list[str], episodes: dict[tuple[str, int], Episode]) -> dict[str, Any]:
    """Print the scenario's table and return it with everything needed to judge it."""
    count = 1 + max(e for _, e in episodes)
    keys = list(episodes[labels[0], 0].summary)
    per_episode = {p: {k: [episodes[p, e].summary[k] for e in range(count)] for k in keys} for p in labels}
    means = {p: {k: mean_over_episodes(v) for k, v in per_episode[p].items()} for p in labels}
    reference = labels[0]
    versus = {
        p: paired_difference(per_episode[p]["mean_e2e_ms"], per_episode[reference]["mean_e2e_ms"]) for p in labels[1:]
    }
    print_table(comparison_table(f"{name}, mean over {count} traces", reference, means, versus))
    for p in labels:
        rows = [episodes[p, e].rows for e in range(count)]
        arrived, done, dropped = (sum(int(r[key].sum()) for r in rows) for key in ("arrived", "finished", "dropped"))
        tail = f", {dropped} dropped" if dropped else ""
        print(f"  {p}: {arrived} requests arrived, {done} finished, {arrived - done - dropped} unfinished{tail}")
    return {
        "episodes": count,
        "mean": means,
        "per_episode": per_episode,
        "mean_e2e_ms_difference": {p: {"reference": reference, **vars(d)} for p, d in versus.items()},
        "decision_us": {p: _decision_us([episodes[p, e] for e in range(count)]) for p in labels},
        "profile_hash": profile_hash(env.cluster.gpus, env.cluster.hosts, env.models.names),
    }


def _decision_us(episodes: list[Episode]) -> dict[str, float]:
    seconds = np.concatenate([episode.decision_s for episode in episodes])
    return {f"p{q}": 1e6 * float(np.percentile(seconds, q)) for q in (50, 99)}


def _table(scenario: str, policy: str, e: int, episode: Episode) -> pa.Table:
    count = len(episode.rows["request"])
    fixed = {
        "scenario": pa.array([scenario] * count).dictionary_encode(),
        "policy": pa.array([policy] * count).dictionary_encode(),
        "episode": pa.array(np.full(count, e)),
    }
    return pa.table(fixed | {key: pa.array(values) for key, values in episode.rows.items()})


def main(arguments: Sequence[str]) -> None:
    hydra_app.run(COMMAND, evaluate, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
