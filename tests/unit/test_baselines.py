"""Every rule on short episodes: legal, ends, deterministic, and the behaviour each is named after."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmsched_env.action import Kind
from mmsched_env.config import EnvConfig, env_config
from mmsched_env.core import Simulation
from mmsched_env.evaluation.policies import make_policy, policy_names
from mmsched_env.evaluation.rollout import run_episode
from mmsched_env.policy import Policy


def short(**changes: Any) -> EnvConfig:
    return env_config({"workload": {"kind": "generator", "num_requests": 30, "rate_per_s": 1.0}, **changes})


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return Simulation(short(), 1, logging=True)


@pytest.mark.parametrize("name", policy_names())
def test_serves_every_request_with_legal_actions_and_repeats_itself(name: str, simulation: Simulation) -> None:
    config = simulation.config
    trace = config.workload.sample(5, config.models.names)
    first, second = (run_episode(simulation, make_policy(name)[1], trace, seed=3) for _ in range(2))
    assert first.rows["finished"].all()
    for column, values in first.rows.items():
        np.testing.assert_array_equal(values, second.rows[column])


ALONE = [name for name in policy_names() if name not in ("random", "planner", "clairvoyant")]
"""rules: they need nothing but what they observe"""


@pytest.mark.parametrize("name", ALONE)
def test_a_rule_decides_from_what_it_has_observed_alone(name: str, simulation: Simulation) -> None:
    """Equal histories of observations give equal actions: the second sees copies, and no simulation."""
    config = simulation.config
    simulation.reset(0, config.workload.sample(6, config.models.names))
    policies = [make_policy(name)[1] for _ in range(2)]
    for policy in policies:
        policy.reset(simulation.layout, 0)
    for _ in range(40):
        observation = {key: values[0] for key, values in simulation.current.observation().items()}
        copied = {key: values.copy() for key, values in observation.items()}
        mask = simulation.current.mask[0]
        action = policies[0].act(observation, mask)
        assert policies[1].act(copied, mask.copy()) == action
        assert all(np.array_equal(copied[key], observation[key]) for key in copied)
        if simulation.step(np.array([action]))[0]["terminated"]:
            break


def kinds_used(policy: Policy, config: EnvConfig, seed: int) -> set[Kind]:
    simulation = Simulation(config, 1)
    simulation.reset(0, config.workload.sample(seed, config.models.names))
    policy.reset(simulation.layout, 0)
    used = set()
    done = False
    while not done:
        observation = {key: values[0] for key, values in simulation.current.observation().items()}
        action = policy.act(observation, simulation.current.mask[0])
        used.add(simulation.layout.decode(action).kind)
        outcome = simulation.step(np.array([action]))[0]
        done = bool(outcome["terminated"])
    return used


@pytest.mark.parametrize(
    ("policy", "never"),
    [("mect", {"admit_after_s": 1e9}), ("composite", {"admission": float("inf")})],
)
def test_offloads_to_let_a_long_prompt_in(policy: str, never: dict[str, float]) -> None:
    config = short(
        cluster={"gpus": ["rtx-4090-24gb"], "hosts": ["desktop-ddr5"], "gpu_hosts": []},
        models={"names": ["qwen3-32b-q4_k_m"]},
        workload={
            "kind": "generator",
            "num_requests": 60,
            "rate_per_s": 0.05,
            "prompt": {"median": 600.0, "sigma": 1.6, "max": 24000},
        },
    )
    assert Kind.OFFLOAD in kinds_used(make_policy(policy)[1], config, seed=1000)
    assert Kind.OFFLOAD not in kinds_used(make_policy({"name": policy, **never})[1], config, seed=1000)


def test_preemptive_preempts_batch_work_for_interactive_requests() -> None:
    config = short(
        cluster={"gpus": ["rtx-4090-24gb"], "hosts": ["desktop-ddr5"], "gpu_hosts": []},
        models={"names": ["qwen2.5-14b-q4_k_m", "qwen3-32b-q4_k_m"]},
        workload={
            "kind": "generator",
            "num_requests": 60,
            "rate_per_s": 0.08,
            "output": {"median": 400.0},
            "classes": {"interactive_share": 0.3, "batch_weight": 0.05},
        },
    )
    simulation = Simulation(config, 1)
    trace = config.workload.sample(1004, config.models.names)
    eager = run_episode(simulation, make_policy({"name": "preemptive", "factor": 2})[1], trace, 0)
    never = run_episode(simulation, make_policy({"name": "preemptive", "factor": 1e12})[1], trace, 0)
    assert eager.summary["preemptions"] > 0
    assert eager.summary["weighted_mean_e2e_ms"] < never.summary["weighted_mean_e2e_ms"]
    assert never.summary["preemptions"] == 0
