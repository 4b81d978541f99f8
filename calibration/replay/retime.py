"""The simulator made to take the decisions of a real run, and the simulator left to itself."""

from __future__ import annotations

import numpy as np

from mmsched_env import metrics
from mmsched_env.core import Simulation
from mmsched_env.errors import MmschedError
from mmsched_env.policy import Policy
from mmsched_env.workload.trace import RequestTrace

from .intents import Intents
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


def retime(simulation: Simulation, real: Outcome, trace: RequestTrace, seed: int) -> tuple[Outcome, int]:
    """The decisions of a real run in the same order, each once nothing is under way that was over when it was taken.

    Returns
    -------
    Outcome, int
        And how many decisions had lost their meaning: the request to be dispatched was on an instance or had finished, the
        one to be put off had finished, the instance was gone.
    """
    simulation.reset(0, trace, seed)
    rest = Intents(simulation, real)
    while True:
        mask = simulation.current.mask[0]
        action = rest.next_action()
        if action == 0 and not mask[0]:  # nothing to wait for: what holds the rest up cannot come true any more
            action = rest.next_action(hopeless=True) or int(np.flatnonzero(mask)[0])
        if action:
            rest.taken.append(decision_of(simulation, action, frozenset()))
        if _step(simulation, action):
            return _outcome(simulation, rest.taken), rest.meaningless + len(rest.left)
        rest.look_for_victims()


def _step(simulation: Simulation, action: int) -> bool:
    outcome = simulation.step(np.array([action], np.int64))[0]
    if outcome["illegal"]:
        raise MmschedError(f"an illegal action was chosen: {simulation.layout.decode(action)}")
    return bool(outcome["terminated"] or outcome["truncated"])


def _outcome(simulation: Simulation, decisions: list[Decision]) -> Outcome:
    records = simulation.episode_requests(0).copy()
    return Outcome(records, simulation.event_log(0).copy(), metrics.summary(records, simulation.state[0]), decisions)
