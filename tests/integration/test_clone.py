"""Clones and snapshots: exact, independent, cheap enough to branch a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmsched_env.config import ConfigError
from mmsched_env.core import Simulation
from mmsched_env.env import ServingEnv


def play(env: ServingEnv, random_action: Any, seed: int, steps: int) -> list[Any]:
    """Random legal actions; everything that comes of them."""
    rng = np.random.default_rng(seed)
    seen = []
    for _ in range(steps):
        action = random_action(rng, env.layout, env.simulation.current.mask[0])
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append((action, reward, info["time_s"], {key: values.tobytes() for key, values in observation.items()}))
        if terminated or truncated:
            env.reset()
    return seen


@pytest.mark.parametrize("warm_up", [3, 60])
def test_a_clone_goes_on_identically_and_independently(tiny: Any, random_action: Any, warm_up: int) -> None:
    env = ServingEnv(tiny(num_requests=30))
    env.reset(seed=1)
    play(env, random_action, 0, warm_up)
    twin = env.clone()
    first = play(env, random_action, 1, 80)  # 80 steps may go over into the next episode: the generator is cloned too
    assert play(twin, random_action, 1, 80) == first


def test_diverge_and_rejoin(tiny: Any, random_action: Any) -> None:
    env = ServingEnv(tiny(num_requests=30))
    env.reset(seed=2)
    play(env, random_action, 0, 20)
    state = env.get_state()
    before = env.simulation.state.tobytes()
    straight = play(env, random_action, 5, 60)
    env.set_state(state)
    assert env.simulation.state.tobytes() == before
    play(env, random_action, 6, 40)  # elsewhere
    env.set_state(state)
    assert play(env, random_action, 5, 60) == straight
    log = env.simulation.event_log(0)
    assert log["seq"].tolist() == list(range(len(log)))


def test_a_batch_of_branches_equals_the_original(tiny: Any, random_action: Any) -> None:
    config = tiny(num_requests=30)
    env = ServingEnv(config)
    env.reset(seed=3)
    play(env, random_action, 0, 25)
    branches = Simulation(config, 5)
    branches.restore(env.simulation.snapshot(0))
    for key, values in branches.current.observation().items():
        assert all(np.array_equal(row, env.simulation.current.observation()[key][0]) for row in values)
    rng = np.random.default_rng(0)
    for _ in range(30):
        action = random_action(rng, env.layout, env.simulation.current.mask[0])
        outcomes = branches.step(np.full(5, action))
        _, reward, terminated, _, info = env.step(action)
        assert outcomes["reward"].tolist() == [reward] * 5
        assert branches.state["now"].tolist() == [info["time_s"]] * 5
        if terminated:
            break


def test_a_snapshot_needs_an_episode(tiny: Any) -> None:
    with pytest.raises(ConfigError, match=r"snapshot\(\) before reset\(\)"):
        ServingEnv(tiny()).get_state()
