"""The vector environment is N single ones, bit for bit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from mmsched_env.config import ConfigError
from mmsched_env.core import Simulation
from mmsched_env.env import ServingEnv
from mmsched_env.errors import MmschedError
from mmsched_env.vector_env import ServingVectorEnv

N = 5
SEEDS = [11, 3, 5, 8, 2]


def equal(a: Any, b: Any) -> bool:
    """Same keys, types, shapes and bits; NaN equals NaN."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f") if hasattr(a, "dtype") else a == b


@pytest.mark.parametrize("copy", [True, False])
def test_vector_equals_singles(tiny: Any, random_action: Any, copy: bool) -> None:
    """Observations, rewards, flags, infos and metrics, over several episodes of different lengths each."""
    config = tiny(6, preempt_mode="recompute")
    vector = ServingVectorEnv(N, config, copy=copy)
    singles = [ServingEnv(config) for _ in range(N)]
    rng = np.random.default_rng(0)
    batch, infos = vector.reset(seed=SEEDS)
    obs = [env.reset(seed=seed)[0] for env, seed in zip(singles, SEEDS, strict=True)]
    episodes = np.zeros(N, int)
    for step in range(400):
        for i in range(N):
            assert equal({key: values[i] for key, values in batch.items()}, obs[i]), (step, i)
        actions = np.array([random_action(rng, vector.simulation.layout, o["action_mask"]) for o in obs])
        if step % 10 == 0:
            actions[step % N] = 404 if step % 20 else -1
        assert np.array_equal(vector.action_masks(), batch["action_mask"] == 1)
        batch, rewards, terminated, truncated, infos = vector.step(actions)
        for i, env in enumerate(singles):
            obs[i], reward, over, cut, info = env.step(int(actions[i]))
            assert (rewards[i], terminated[i], truncated[i]) == (reward, over, cut)
            last = infos["final_info"] if over or cut else infos
            assert last["time_s"][i] == info["time_s"] and last["illegal_action"][i] == info["illegal_action"]
            for name, value in info["reward_terms"].items():
                assert last["reward_terms"][name][i] == value
            assert ("final_obs" in infos and infos["final_obs"][i] is not None) == (over or cut)
            if over or cut:
                assert infos["_final_obs"][i] and infos["_final_info"][i]
                assert equal(infos["final_obs"][i], obs[i])
                metrics = {k: v[i] for k, v in infos["final_info"]["metrics"].items() if k[0] != "_"}
                assert metrics.keys() == info["metrics"].keys()
                assert all(equal(np.float64(metrics[k]), np.float64(info["metrics"][k])) for k in metrics)
                obs[i] = env.reset()[0]
                episodes[i] += 1
        if (terminated | truncated).any():
            assert infos["_final_obs"].tolist() == (terminated | truncated).tolist()
    assert episodes.min() >= 1 and len(set(episodes.tolist())) > 1


def test_vector_equals_gymnasium_sync_vector_env(tiny: Any, random_action: Any) -> None:
    """What Gymnasium makes of the single environment, with the same autoreset."""
    ours = gym.make_vec("mmsched/Serving-v0", 2, vectorization_mode="vector_entry_point", config=tiny(3))
    theirs = gym.make_vec(
        "mmsched/Serving-v0",
        2,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        config=tiny(3),
    )
    rng, layout = np.random.default_rng(0), ours.unwrapped.simulation.layout
    a, b = ours.reset(seed=4)[0], theirs.reset(seed=4)[0]
    ends = 0
    for _ in range(150):
        assert all(np.array_equal(a[key], b[key]) for key in b)
        actions = np.array([random_action(rng, layout, mask) for mask in b["action_mask"]])
        a, *flags, infos = ours.step(actions)
        b, *expected, their_infos = theirs.step(actions)
        assert all(np.array_equal(x, y) for x, y in zip(flags, expected, strict=True))
        for i in np.flatnonzero(flags[1]):
            assert equal(infos["final_obs"][i], their_infos["final_obs"][i])
            ends += 1
    assert ends > 1


def test_int_seed_and_list_of_seeds(tiny: Any) -> None:
    vector = ServingVectorEnv(3, tiny())
    a, _ = vector.reset(seed=40)
    b, _ = vector.reset(seed=[40, 41, 42])
    assert equal(a, b)
    assert not np.array_equal(a["queue"][0], a["queue"][1])
    with pytest.raises(ConfigError, match="seed has 2 entries"):
        vector.reset(seed=[1, 2])


def test_spaces_and_metadata(tiny: Any) -> None:
    vector = gym.make_vec("mmsched/Serving-v0", 3, vectorization_mode="vector_entry_point", config=tiny())
    assert vector.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    obs, _ = vector.reset(seed=0)
    assert vector.observation_space.contains(obs)
    assert vector.action_space.contains(np.array([0, 1, 404]))
    for bad in (np.zeros(2, int), np.zeros((3, 1), int)):
        with pytest.raises(ConfigError, match="actions have shape"):
            vector.step(bad)


