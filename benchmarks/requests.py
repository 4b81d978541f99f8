"""Simulated requests per second: rules deciding in compiled code, at light load, 80 % and overload.

The comparable workload is Vidur's: one model on one GPU, prompts of 512 and outputs of 128 tokens in the mean, Poisson
arrivals; nothing to decide but when a request goes in, and no more seen than FCFS looks at. Load is the arrival rate over
the rate at which the same GPU works off requests that are all there at once.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np

from mmsched_env.config import ClusterConfig, EnvConfig, LimitsConfig, ModelsConfig, SimConfig
from mmsched_env.core import Simulation
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.evaluation.rollout import run_episode
from mmsched_env.policy import CompiledPolicy
from mmsched_env.workload.generator import GeneratorConfig
from mmsched_env.workload.trace import RequestTrace

from .timing import Stopwatch, Task, rates

LOADS = {"light (20 %)": 0.2, "80 %": 0.8, "overload (150 %)": 1.5}
REQUESTS = 5_000
PROMPT, OUTPUT = 512, 128
RULES = ("fcfs", "mect", "composite")


def one_model() -> EnvConfig:
    """One GPU with one model that stays loaded, padded to no more than that and the head of the queue."""
    cluster = ClusterConfig(("rtx-a6000-48gb",), ("threadripper-pro-5995wx",), (0,))
    limits = LimitsConfig(queue=1, gpus=1, hosts=1, models=1, slots=1)
    dispatch_only = SimConfig(allow_preempt=False, allow_offload=False)
    return EnvConfig(cluster=cluster, models=ModelsConfig(("llama-3-8b-q4_k_m",)), limits=limits, sim=dispatch_only)


def poisson_trace(rate_per_s: float, count: int, seed: int = 0) -> RequestTrace:
    """`count` requests of the one model; lengths geometric, as only their means are given."""
    rng = np.random.default_rng(seed)
    output = np.minimum(rng.geometric(1 / OUTPUT, count), 8 * OUTPUT)
    return RequestTrace.from_columns(
        one_model().models.names,
        arrival_s=np.cumsum(rng.exponential(1 / rate_per_s, count)),
        prompt_tokens=np.minimum(rng.geometric(1 / PROMPT, count), 8 * PROMPT),
        output_tokens=output,
        predicted_tokens=output.astype(np.float64),
        max_tokens=np.full(count, 8 * OUTPUT),
    )


def served_per_s(config: EnvConfig) -> float:
    """Requests per second the GPU works off when all are there at once."""
    trace = poisson_trace(1e6, 500)
    run = run_episode(Simulation(config, 1), make_policy("fcfs")[1], trace, 0)
    return float(len(trace) / (run.rows["arrival_s"] + run.rows["e2e_s"]).max())


def played(config: EnvConfig, trace: RequestTrace, rule: str) -> Task:
    """One episode of a rule, from its first decision to its last."""
    simulation, policy = Simulation(config, 1), make_policy(rule)[1]
    assert isinstance(policy, CompiledPolicy)

    def run(watch: Stopwatch) -> int:
        policy.reset(simulation.layout, 0)
        simulation.reset(0, trace)
        with watch:
            while not simulation.outcomes.terminated[0]:
                policy.play(simulation, 10**6)
        return len(trace)

    return run


def measure(config: EnvConfig, rounds: int, count: int = REQUESTS) -> dict[str, float]:
    """Rates by load and by rule, and what load costs."""
    single = one_model()
    capacity = served_per_s(single)
    tasks = {
        f"fcfs, one model, {name}": played(single, poisson_trace(load * capacity, count), "fcfs")
        for name, load in LOADS.items()
    }
    workload = cast(GeneratorConfig, config.workload)
    crowd = dataclasses.replace(config, workload=dataclasses.replace(workload, num_requests=count))
    trace = crowd.workload.sample(0, crowd.models.names)
    tasks |= {f"{rule}, default scenario": played(crowd, trace, rule) for rule in RULES}
    measured = rates(tasks, rounds)
    out: dict[str, float] = {"one model, requests/s the simulated GPU serves": capacity}
    for name, rate in measured.items():
        out |= rate.values(f"{name}:", "simulated requests")
    by_load = [measured[f"fcfs, one model, {name}"].cpu for name in LOADS]
    out["slowest load: times the time of the fastest"] = max(by_load) / min(by_load)
    return out
