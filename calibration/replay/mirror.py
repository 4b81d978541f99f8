"""A `Simulation` moved on by a real system: its observation, mask, records and event log are those of reality."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.action import Action, Kind
from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation
from mmsched_env.costmodel.tables import CostTables
from mmsched_env.sim import events
from mmsched_env.sim.kernel.checks import BROKEN, check_batch
from mmsched_env.sim.kernel.step import present_batch
from mmsched_env.sim.params import make_params
from mmsched_env.sim.requests import make_requests
from mmsched_env.workload.trace import RequestTrace

from . import moves

MILESTONES = (
    events.ARRIVE,
    events.FINISH,
    events.LOAD_END,
    events.UNLOAD_END,
    events.SAVE_END,
    events.RESTORE_END,
)
"""events that a decision may have waited for"""

Milestone = tuple[int, int, int, int]
"""kind, request, model, and which one of its kind it is"""


@dataclass(frozen=True)
class Decision:
    """An action other than WAIT, in words that hold in another run."""

    time_s: float
    kind: Kind
    request: int
    """dispatched; -1: none"""
    model: int
    gpu: int
    level: int
    scope: int
    after: frozenset[Milestone]
    """what had happened by then"""

    @property
    def what(self) -> tuple[int, ...]:
        """Without its time and circumstances."""
        return int(self.kind), self.request, self.model, self.gpu, self.level, self.scope


@dataclass
class Log:
    """The milestones of an event log, read as it grows."""

    seen: set[Milestone] = field(default_factory=set)
    _counts: dict[tuple[int, int, int], int] = field(default_factory=dict)
    _read: int = 0

    def read(self, rows: NDArray[np.void]) -> frozenset[Milestone]:
        """All milestones so far."""
        for row in rows[self._read :]:
            if int(row["kind"]) in MILESTONES:
                key = int(row["kind"]), int(row["request"]), int(row["model"])
                self._counts[key] = self._counts.get(key, 0) + 1
                self.seen.add((*key, self._counts[key]))
        self._read = len(rows)
        return frozenset(self.seen)


def simulation_with(config: EnvConfig, tables: CostTables) -> Simulation:
    """A simulation of one environment with other cost tables than its profiles give."""
    simulation = Simulation(config, 1, logging=True)
    simulation.tables = tables
    simulation.params = make_params(config, tables, simulation.dims)
    return simulation


def decision_of(simulation: Simulation, index: int, after: frozenset[Milestone]) -> Decision:
    """The action that is about to be taken."""
    state = simulation.state[0]
    action: Action = simulation.layout.decode(index)
    request, model = -1, -1
    if action.kind == Kind.DISPATCH:
        request = int(state["window"][action.queue_slot])
        model = int(simulation.requests[0]["model"][request])
    else:
        model = int(state["inst_model"][action.gpu * simulation.dims.S + action.slot])
    return Decision(float(state["now"]), action.kind, request, model, action.gpu, action.level, action.scope, after)


class Mirror:
    """The state of a real system in a simulation's records.

    Parameters
    ----------
    simulation
        Of one environment, with the event log on; it must not be stepped by anyone else.
    trace
        What will arrive.
    """

    def __init__(self, simulation: Simulation, trace: RequestTrace) -> None:
        self.simulation = simulation
        self.log = Log()
        simulation._make_room(len(trace))
        tables, ubatch = simulation.tables, simulation.config.sim.ubatch_tokens
        simulation.requests[0, : len(trace)] = make_requests(trace, tables, simulation.dims, ubatch)
        simulation.traces[0] = trace
        simulation.state[:] = np.zeros(1, simulation.state.dtype)
        simulation.state["num_requests"] = len(trace)
        simulation.state["logging"] = 1
        moves.begin(self._arguments()[0])
        self._compile()
        self.legal = self.settle()

    def _compile(self) -> None:
        """What the first event and the first decision would compile must not take time while servers run."""
        state, params, requests, logs, *_ = self._arguments()
        for move, *what in ((moves.happen, 0.0, -1, -1), (moves.act, self.simulation.layout.preempt(0))):
            move(state.copy(), params, requests.copy(), logs.copy(), *what)

    @property
    def state(self) -> Any:
        return self.simulation.state[0]

    @property
    def requests(self) -> Any:
        return self.simulation.requests[0]

    @property
    def drained(self) -> bool:
        return int(self.state["num_done"]) == int(self.state["num_requests"])

    def happen(self, time_s: float, kind: int, index: int) -> None:
        """Book what happened. Raises RuntimeError where the records no longer make sense (looked for if configured)."""
        self.simulation._make_log_room()
        moves.happen(*self._arguments()[:4], time_s, kind, index)
        self.legal = self.settle()

    def act(self, index: int) -> Decision:
        """Book a legal action other than WAIT."""
        after = self.log.read(self.simulation.event_log(0))
        decision = decision_of(self.simulation, index, after)
        self.simulation._make_log_room()
        moves.act(*self._arguments()[:4], index)
        self.legal = self.settle()
        return decision

    def settle(self) -> int:
        """Start what can start. Returns the number of legal actions besides WAIT."""
        state, params, requests, logs, *buffers = self._arguments()
        legal = int(moves.settle(state, params, requests, logs))
        present_batch(state, params, requests, *buffers)
        if self.simulation.config.sim.debug_checks:
            faults = np.zeros(1, np.int64)
            check_batch(state, params, requests, faults)
            if faults.any():
                raise RuntimeError(f"the mirror of the real system is broken: {BROKEN[faults[0]]}")
        return legal

    def observation(self) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
        """(observation, mask), as a policy gets them."""
        current = self.simulation.current
        return {key: values[0] for key, values in current.observation().items()}, current.mask[0]

    def _arguments(self) -> list[Any]:
        return self.simulation._arguments(slice(None))
