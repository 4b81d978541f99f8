"""One episode of one policy on one trace."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import metrics
from ..core import Simulation
from ..errors import MmschedError
from ..policy import CompiledPolicy, Policy, SimulationPolicy
from ..workload.trace import RequestTrace


@dataclass(frozen=True)
class Episode:
    """What came of it: a row per request (columns of `metrics.per_request`) and the episode's summary."""

    rows: dict[str, NDArray[Any]]
    summary: dict[str, float]
    decision_s: NDArray[np.float64]
    """wall-clock seconds of decisions, where the policy runs in compiled code of one in every STRETCH and the first ones;
    no part of the results, which are the same in every run"""


STRETCH = 1000
"""decisions a compiled policy takes between two that are timed"""
TIMED_FIRST = 100


def run_episode(simulation: Simulation, policy: Policy, trace: RequestTrace, seed: int, skip: int = 0) -> Episode:
    """Let `policy` schedule `trace` to its end in environment 0 of `simulation`.

    The first `skip` requests are served but not measured (warm-up); loads and other counts are of the whole episode.

    Raises
    ------
    MmschedError
        The policy took an illegal action.
    """
    policy.reset(simulation.layout, seed)  # first: it may refuse the layout, and the simulation may have to compile
    simulation.reset(0, trace, seed)
    if isinstance(policy, SimulationPolicy):
        policy.attach(simulation)
    compiled = policy if isinstance(policy, CompiledPolicy) and not simulation.needs_python else None
    action = np.zeros(1, np.int64)
    decision_s: list[float] = []
    decisions = 0
    ended = False
    while not ended:
        observation = {key: values[0] for key, values in simulation.current.observation().items()}
        mask = simulation.current.mask[0]
        begun = time.perf_counter()
        action[0] = policy.act(observation, mask)
        decision_s.append(time.perf_counter() - begun)
        outcome = simulation.step(action)[0]
        if outcome["illegal"]:
            what = simulation.layout.decode(int(action[0]))
            raise MmschedError(f"policy {type(policy).__name__} chose an illegal action: {what}")
        decisions += 1
        if compiled is not None and decisions >= TIMED_FIRST:
            decisions += compiled.play(simulation, STRETCH)
        ended = bool(outcome["terminated"] or outcome["truncated"])
    records = simulation.episode_requests(0)
    summary = metrics.summary(records, simulation.state[0], skip)
    summary["decisions"] = float(decisions)
    return Episode(metrics.per_request(records[skip:]), summary, np.array(decision_s))
