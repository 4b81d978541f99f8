"""`mmsched evolve`: direct policy search. CMA-ES (Hansen) over learned corrections of the composite rule, by whole episodes.

A decision of a scheduler moves the mean E2E of an episode by next to nothing, and the traffic by much: a gradient for each
decision drowns in it. Here a candidate is a rule with other weights, and is judged by whole episodes on the same traces as all the
others of its generation, which compiled code plays at 10 ms each. What a generation was worth is kept in history.json; a run
that was stopped tells it to the search again and goes on as if it had not been.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cmaes
import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from mmsched_env import hydra_app
from mmsched_env.config import EnvConfig, build
from mmsched_env.errors import ConfigError, unknown_name
from mmsched_env.evaluation.cells import code_hash
from mmsched_env.evaluation.policies import make_policy, policy_settings
from mmsched_env.evaluation.report import write_text
from mmsched_env.evaluation.tuned import tuned_entry

from .episodes import Play, Task, players
from .evolved import FORMAT
from .genes import GENES, GROUP_OF, GROUPS, policy_of

COMMAND = "evolve"
WIDEST = 10.0
"""`sigma` at most: a weight of 1 is a factor of e already"""
HOPELESS = 1e9
"""what counts as mean E2E over the rule's where an episode does not end"""


@dataclass(frozen=True)
class EvolveConfig:
    """What a search is made of; values of conf/evolve.yaml."""

    envs: tuple[EnvConfig, ...]
    settings: dict[str, Any]
    """of the rule that it begins with"""
    learn: tuple[str, ...]
    """which of `GROUPS`; nothing of the others changes"""
    run_dir: str
    seed: int
    generations: int
    population: int
    sigma: float
    traces: int
    validate_every: int
    validation_traces: int
    processes: int

    def __post_init__(self) -> None:
        least = {"seed": 0, "generations": 0, "population": 4, "traces": 1, "validate_every": 1, "validation_traces": 1}
        for key, value in (least | {"processes": 0}).items():
            if getattr(self, key) < value:
                raise ConfigError(f"{key} is {getattr(self, key)}; accepted: a whole number >= {value}")
        for group in self.learn or ("",):
            if group not in GROUPS:
                raise unknown_name("group of `learn`", group, GROUPS)
        if not 0 < self.sigma <= WIDEST:
            raise ConfigError(f"sigma is {self.sigma}; accepted: a number above 0, at most {WIDEST:g}")

    @property
    def identity(self) -> str:
        """What a search must share with one that goes on with it, as text."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        own = {key: value for key, value in values.items() if key not in ("run_dir", "generations", "processes")}
        return json.dumps(own | {"code": code_hash()}, sort_keys=True, default=repr)


def loss(ours: NDArray[np.float64], rule: NDArray[np.float64]) -> float:
    """Logarithm of E2E (scenarios, traces) over the rule's, mean over scenarios: half of it of the means, as what is reported,
    half of the single traces', which a few bad ones do not drown."""
    with np.errstate(invalid="ignore"):
        of_means = np.log(ours.mean(1) / rule.mean(1))
        of_traces = np.log(ours / rule).mean(1)
    return float(np.nan_to_num((of_means + of_traces).mean() / 2, nan=HOPELESS, posinf=HOPELESS))


# ---------------------------------------------------------------- searching


