"""Episodes that rules play in compiled code are the episodes of the loop in Python, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from mmsched_env.config import EnvConfig, SimConfig
from mmsched_env.core import Simulation
from mmsched_env.evaluation import rollout
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.policy import CompiledPolicy
from mmsched_env.workload.generator import GeneratorConfig

CONFIG = EnvConfig(workload=GeneratorConfig(num_requests=60))


def played(monkeypatch: pytest.MonkeyPatch, name: str, first: int) -> tuple[Simulation, rollout.Episode]:
    """One episode; compiled code takes over after `first` timed decisions, in short stretches."""
    monkeypatch.setattr(rollout, "TIMED_FIRST", first)
    monkeypatch.setattr(rollout, "STRETCH", 7)
    simulation, policy = Simulation(CONFIG, 1), make_policy(name)[1]
    trace = CONFIG.workload.sample(5, CONFIG.models.names)
    return simulation, rollout.run_episode(simulation, policy, trace, seed=1)


@pytest.mark.parametrize("name", ["fcfs", "mect", "composite", "power_of_two"])
def test_compiled_and_python_loops_are_one_episode(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    python_simulation, python = played(monkeypatch, name, 10**9)
    simulation, compiled = played(monkeypatch, name, 3)
    assert len(compiled.decision_s) < len(python.decision_s) == python.summary["decisions"]
    assert compiled.summary == python.summary
    for key, values in python.rows.items():
        np.testing.assert_array_equal(values, compiled.rows[key])
    for field in python_simulation.state.dtype.names:
        np.testing.assert_array_equal(python_simulation.state[field], simulation.state[field])
    np.testing.assert_array_equal(python_simulation.current.flat, simulation.current.flat)


def test_a_batch_is_played_to_its_ends() -> None:
    simulation, policy = Simulation(CONFIG, 3), make_policy("fcfs")[1]
    policy.reset(simulation.layout, 0)
    from mmsched_env.baselines.memory import copies

    for env in range(3):
        simulation.reset(env, CONFIG.workload.sample(env, CONFIG.models.names), env)
    rewards = np.zeros(3)
    decisions = policy.play_batch(simulation, copies(policy.memory, 3), 10**6, rewards)
    assert simulation.outcomes.terminated.all()
    np.testing.assert_array_equal(simulation.state["num_steps"], decisions)
    for env in range(3):
        alone = Simulation(CONFIG, 1)
        episode = rollout.run_episode(
            alone, make_policy("fcfs")[1], CONFIG.workload.sample(env, CONFIG.models.names), 0
        )
        assert episode.summary["decisions"] == decisions[env]


def test_a_limit_is_kept() -> None:
    simulation, policy = Simulation(CONFIG, 1), make_policy("fcfs")[1]
    policy.reset(simulation.layout, 0)
    simulation.reset(0, CONFIG.workload.sample(0, CONFIG.models.names))
    assert isinstance(policy, CompiledPolicy)
    assert policy.play(simulation, 5) == 5
    assert simulation.state["num_steps"][0] == 5


def test_logged_and_checked_episodes_stay_in_python() -> None:
    assert Simulation(CONFIG, 1, logging=True).needs_python
    assert Simulation(EnvConfig(sim=SimConfig(debug_checks=True)), 1).needs_python
    assert not Simulation(CONFIG, 1).needs_python


def test_rollouts_in_compiled_code_are_those_of_one_decision_at_a_time() -> None:
    from mmsched_env.baselines.planner import Planner

    chosen = []
    for stretch in (1, 999):
        simulation, planner = Simulation(CONFIG, 1), Planner(samples=2, width=4)
        planner._stretch = stretch
        planner.reset(simulation.layout, 0)
        simulation.reset(0, CONFIG.workload.sample(3, CONFIG.models.names))
        planner.attach(simulation)
        action = np.zeros(1, np.int64)
        rewards = []
        for _ in range(12):
            observation = {key: values[0] for key, values in simulation.current.observation().items()}
            action[0] = planner.act(observation, simulation.current.mask[0])
            legal = np.flatnonzero(simulation.current.mask[0])[:4]
            for w, world in enumerate(planner._worlds(simulation, 2)):
                planner._branches.restore(world, slice(w * len(legal), (w + 1) * len(legal)))
            rewards.append(planner._roll(np.tile(legal, 2)).tolist())
            simulation.step(action)
        chosen.append(rewards)
    assert chosen[0] == chosen[1]
