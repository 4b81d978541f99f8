"""`mmsched tune`: settings of a rule for a family of scenarios, found by Optuna (`hydra/sweeper=optuna`) on training traces.

What is made small is the weighted mean E2E over that with the settings of conf/policy on the same traces, geometric mean over
the scenarios: 0.9 is 10 % less, and no scenario counts more because its seconds are longer.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from .. import hydra_app
from ..core import Simulation
from ..errors import ConfigError
from ..workload.splits import seed_of
from .policies import chosen_entry, make_policy
from .report import write_text
from .rollout import run_episode

COMMAND = "tune"
SPLIT = "train"
MAX_DECISIONS = 40_000
"""of an episode; settings under which a rule needs more (about ten times what is usual) count as hopeless"""
HOPELESS = 1e9


def tune(config: DictConfig) -> float:
    """One trial: the score of the settings that the sweeper has composed."""
    check(config)
    value = score(chosen_entry(config.policy), config.family.scenarios, range(config.traces), config.drop_at)
    print(f"  {value:.4f}", flush=True)
    return value


def check(config: DictConfig) -> None:
    """Raises ConfigError for a value out of range."""
    for key in ("traces", "other_traces"):
        if not isinstance(config[key], int) or config[key] < 1:
            raise ConfigError(f"{key} is {config[key]!r}; accepted: a whole number >= 1")


def score(entry: Mapping[str, Any], scenarios: Sequence[str], traces: range, drop_at: float = np.inf) -> float:
    """Weighted mean E2E of `entry` over that of its policy as it is in conf/policy, geometric mean over `scenarios`.

    Where it is above `drop_at` on the first of the traces, the others are not run.
    """
    value = np.nan
    for seen in (traces[:1], traces):
        ratios = [_mean_e2e(entry, name, seen) / _mean_e2e({"name": entry["name"]}, name, seen) for name in scenarios]
        value = float(np.exp(np.mean(np.log(ratios))))
        if value > drop_at:
            break
    return value


def _mean_e2e(entry: Mapping[str, Any], scenario: str, traces: range) -> float:
    plain = json.dumps(dict(entry), sort_keys=True)
    return float(np.mean([_weighted_e2e(plain, scenario, seed_of(SPLIT, index)) for index in traces]))


@cache
def _weighted_e2e(entry: str, scenario: str, seed: int) -> float:
    simulation = _simulation(scenario)
    trace = simulation.config.workload.sample(seed, simulation.config.models.names)
    summary = run_episode(simulation, make_policy(json.loads(entry))[1], trace, seed).summary
    return summary["weighted_mean_e2e_ms"] if summary["completed"] == summary["num_requests"] else HOPELESS


@cache
def _simulation(scenario: str) -> Simulation:
    config = hydra_app.known_scenario("evaluate", scenario, [f"sim.max_steps={MAX_DECISIONS}"])
    return Simulation(hydra_app.env_config_of(config), 1)


class GoOn(Callback):
    """Goes on with an Optuna study that was stopped."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Trials of before count."""
        if config.hydra.sweeper.n_trials < 1:
            hydra_app.fail(f"hydra.sweeper.n_trials is {config.hydra.sweeper.n_trials}; accepted: a whole number >= 1")
        Path(config.out).mkdir(parents=True, exist_ok=True)
        with open_dict(config):
            sweeper = config.hydra.sweeper
            sweeper.n_trials = max(0, sweeper.n_trials - _finished_trials(sweeper.storage, sweeper.study_name))


class KeepBest(GoOn):
    """The same, and writes what a search has found."""

    def on_multirun_start(self, config: DictConfig, **more: Any) -> None:
        """Before the first trial."""
        hydra_app.with_one_line_errors(lambda: check(config))
        super().on_multirun_start(config, **more)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Add to ``<family>.yaml`` the best trial's settings, if they are better on traces that the search has not seen."""
        found = OmegaConf.load(Path(config.hydra.sweep.dir) / "optimization_results.yaml")
        name = str(config.hydra.runtime.choices.policy)
        best = {key.removeprefix("policy."): _rounded(value) for key, value in found.best_params.items()}
        others = range(config.traces, config.traces + config.other_traces)
        value = round(score({"name": name, **best}, config.family.scenarios, others), 4)
        path = Path(config.out) / f"{config.family.name}.yaml"
        known = yaml.safe_load(path.read_text()) if path.is_file() else {}
        known[name] = {
            "settings": best if value < 1 else {},
            "score": {"search": round(float(found.best_value), 4), "other_traces": value},
            "command": f"{sys.argv[0]} {shlex.join(sys.argv[1:])}",
        }
        write_text(path, yaml.safe_dump(known, sort_keys=True, width=120))
        print(f"{config.family.name}, {name}: {best}, {value:.4f} on other traces; wrote {path}")


def _finished_trials(storage: str, study: str) -> int:
    import optuna

    known = {summary.study_name: summary for summary in optuna.get_all_study_summaries(storage)}
    if study not in known:
        return 0
    trials = optuna.load_study(study, storage).get_trials(deepcopy=False)
    return sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials)


def _rounded(value: Any) -> Any:
    """Numbers to three digits: more mean nothing, and what is written is what is compared."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def main(arguments: Sequence[str]) -> None:
    if find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        hydra_app.fail("'tune' needs hydra-optuna-sweeper; run: pip install 'mmsched-env[tune]'")
    hydra_app.run(COMMAND, tune, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
