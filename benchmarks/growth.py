"""How a step's time grows with GPUs, queue and models: dynamics alone, and with the observation written.

Dynamics alone is what is left of a step when the observation's time is taken off: rates of the whole step and of writing
an unchanged state are measured, and memcpy of an observation's bytes beside them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import numpy as np

from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation
from mmsched_env.sim.jit import entry_point
from mmsched_env.sim.kernel.step import decide
from mmsched_env.workload.generator import GeneratorConfig

from .environment import RandomActions, kernel_task, memcpy_task, on_gpus
from .timing import Stopwatch, Task, rates

BATCH = 64
SIZES = {
    "4 GPUs, queue 16": (4, 16),
    "8 GPUs, queue 16": (8, 16),
    "4 GPUs, queue 64": (4, 64),
    "64 GPUs, queue 64": (64, 64),
}
STEPS = 20_000


def _decide_batch(state, params, requests, logs, actions, outcomes):  # type: ignore[no-untyped-def]
    for e in range(state.shape[0]):
        decide(state[e], params[e % params.shape[0]], requests[e], logs[e], actions[e], outcomes[e])


decide_batch = entry_point(_decide_batch, (Path(__file__),), makes_arrays=False)


def sized(config: EnvConfig, gpus: int, queue: int) -> EnvConfig:
    """GPUs repeated, arrivals in proportion, so that the load of each GPU stays the same."""
    wide = on_gpus(config, gpus, queue=queue)
    workload = cast(GeneratorConfig, config.workload)
    rate = workload.rate_per_s * gpus / len(config.cluster.gpus)
    return dataclasses.replace(wide, workload=dataclasses.replace(workload, rate_per_s=rate))


def dynamics_task(config: EnvConfig, num_envs: int, steps: int) -> Task:
    """Steps whose observations are not written."""
    simulation, random = Simulation(config, num_envs), RandomActions(num_envs)
    traces = [config.workload.sample(seed, config.models.names) for seed in range(4)]
    for env in range(num_envs):
        simulation.reset(env, traces[env % 4])

    def run(watch: Stopwatch, rounds: int = max(1, steps // num_envs)) -> int:
        for _ in range(rounds):
            actions = random.draw(simulation.state["mask"])
            arguments = simulation.step_arguments(actions)[:6]
            with watch:
                decide_batch(*arguments)
            outcomes = simulation.outcomes
            for env in np.flatnonzero(outcomes["terminated"] | outcomes["truncated"]):
                simulation.reset(int(env), traces[env % 4])
        return rounds * num_envs

    run(Stopwatch(), 200)
    return run


def measure(config: EnvConfig, rounds: int, steps: int = STEPS) -> dict[str, float]:
    """Rates by size, and growth over the smallest."""
    out: dict[str, float] = {}
    seconds: dict[str, dict[str, float]] = {}
    for name, (gpus, queue) in SIZES.items():
        wide = sized(config, gpus, queue)
        tasks = {
            "step": kernel_task(wide, BATCH, steps),
            "dynamics": dynamics_task(wide, BATCH, steps),
            "memcpy": memcpy_task(wide, BATCH, steps),
        }
        measured = rates(tasks, rounds)
        seconds[name] = {task: 1 / rate.cpu for task, rate in measured.items()}
        for task, rate in measured.items():
            out |= rate.values(f"{task}, {name}:", "steps")
    first, last = seconds[next(iter(SIZES))], seconds[list(SIZES)[-1]]
    writing = {name: times["step"] - times["dynamics"] for name, times in seconds.items()}
    out["dynamics, largest: times the smallest"] = last["dynamics"] / first["dynamics"]
    grown = writing[list(SIZES)[-1]] / writing[next(iter(SIZES))]
    out["writing, largest: times the smallest"] = grown
    out["memcpy, largest: times the smallest"] = last["memcpy"] / first["memcpy"]
    out["writing's growth over memcpy's"] = grown / (last["memcpy"] / first["memcpy"])
    return out
