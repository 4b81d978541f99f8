"""Whole episodes of a compiled rule on the traces of a scenario, one after the other without Python between decisions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmsched_env import metrics
from mmsched_env.baselines.base import RulePolicy
from mmsched_env.baselines.memory import new_memory
from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation, Snapshot
from mmsched_env.workload.splits import seed_of

MOST_DECISIONS = 20_000
"""of an episode, some ten times what is usual: one that needs more counts as never ending"""


class Episodes:
    """`count` traces of a scenario, drawn once and played by any number of rules."""

    def __init__(self, env: EnvConfig, count: int) -> None:
        self.simulation = Simulation(env, count)
        self._drawn: tuple[str, int] | None = None
        self._starts: list[Snapshot] = []

    def mean_e2e(self, rule: RulePolicy, split: str, first: int) -> NDArray[np.float64]:
        """Weighted mean E2E in seconds (count,) of `rule` on traces `first`, `first` + 1, ... of a split; inf: an episode that
        is not over after `MOST_DECISIONS`."""
        simulation, count = self.simulation, self.simulation.num_envs
        self._draw(split, first)
        rule.reset(simulation.layout, 0)
        rule.play_batch(simulation, new_memory(simulation.dims, count, 0), MOST_DECISIONS, np.zeros(count))
        ended = simulation.outcomes["terminated"].astype(bool)
        summaries = (metrics.summary(simulation.episode_requests(e), simulation.state[e]) for e in range(count))
        seconds = np.array([summary["weighted_mean_e2e_ms"] / 1e3 for summary in summaries])
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