def test_copies_are_left_alone_and_views_are_brought_up_to_date(tiny: Any) -> None:
    copying, viewing = ServingVectorEnv(2, tiny()), ServingVectorEnv(2, tiny(), copy=False)
    last, shown = copying.reset(seed=0)[0], viewing.reset(seed=0)[0]
    for _ in range(6):
        before = {key: values.copy() for key, values in last.items()}
        actions = np.array([np.flatnonzero(mask)[-1] for mask in last["action_mask"]])
        now, same = copying.step(actions)[0], viewing.step(actions)[0]
        assert equal(before, last) and not equal(before, now)
        assert equal(now, same) and all(np.shares_memory(shown[key], same[key]) for key in same)
        last = now


def test_some_environments_can_be_reset(tiny: Any) -> None:
    vector = ServingVectorEnv(3, tiny())
    vector.reset(seed=0)
    for _ in range(3):
        vector.step(np.array([np.flatnonzero(mask)[-1] for mask in vector.action_masks()]))
    times = vector.simulation.state["now"].copy()
    obs, _ = vector.reset(seed=[0, None, 9], options={"reset_mask": np.array([False, False, True])})
    assert vector.simulation.state["now"][:2].tolist() == times[:2].tolist()
    fresh, _ = ServingEnv(tiny()).reset(seed=9)
    assert equal({key: values[2] for key, values in obs.items()}, fresh)


def test_one_trace_for_all(tiny: Any, trace_of: Any) -> None:
    vector = ServingVectorEnv(2, tiny())
    obs, _ = vector.reset(options={"trace": trace_of(arrival_s=[1.0], output_tokens=[2])})
    assert all(np.array_equal(values[0], values[1]) for values in obs.values())


def test_longer_traces_make_room(tiny: Any, trace_of: Any) -> None:
    """A longer trace in one environment must not disturb the other, whose episode goes on."""
    vector = ServingVectorEnv(2, tiny(), logging=True)
    short = trace_of(arrival_s=[1.0], output_tokens=[2])
    vector.reset(seed=0, options={"trace": short})
    before = vector.simulation.episode_requests(0).copy()
    long = trace_of(arrival_s=np.linspace(0, 50, 500), output_tokens=3)
    vector.reset(options={"trace": long, "reset_mask": np.array([False, True])})
    assert vector.simulation.episode_requests(0).tobytes() == before.tobytes()
    assert len(vector.simulation.episode_requests(1)) == 500
    assert vector.simulation.event_log(0)["request"].tolist() == [0]


def test_strict_actions_name_the_environment(tiny: Any) -> None:
    vector = ServingVectorEnv(2, tiny(strict_actions=True))
    vector.reset(seed=0)
    state = vector.simulation.state.tobytes()
    legal = int(np.flatnonzero(vector.action_masks()[0])[0])
    with pytest.raises(MmschedError, match="action 404 of environment 1 is illegal now"):
        vector.step(np.array([legal, 404]))
    assert vector.simulation.state.tobytes() == state


def test_refusals(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="num_envs is 0"):
        ServingVectorEnv(0, tiny())
    with pytest.raises(ConfigError, match="does not render"):
        ServingVectorEnv(1, tiny(), render_mode="ansi")


def test_actions_are_whole_numbers(tiny: Any) -> None:
    venv = ServingVectorEnv(2, tiny())
    venv.reset(seed=0)
    with pytest.raises(ConfigError, match="actions are of type float64; accepted: whole numbers"):
        venv.step(np.array([0.5, np.nan]))
    venv.step(np.zeros(2, np.uint8))
    with pytest.raises(ConfigError, match="seed has 3 entries"):
        venv.reset(seed=np.array([1, 2, 3]))
    venv.reset(seed=np.array([1, 2]))


def test_step_before_reset(tiny: Any) -> None:
    with pytest.raises(gym.error.ResetNeeded):
        ServingVectorEnv(2, tiny()).step(np.zeros(2, int))


def test_threads_change_nothing(tiny: Any, random_action: Any) -> None:
    runs = []
    for threads in (1, 2):
        vector = ServingVectorEnv(5, tiny(12), threads=threads)
        vector.reset(seed=3)
        rng, total = np.random.default_rng(0), np.zeros(5)
        for _ in range(60):
            layout, masks = vector.simulation.layout, vector.action_masks()
            _, rewards, *_ = vector.step(np.array([random_action(rng, layout, mask) for mask in masks]))
            total += rewards
        runs.append((total.tolist(), vector.simulation.current.flat.copy()))
    assert runs[0][0] == runs[1][0]
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    with pytest.raises(ConfigError, match="threads is 3"):
        Simulation(tiny(12), 2, threads=3)
