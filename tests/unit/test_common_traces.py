"""Environments that play the same traces, and what their advantages have in common."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsched_env.agents import train as train_module
from mmsched_env.agents.common_traces import input_dependent_baseline
from mmsched_env.agents.config import AgentConfig, TrainConfig
from mmsched_env.agents.ppo import AnchoredPPO
from mmsched_env.agents.sb3_vec_env import ServingSB3VecEnv
from mmsched_env.agents.train import make_model, make_venv
from mmsched_env.config import EnvConfig, SimConfig
from mmsched_env.errors import ConfigError
from mmsched_env.workload import GeneratorConfig

SHORT = EnvConfig(workload=GeneratorConfig(num_requests=8), sim=SimConfig(max_steps=120))


def columns(*rows):
    """One row per environment, as (steps, N)."""
    return np.array(rows, float).T


def test_it_is_the_mean_of_the_others_at_that_time():
    times = columns([0, 2, 4], [1, 3, 5], [0, 4, 8])
    advantages = columns([9, 9, 9], [10, 30, 50], [0, 40, 80])
    baseline = input_dependent_baseline(advantages, np.zeros((3, 3), int), times, 3)
    # at 0 s only the third had decided before, at 2 and 4 s both others had
    np.testing.assert_allclose(baseline[:, 0], [0, (20 + 20) / 2, (40 + 40) / 2])


def test_another_trace_or_another_group_says_nothing():
    times = columns([0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2])
    advantages = columns([1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12])
    episodes = columns([0, 0, 0], [0, 0, 1], [0, 0, 0], [2, 2, 2]).astype(int)
    baseline = input_dependent_baseline(advantages, episodes, times, 2)
    np.testing.assert_allclose(baseline, columns([4, 5, 0], [1, 2, 0], [0, 0, 0], [0, 0, 0]))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), group=st.sampled_from([2, 3, 4]))
def test_traffic_goes_and_what_one_did_stays(seed, group):
    """Advantages that are a straight line of the trace's time, and each environment's own constant: the line goes, the constants'
    differences stay, and no environment's baseline knows its own."""
    rng = np.random.default_rng(seed)
    steps, num_envs = 12, 2 * group
    times = np.sort(rng.uniform(0, 10, (steps, num_envs)), axis=0)
    episodes = np.zeros((steps, num_envs), int)
    own = rng.normal(size=num_envs)
    advantages = 3 * times + own
    baseline = input_dependent_baseline(advantages, episodes, times, group)
    for env in range(num_envs):
        others = [other for other in range(env // group * group, (env // group + 1) * group) if other != env]
        for step in range(steps):
            there = [other for other in others if times[0, other] <= times[step, env] <= times[-1, other]]
            expected = 3 * times[step, env] + np.mean(own[there]) if there else 0.0
            assert baseline[step, env] == pytest.approx(expected)
    changed = advantages.copy()
    changed[:, 0] += 100
    assert np.array_equal(input_dependent_baseline(changed, episodes, times, group)[:, 0], baseline[:, 0])


def test_a_group_plays_the_same_traces_and_says_when_it_decided():
    adapter = ServingSB3VecEnv(4, SHORT, common_traces=2)
    adapter.seed(3)
    adapter.reset()
    arrivals = {0: {}, 1: {}, 2: {}, 3: {}}
    rng = np.random.default_rng(0)
    for _ in range(600):
        simulation = adapter.serving.simulation
        for env in range(4):
            arrivals[env].setdefault(int(adapter.ended[env]), simulation.episode_requests(env)["arrival_s"].copy())
        now, ended = simulation.state["now"].copy(), adapter.ended.copy()
        masks = adapter.action_masks()
        drawn = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        served = np.where(masks[:, 1 : simulation.layout.preempt_at].any(1), 1 + masks[:, 1:].argmax(1), 0)
        # two ways of deciding in each group, of which the first seldom ends an episode
        adapter.step(np.where([True, False, True, False], drawn, served))
        np.testing.assert_array_equal(adapter.decided_s, now)
        np.testing.assert_array_equal(adapter.finished, ended)
    assert adapter.ended.min() >= 2 and len(set(adapter.ended)) > 1
    for one, other in ((0, 1), (2, 3)):
        for number in arrivals[one].keys() & arrivals[other].keys():
            np.testing.assert_array_equal(arrivals[one][number], arrivals[other][number])
    assert not np.array_equal(arrivals[0][0], arrivals[2][0])
    assert not np.array_equal(arrivals[0][0], arrivals[0][1])


def test_training_takes_it_off_the_advantages_and_not_off_the_returns():
    agent = dataclasses.replace(AgentConfig(), n_steps=64, batch_size=64, net_arch=(8,), advisers=(), common_traces=2)
    config = TrainConfig(envs=(SHORT,), num_envs=4, agent=agent)
    venv, serving = make_venv(config)
    model = make_model(config, venv, serving)
    model.learn(4 * 64)
    buffer = model.rollout_buffer
    rows = (64, 4)  # SB3 lays the rows of a used buffer out environment by environment
    values, returns, advantages = (
        getattr(buffer, name).reshape(4, 64).T for name in ("values", "returns", "advantages")
    )
    assert buffer.times_s.shape == rows and (np.diff(buffer.times_s, axis=0).max(axis=0) > 0).all()
    baseline = input_dependent_baseline(returns - values, buffer.episodes, buffer.times_s, 2)
    assert (baseline != 0).mean() > 0.5
    np.testing.assert_allclose(advantages, returns - values - baseline, atol=1e-4)


def test_a_group_plays_the_same_traces_after_an_imitation_too(tmp_path, monkeypatch):
    """In which some of a group end more episodes than the others."""
    seen = []

    def learn(model, *_, **__):
        model.env.reset()
        parts = [part.venv for part in model.env.parts]
        seen.extend(part.serving.simulation.requests["arrival_s"].copy() for part in parts)
        assert parts[0].common_traces == 2
        return model

    def imitate(model, *_):
        model.env.reset()
        model.env.parts[0].venv.serving._rngs[1].random()  # as if it had begun another episode

    monkeypatch.setattr(AnchoredPPO, "learn", learn)
    monkeypatch.setattr(train_module, "imitate", imitate)
    agent = dataclasses.replace(AgentConfig(), n_steps=64, batch_size=64, net_arch=(8,), advisers=(), common_traces=2)
    settings = {"num_envs": 4, "agent": agent, "run_dir": str(tmp_path), "validate_every": 0, "total_steps": 256}
    train_module.train(TrainConfig(envs=(SHORT,), **settings))
    (arrivals,) = seen
    np.testing.assert_array_equal(arrivals[0], arrivals[1])
    np.testing.assert_array_equal(arrivals[2], arrivals[3])
    assert not np.array_equal(arrivals[0], arrivals[2])


def test_groups_must_come_out_even():
    agent = dataclasses.replace(AgentConfig(), common_traces=3)
    with pytest.raises(ConfigError, match=r"agent.common_traces is 3; accepted: a divisor of .* \(4\)"):
        TrainConfig(envs=(SHORT,), num_envs=4, agent=agent)
    with pytest.raises(ConfigError, match=r"agent.common_traces is 0; accepted: a whole number >= 1"):
        dataclasses.replace(AgentConfig(), common_traces=0)
    scratch = dataclasses.replace(AgentConfig().imitation, teacher=None)
    with pytest.raises(ConfigError, match=r"agent.common_traces is 2; accepted: 1 with dqn"):
        AgentConfig(algorithm="dqn", advisers=(), imitation=scratch, common_traces=2)
