"""The simulator made to take the decisions of a real run, and the simulator left to itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmsched_env import metrics
from mmsched_env.action import Kind
from mmsched_env.core import Simulation
from mmsched_env.errors import MmschedError
from mmsched_env.policy import Policy
from mmsched_env.sim.state import SCOPE_INSTANCE
from mmsched_env.workload.trace import RequestTrace

from .mirror import Decision, Log, decision_of
from .real import Outcome


def simulate(simulation: Simulation, policy: Policy, trace: RequestTrace, seed: int) -> Outcome:
    """The policy decides in simulation.

    Raises
    ------
    MmschedError
        It took an illegal action.
    """
    policy.reset(simulation.layout, seed)
    simulation.reset(0, trace, seed)
    log, decisions = Log(), []
    while True:
        observation = {key: values[0] for key, values in simulation.current.observation().items()}
        action = int(policy.act(observation, simulation.current.mask[0]))
        if action:
            decisions.append(decision_of(simulation, action, log.read(simulation.event_log(0))))
        if _step(simulation, action):
            return _outcome(simulation, decisions)


def retime(
    simulation: Simulation, decisions: Sequence[Decision], trace: RequestTrace, seed: int
) -> tuple[Outcome, int]:
    """The same decisions in the same order, each as soon as all has happened that had happened before it.

    Returns
    -------
    Outcome, int
        And how many decisions could not be taken: they were not legal when nothing else was left to wait for.
    """
    simulation.reset(0, trace, seed)
    log, left, dropped = Log(), list(decisions), 0
    taken: list[Decision] = []
    while True:
        action = 0
        if left and left[0].after <= log.read(simulation.event_log(0)):
            action = index_of(simulation, left[0])
        mask = simulation.current.mask[0]
        if action == 0 and not mask[0]:  # nothing to wait for: the decisions that hold it up cannot come true any more
            action = next((a for a in (index_of(simulation, d) for d in left) if a), int(np.flatnonzero(mask)[0]))
        if action:
            one = decision_of(simulation, action, frozenset())
            taken.append(one)
            matched = next((i for i, d in enumerate(left) if d.what == one.what), None)
            if matched is not None:
                dropped += matched
                del left[: matched + 1]
        if _step(simulation, action):
            return _outcome(simulation, taken), dropped + len(left)


def index_of(simulation: Simulation, decision: Decision) -> int:
    """The legal action that a decision is now; 0: none."""
    layout, state = simulation.layout, simulation.state[0]
    if decision.kind == Kind.DISPATCH:
        slots = np.flatnonzero(state["window"] == decision.request)
        if not len(slots):
            return 0
        index = layout.dispatch(int(slots[0]), decision.gpu, decision.level)
    else:
        instance = int(state["inst_at"][decision.gpu, decision.model])
        if instance < 0:
            return 0
        index = layout.preempt(instance, whole_instance=decision.scope == SCOPE_INSTANCE)
    return index if simulation.current.mask[0][index] else 0


def _step(simulation: Simulation, action: int) -> bool:
    outcome = simulation.step(np.array([action], np.int64))[0]
    if outcome["illegal"]:
        raise MmschedError(f"an illegal action was chosen: {simulation.layout.decode(action)}")
    return bool(outcome["terminated"] or outcome["truncated"])


def _outcome(simulation: Simulation, decisions: list[Decision]) -> Outcome:
    records = simulation.episode_requests(0).copy()
    return Outcome(records, simulation.event_log(0).copy(), metrics.summary(records, simulation.state[0]), decisions)
