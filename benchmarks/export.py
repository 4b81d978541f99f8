"""Milliseconds that a decision of a learned policy takes by itself: exported, without PyTorch, and as the network it was.

The network is `mmsched train`'s as it starts: what it has learned does not change what it takes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from mmsched_env.agents.export import export
from mmsched_env.agents.loader import load_policy
from mmsched_env.agents.train import checkpoint_of
from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation
from mmsched_env.observation import MASK_KEY
from mmsched_env.policy import Policy

from .timing import Stopwatch, Task, rates
from .training import ours, settings

DECISIONS = 300
"""of a round, along an episode"""


def deciding_task(config: EnvConfig, policy: Policy, decisions: int) -> Task:
    """A policy's decisions; what the environment makes of them is not timed."""
    simulation = Simulation(config, 1)
    trace = config.workload.sample(0, config.models.names)

    def run(watch: Stopwatch) -> int:
        simulation.reset(0, trace)
        policy.reset(simulation.layout, 0)
        for made in range(decisions):
            seen = {name: values[0] for name, values in simulation.current.observation().items()}
            with watch:
                action = policy.act(seen, seen[MASK_KEY])
            if simulation.step(np.array([action]))["terminated"][0]:
                return made + 1
        return decisions

    return run


def measure(config: EnvConfig, rounds: int, decisions: int = DECISIONS) -> dict[str, float]:
    """Milliseconds a decision, by wall clock."""
    model, serving = ours(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.zip"
        checkpoint_of(model, [serving], settings(config)).save(path)
        policies = {"exported": load_policy(export(path, path.with_suffix(".onnx"))), "network": load_policy(path)}
        tasks = {name: deciding_task(config, policy, decisions) for name, policy in policies.items()}
        measured = rates(tasks, rounds)
    return {f"{name}: ms a decision": 1e3 / rate.wall for name, rate in measured.items()}
