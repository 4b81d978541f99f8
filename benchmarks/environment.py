"""Steps per second of the environment: kernel, vector and single environment, random legal actions.

Drawing the actions is not timed. The kernel's rate leaves out starting new episodes, the vector environment's does not.
"""

from __future__ import annotations

import dataclasses
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation
from mmsched_env.env import ServingEnv
from mmsched_env.sim.jit import compiled, entry_point
from mmsched_env.vector_env import ServingVectorEnv

from .timing import Stopwatch, Task, rates

BATCHES = (1, 16, 256, 4096)
STEPS = 60_000
"""environment steps of one round"""
WARM_UP = 300
"""vector steps before the first round: episodes get into their middle"""


def _draw_action(mask, generators, e):  # type: ignore[no-untyped-def]
    """A legal action of environment `e`, each as likely; `generators` uint64 (N,) hold their states (xorshift)."""
    legal = 0
    for a in range(mask.shape[1]):
        legal += mask[e, a]
    x = generators[e]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    generators[e] = x
    left = np.int64(x >> np.uint64(11)) % legal
    for a in range(mask.shape[1]):
        if mask[e, a] == 1:
            if left == 0:
                return a
            left -= 1
    return 0


draw_action = compiled(_draw_action)


def _draw_legal(mask, generators, actions):  # type: ignore[no-untyped-def]
    """A legal action for every environment."""
    for e in range(mask.shape[0]):
        actions[e] = draw_action(mask, generators, e)


draw_legal = entry_point(_draw_legal, (Path(__file__),))


class RandomActions:
    """Random legal actions of a batch, the same in every run."""

    def __init__(self, num_envs: int) -> None:
        self.generators = np.random.default_rng(0).integers(1, 2**63, num_envs).astype(np.uint64)
        self.actions = np.zeros(num_envs, np.int64)

    def draw(self, mask: NDArray[Any]) -> NDArray[np.int64]:
        draw_legal(mask, self.generators, self.actions)
        return self.actions


def on_gpus(config: EnvConfig, gpus: int, queue: int | None = None) -> EnvConfig:
    """The configuration with its GPUs repeated up to `gpus`, on as many hosts as that takes."""
    cluster = config.cluster
    times = -(-gpus // len(cluster.gpus))
    hosts = cluster.hosts * times
    at = tuple(h + t * len(cluster.hosts) for t in range(times) for h in cluster.gpu_hosts)
    wide = dataclasses.replace(cluster, gpus=(cluster.gpus * times)[:gpus], hosts=hosts, gpu_hosts=at[:gpus])
    limits = dataclasses.replace(config.limits, gpus=gpus, hosts=len(hosts), queue=queue or config.limits.queue)
    return dataclasses.replace(config, cluster=wide, limits=limits)


def kernel_task(
    config: EnvConfig, num_envs: int, steps: int = STEPS, threads: int = 1, draws_timed: bool = False
) -> Task:
    """Steps of the simulation. Episodes that end begin again on one of a few traces, off the clock; so are actions drawn
    unless `draws_timed`."""
    simulation, random = Simulation(config, num_envs, threads=threads), RandomActions(num_envs)
    traces = [config.workload.sample(seed, config.models.names) for seed in range(8)]
    for env in range(num_envs):
        simulation.reset(env, traces[env % 8])

    def run(watch: Stopwatch, rounds: int = max(1, steps // num_envs)) -> int:
        for _ in range(rounds):
            with watch if draws_timed else nullcontext():
                actions = random.draw(simulation.current.mask)
            with watch:
                outcomes = simulation.step(actions)
            for env in np.flatnonzero(outcomes["terminated"] | outcomes["truncated"]):
                simulation.reset(int(env), traces[env % 8])
        return rounds * num_envs

    run(Stopwatch(), WARM_UP)
    return run


def vector_task(config: EnvConfig, num_envs: int, steps: int = STEPS) -> Task:
    """Steps of the vector environment as a learner calls it: new episodes drawn and begun within the step."""
    venv, random = ServingVectorEnv(num_envs, config, copy=False), RandomActions(num_envs)
    venv.reset(seed=0)

    def run(watch: Stopwatch, rounds: int = max(1, steps // num_envs)) -> int:
        for _ in range(rounds):
            actions = random.draw(venv.simulation.current.mask)
            with watch:
                venv.step(actions)
        return rounds * num_envs

    run(Stopwatch(), WARM_UP)
    return run


def single_task(config: EnvConfig, steps: int = STEPS // 20) -> Task:
    """Steps of the single environment through Gymnasium's interface."""
    env, random = ServingEnv(config), RandomActions(1)
    env.reset(seed=0)

    def run(watch: Stopwatch) -> int:
        for _ in range(steps):
            action = int(random.draw(env.simulation.current.mask)[0])
            with watch:
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()
        return steps

    return run


def memcpy_task(config: EnvConfig, num_envs: int, steps: int = STEPS) -> Task:
    """Copies of as many bytes as an observation with its mask has, between two arrays of as many."""
    ours, other = (Simulation(config, num_envs).current for _ in range(2))

    def run(watch: Stopwatch) -> int:
        rounds = max(1, steps // num_envs)
        with watch:
            for _ in range(rounds):
                np.copyto(ours.flat, other.flat)
                np.copyto(ours.mask, other.mask)
        return rounds * num_envs

    return run


def measure(config: EnvConfig, rounds: int, steps: int = STEPS) -> dict[str, float]:
    """Rates by batch, their ratios to memcpy, and the single environment's."""
    out: dict[str, float] = {}
    for batch in BATCHES:
        tasks = {
            "kernel": kernel_task(config, batch, steps),
            "vector env": vector_task(config, batch, steps),
            "memcpy": memcpy_task(config, batch, steps),
        }
        if batch == 1:
            tasks["single env"] = single_task(config, steps // 20)
        for name, rate in (measured := rates(tasks, rounds)).items():
            out |= rate.values(f"{name}, batch {batch}:", "steps")
        out[f"kernel, batch {batch}: times the time of memcpy"] = measured["memcpy"].cpu / measured["kernel"].cpu
    return out | measure_threads(config, rounds, steps)


def measure_threads(config: EnvConfig, rounds: int, steps: int = STEPS) -> dict[str, float]:
    """Rates by the clock of one, two, four, ... threads, as many as there are cores."""
    out: dict[str, float] = {}
    counts = [2**k for k in range(len(os.sched_getaffinity(0)).bit_length())]
    for batch in BATCHES[2:]:
        tasks = {f"{threads}": kernel_task(config, batch, steps, threads) for threads in counts}
        out |= {
            f"kernel, batch {batch}, threads {threads}: steps/s": rate.wall
            for threads, rate in rates(tasks, rounds).items()
        }
    return out
