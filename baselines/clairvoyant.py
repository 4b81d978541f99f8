"""Clairvoyant reference, a bound and no policy: true lengths, arrivals to come, Belady's eviction. Source: Belady 1966; ours.

The planner on the one true world: candidates are tried against what will really happen, rules see true lengths as predictions
and unload the model that is asked for latest. Not optimal (no search over all sequences): what is optimal on tiny
instances `mmsched_env.bounds.exact` says, and on large ones `mmsched_env.bounds.fluid` bounds from below.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.core import Simulation, Snapshot
from mmsched_env.imagine import true_world

from .base import RulePolicy
from .parts import BELADY
from .planner import Planner

BETWEEN_TELLING = 8
"""decisions of a rollout after which its rules are told anew when models are asked for next (docs/baselines.md)"""


class Clairvoyant(Planner):
    """Look-ahead with perfect information.

    Parameters
    ----------
    base, base_settings, horizon_s, width, max_rounds
        As for `Planner`.
    """

    is_bound = True

    def __init__(
        self,
        base: str = "composite",
        base_settings: Mapping[str, Any] = MappingProxyType({}),
        horizon_s: float = 60.0,
        width: int = 24,
        max_rounds: int = 20_000,
    ) -> None:
        super().__init__(
            base,
            base_settings,
            samples=1,
            batch=1,
            horizon_s=horizon_s,
            width=width,
            caution=0.0,
            sigma=0.0,
            max_rounds=max_rounds,
        )
        self._stretch = BETWEEN_TELLING

    def attach(self, simulation: Simulation) -> None:
        super().attach(simulation)
        requests = simulation.episode_requests(0)
        models = simulation.dims.M
        self._arrivals: list[NDArray[np.float64]] = [
            np.append(requests["arrival_s"][requests["model"] == m], np.inf) for m in range(models)
        ]

    def _rule(self, name: str) -> RulePolicy:
        rule = super()._rule(name)
        rule.knobs = rule.knobs._replace(eviction=float(BELADY))
        return rule

    def _worlds(self, simulation: Simulation, count: int) -> list[Snapshot]:
        return [true_world(simulation, self.horizon_s)]

    def _tell(self, memory: Any, count: int) -> None:
        now = self._branches.state["now"][:count]
        for m, arrivals in enumerate(self._arrivals):
            memory["next_use_s"][:, m] = arrivals[np.searchsorted(arrivals, now, "right")]
