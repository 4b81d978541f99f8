"""Other environments in the same run, as far as they are installed: pip install "mmsched-env[peers]".

Gymnasium's CartPole (its own vector environment, 16-byte observations), jumanji's JobShop (vmapped and scanned on the CPU, the
fastest scheduling environment we know of), and SB3's DummyVecEnv and SubprocVecEnv over our own single environment.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from mmsched_env.config import EnvConfig
from mmsched_env.env import ServingEnv

from .environment import RandomActions, kernel_task, vector_task
from .timing import Stopwatch, Task, rates

BATCH = 256


def cartpole_task(steps: int = 200_000) -> Task:
    """Gymnasium's vectorised CartPole, random actions drawn beforehand."""
    venv = gym.make_vec("CartPole-v1", BATCH, "vector_entry_point")
    venv.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 2, (steps // BATCH, BATCH))

    def run(watch: Stopwatch) -> int:
        with watch:
            for row in actions:
                venv.step(row)
        return actions.size

    return run


def jumanji_task(batch: int = BATCH, scanned: int = 50) -> Task:
    """jumanji's JobShop-v0, random valid actions drawn within, `vmap` over a batch and `scan` over steps, episodes reset
    within."""
    import jax
    import jumanji
    from jumanji.wrappers import AutoResetWrapper

    env = AutoResetWrapper(jumanji.make("JobShop-v0"))

    def act(key: Any, mask: Any) -> Any:
        keys = jax.random.split(key, mask.shape[0])
        logits = jax.numpy.where(mask, 0.0, -jax.numpy.inf)
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jax.numpy.int32)

    def one(carry: Any, _: Any) -> Any:
        state, step, key = carry
        key, draw = jax.random.split(key)
        actions = jax.vmap(act)(jax.random.split(draw, batch), step.observation.action_mask)
        state, step = jax.vmap(env.step)(state, actions)
        return (state, step, key), step.reward

    roll = jax.jit(lambda carry: jax.lax.scan(one, carry, None, scanned))

    key = jax.random.PRNGKey(0)
    carry = (*jax.jit(jax.vmap(env.reset))(jax.random.split(key, batch)), key)

    def run(watch: Stopwatch) -> int:
        nonlocal carry
        with watch:
            carry, rewards = roll(carry)
            rewards.block_until_ready()
        return batch * scanned

    return run


def sb3_task(config: EnvConfig, processes: bool, num_envs: int, steps: int) -> Task:
    """Our single environment under SB3's own vector environments; actions are drawn off the clock."""
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

    venv: VecEnv = (SubprocVecEnv if processes else DummyVecEnv)([partial(ServingEnv, config)] * num_envs)
    random = RandomActions(num_envs)
    seen: Any = venv.reset()

    def run(watch: Stopwatch) -> int:
        nonlocal seen
        for _ in range(steps // num_envs):
            actions = random.draw(seen["action_mask"])
            with watch:
                seen, _, _, _ = venv.step(actions)
        return steps // num_envs * num_envs

    return run


def measure(config: EnvConfig, rounds: int) -> dict[str, float]:
    """Rates by wall clock of what is installed, and ours over theirs. Only jumanji draws its actions within its time: what
    compares with it is ours with drawing."""
    tasks: dict[str, Task] = {
        "ours, kernel": kernel_task(config, BATCH),
        "ours, kernel and drawing": kernel_task(config, BATCH, draws_timed=True),
        "ours, vector env": vector_task(config, BATCH),
        "gymnasium CartPole": cartpole_task(),
    }
    if importlib.util.find_spec("jumanji"):
        tasks["jumanji JobShop"] = jumanji_task()
    if importlib.util.find_spec("stable_baselines3"):
        tasks["SB3 DummyVecEnv over ours"] = sb3_task(config, False, 16, 3200)
        tasks["SB3 SubprocVecEnv over ours"] = sb3_task(config, True, 2, 800)
    measured = rates(tasks, rounds)
    out: dict[str, float] = {}
    for name, rate in measured.items():
        out |= rate.values(f"{name}:", "steps")
    for name in tasks:
        if not name.startswith("ours"):
            for ours in ("ours, kernel", "ours, kernel and drawing", "ours, vector env"):
                out[f"{ours} over {name}, wall clock"] = measured[ours].wall / measured[name].wall
    return out