class Search:
    """A search and what has come of it so far.

    Parameters
    ----------
    play
        Plays candidates.
    """

    def __init__(self, config: EvolveConfig, play: Play) -> None:
        self.config, self.play = config, play
        self.searched = np.flatnonzero(np.isin(GROUP_OF, config.learn))
        begin = np.zeros(len(self.searched))
        self.optimizer = cmaes.CMA(begin, config.sigma, seed=config.seed, population_size=config.population)
        self.history = Path(config.run_dir) / "history.json"
        self.losses: list[list[float]] = []
        self.validations: list[dict[str, Any]] = []
        self._line: NDArray[np.float64] | None = None

    def go_on(self) -> None:
        """Tell the search again what an earlier one of the same configuration found.

        Raises
        ------
        ConfigError
            It was of another configuration.
        """
        if not self.history.is_file():
            return
        try:
            stored = json.loads(self.history.read_text())
        except ValueError:
            raise ConfigError(f"{self.history} is damaged; accepted: another `out`, or without it") from None
        if stored["search"] != json.loads(self.config.identity):
            raise ConfigError(
                f"{self.history} is of another search; accepted: the settings and the code it began with, or another `out`"
            )
        for losses in stored["losses"][: self.config.generations]:
            self._tell([self.optimizer.ask() for _ in losses], losses)
        self.validations = [row for row in stored["validations"] if row["generation"] <= len(self.losses)]

    def run(self, found: Callable[[dict[str, Any]], None]) -> None:
        """Search to the last generation; `found` is called with the best validation so far after every one."""
        if not self.validations:
            self._validate()
        found(self.best)
        while len(self.losses) < self.config.generations:
            candidates = [self.optimizer.ask() for _ in range(self.config.population)]
            self._tell(candidates, self._losses([self._genes(candidate) for candidate in candidates]))
            if len(self.losses) % self.config.validate_every == 0 or len(self.losses) == self.config.generations:
                self._validate()
                found(self.best)
            self._keep()

    @property
    def best(self) -> dict[str, Any]:
        """The validation of the least loss."""
        return min(self.validations, key=lambda row: row["loss"])

    def _genes(self, candidate: NDArray[np.float64]) -> NDArray[np.float64]:
        """All numbers, those not searched 0."""
        genes = np.zeros(GENES)
        genes[self.searched] = candidate
        return genes

    def _tell(self, candidates: list[NDArray[np.float64]], losses: list[float]) -> None:
        self.optimizer.tell(list(zip(candidates, losses, strict=True)))
        self.losses.append(losses)

    def _losses(self, candidates: list[NDArray[np.float64]]) -> list[float]:
        """Every candidate on the same traces, others in every generation and for every seed."""
        begin = (1000 * self.config.seed + len(self.losses)) * self.config.traces
        rule, *others = self._e2e([np.zeros(GENES), *candidates], "train", begin, self.config.traces)
        return [loss(ours, rule) for ours in others]

    def _validate(self) -> None:
        """Where the search stands now, on the same validation traces every time."""
        mean = self._genes(self.optimizer.mean) if self.losses else np.zeros(GENES)
        count = self.config.validation_traces
        if self._line is None:
            self._line = self._e2e([np.zeros(GENES)], "validation", 0, count)[0]
        ours, rule = self._e2e([mean], "validation", 0, count)[0], self._line
        ratios = (ours.mean(1) / rule.mean(1)).tolist()
        row = {"generation": len(self.losses), "loss": loss(ours, rule), "ratios": ratios, "genes": mean.tolist()}
        self.validations.append(row)
        best = "  *" if row is self.best else ""
        shown = math.exp(float(np.log(ratios).mean()))
        print(f"generation {row['generation']:4d}: validation, mean E2E over the rule's: {shown:.4f}{best}", flush=True)

    def _e2e(
        self, candidates: Sequence[NDArray[np.float64]], split: str, first: int, count: int
    ) -> NDArray[np.float64]:
        """(candidates, scenarios, traces)"""
        scenarios = len(self.config.envs)
        tasks = [Task(tuple(genes.tolist()), s, split, first, count) for genes in candidates for s in range(scenarios)]
        return np.array(list(self.play(tasks))).reshape(len(candidates), scenarios, count)

    def _keep(self) -> None:
        content = {"search": json.loads(self.config.identity), "losses": self.losses, "validations": self.validations}
        write_text(self.history, json.dumps(content, indent=1))


def evolve(config: EvolveConfig, about: Mapping[str, Any]) -> Path:
    """Search, and write ``best.json`` whenever something validates best, `about` (who trained it on what) with it; its path."""
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()

    def found(best: dict[str, Any]) -> None:
        settings, weights = policy_of(np.array(best["genes"]), config.settings)
        training = {**about, "seed": config.seed, "generation": best["generation"], "validation": best["ratios"]}
        content = {"format": FORMAT, "settings": settings, "weights": weights, "training": training}
        write_text(folder / "best.json", json.dumps(content, indent=1))

    with players(config.envs, config.settings, config.processes) as play:
        search = Search(config, play)
        search.go_on()
        search.run(found)
    print(
        f"{time.perf_counter() - begun:.0f} s; best of generation {search.best['generation']}: {folder / 'best.json'}"
    )
    return folder / "best.json"


# ---------------------------------------------------------------- command


def run(config: DictConfig) -> float:
    """Search as the composed configuration says. Returns the logarithm of validation's mean E2E over the rule's, mean over
    scenarios, of what was kept: for sweepers."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    names = [str(name) for name in config.scenarios] if config.scenarios is not None else []
    composed = [hydra_app.with_scenario(COMMAND, name) for name in names] or [config]
    scenarios = [str(one.scenario.name) for one in composed]
    own = {f.name: values[f.name] for f in dataclasses.fields(EvolveConfig) if f.name in values}
    envs = tuple(hydra_app.env_config_of(one) for one in composed)
    given = {
        "envs": envs,
        "settings": _first_settings(scenarios, bool(config.tuned), values["rule"] or {}),
        "run_dir": hydra_app.output_folder(),
    }
    path = evolve(build(EvolveConfig, own | given), {"scenarios": scenarios, "command": _command()})
    return float(np.log(json.loads(path.read_text())["training"]["validation"]).mean())


def _command() -> str:
    """How to do it again: the command without what makes no difference to what is found."""
    kept = [argument for argument in sys.argv if not argument.startswith(("out=", "processes="))]
    return " ".join([kept[0], shlex.join(kept[1:])])


def _first_settings(scenarios: Sequence[str], tuned: bool, given: Mapping[str, Any]) -> dict[str, Any]:
    """The composite rule's settings to begin with: conf/policy's, over them those tuned for the scenarios' family, over these
    those `given`."""
    entries = [tuned_entry("composite", name) for name in scenarios] if tuned else [{}]
    if any(entry != entries[0] for entry in entries):
        raise ConfigError(
            f"scenarios of several families ({', '.join(scenarios)}) with tuned=true; accepted: tuned=false"
        )
    found = {key: value for key, value in entries[0].items() if key != "name"}
    known = {key: value for key, value in policy_settings("composite").items() if key not in ("_target_", "weights")}
    for key in given:
        if key not in known:
            raise unknown_name("setting of policy composite", str(key), known)
    settings = {**known, **found, **given}
    make_policy({"name": "composite", **settings})  # raises for a value that is none
    return settings


def main(arguments: Sequence[str]) -> None:
    hydra_app.run(COMMAND, run, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
