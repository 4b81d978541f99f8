"""The best schedule of a tiny episode, by branch and bound over the simulator's own decisions.

Batching, sharing, loads and memory are the simulator's, so nothing is relaxed: with true lengths and arrivals known, no
policy can have less weighted flow time. Feasible for about 6 requests, 2 GPUs and 3 models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core import Simulation
from ..errors import ConfigError
from ..sim.jit import records
from ..sim.kernel.step import OUTCOME
from .search import search


@dataclass(frozen=True)
class Optimum:
    """What the search found."""

    flow_time: float
    """weighted flow time in seconds, summed over requests; NaN: no schedule below the limit was found"""
    actions: tuple[int, ...]
    """the decisions, to be taken from the start"""
    num_nodes: int
    complete: bool
    """false: the search ended at `max_nodes`, `flow_time` is of the best schedule seen"""


def exact_optimum(
    simulation: Simulation, limit: float = np.inf, max_nodes: int = 10_000_000, max_decisions: int = 120
) -> Optimum:
    """Least weighted flow time over all sequences of decisions from where environment 0 stands to the end.

    Parameters
    ----------
    simulation
        After `reset` or within an episode; not changed.
    limit
        Only schedules below this are looked for: the cost of a known schedule, a little enlarged, makes the search fast.
    max_nodes, max_decisions
        Where to give up; a path of more decisions is not followed and makes the search incomplete.

    Raises
    ------
    ConfigError
        Drops, truncation or memory noise are switched on, which the bound does not know.
    """
    sim = simulation.config.sim
    for key, plain in (("drop_after", np.inf), ("memory_noise", 0.0), ("max_time_s", np.inf)):
        if getattr(sim, key) != plain:
            raise ConfigError(f"sim.{key} is {getattr(sim, key)}; accepted for an exact optimum: {plain}")
    seen = simulation.snapshot(0)
    states = np.zeros(max_decisions + 2, seen.state.dtype)
    states[0] = seen.state[0]
    states["logging"] = 0
    requests = np.zeros((len(states), len(seen.requests)), seen.requests.dtype)
    requests[0] = seen.requests
    logs = np.zeros((len(states), 1), simulation.logs.dtype)
    actions = np.zeros(len(states), np.int64)
    outcomes = np.zeros(1, OUTCOME)
    arrays = (states, requests, logs, outcomes)
    best, length, nodes, complete = search(
        records(seen.params), *(records(array) for array in arrays), float(limit), int(max_nodes), actions
    )
    flow_time = float(best) if length > 0 else float("nan")
    return Optimum(flow_time, tuple(int(a) for a in actions[:length]), int(nodes), bool(complete))
