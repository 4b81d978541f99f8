"""Whole episodes of candidates on the traces of scenarios, without Python between decisions, in one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import cpu_count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env import metrics
from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation, Snapshot
from mmsched_env.workers import worker_pool
from mmsched_env.workload.splits import seed_of

from .base import RulePolicy
from .composite import Composite
from .genes import GENES, policy_of
from .memory import new_memory

MOST_DECISIONS = 20_000
"""of an episode, some ten times what is usual: one that needs more counts as never ending"""


class Episodes:
    """`count` traces of a scenario, drawn once and played by any number of rules."""

    def __init__(self, env: EnvConfig, count: int) -> None:
        self.simulation = Simulation(env, count)
        self._drawn: tuple[str, int] | None = None
        self._starts: list[Snapshot] = []

    def mean_e2e(self, rule: RulePolicy, split: str, first: int) -> NDArray[np.float64]:
        """Weighted mean E2E in seconds (count,) of `rule` on traces `first`, `first` + 1, ... of a split, dropped requests
        charged as by the reward; inf: an episode that is not over after `MOST_DECISIONS`."""
        simulation, count = self.simulation, self.simulation.num_envs
        self._draw(split, first)
        rule.reset(simulation.layout, 0)
        rule.play_batch(simulation, new_memory(simulation.dims, count, 0), MOST_DECISIONS, np.zeros(count))
        ended = simulation.outcomes["terminated"].astype(bool)
        seconds = np.array([metrics.charged_mean_e2e_ms(simulation.episode_requests(e)) / 1e3 for e in range(count)])
        return np.where(ended, seconds, np.inf)

    def _draw(self, split: str, first: int) -> None:
        """Every environment at the start of its episode."""
        simulation = self.simulation
        if self._drawn != (split, first):
            self._starts = []
            for e in range(simulation.num_envs):
                seed = seed_of(split, first + e)
                simulation.reset(e, simulation.config.workload.sample(seed, simulation.config.models.names), seed)
                self._starts.append(simulation.snapshot(e))
            self._drawn = split, first
            return
        for flag in ("terminated", "truncated", "stalled"):
            simulation.outcomes[flag] = 0
        for e, start in enumerate(self._starts):
            simulation.restore(start, slice(e, e + 1))


@dataclass(frozen=True)
class Task:
    """One candidate on some traces of one scenario."""

    genes: tuple[float, ...]
    scenario: int
    split: str
    first: int
    count: int


class Player:
    """Plays tasks, the traces of one scenario and split kept until others are asked for."""

    def __init__(self, envs: Sequence[EnvConfig], settings: Mapping[str, Any]) -> None:
        self.envs, self.settings = envs, settings
        self.known: dict[tuple[int, str], Episodes] = {}

    def __call__(self, task: Task) -> NDArray[np.float64]:
        """Weighted mean E2E in seconds (count,)."""
        key = (task.scenario, task.split)
        if key not in self.known:
            self.known[key] = Episodes(self.envs[task.scenario], task.count)
        settings, weights = policy_of(np.array(task.genes), self.settings)
        return self.known[key].mean_e2e(Composite(**settings, weights=weights), task.split, task.first)


_player: Player


def _begin(envs: Sequence[EnvConfig], settings: Mapping[str, Any]) -> None:
    global _player
    _player = Player(envs, settings)


def _play(task: Task) -> NDArray[np.float64]:
    return _player(task)


Play = Callable[[Iterable[Task]], Iterable[NDArray[np.float64]]]
"""tasks -> what each gave, in their order"""


@contextmanager
def players(envs: Sequence[EnvConfig], settings: Mapping[str, Any], processes: int) -> Iterator[Play]:
    """A function that plays tasks, in this process or in `processes`; 0: one a CPU."""
    count = processes or cpu_count() or 1
    if count == 1:
        player = Player(envs, settings)
        yield lambda tasks: map(player, tasks)
        return
    Player(envs, settings)(Task((0.0,) * GENES, 0, "train", 0, 1))  # compiles for all
    with worker_pool(count, _begin, envs, settings) as pool:
        yield lambda tasks: pool.map(_play, tasks)
