"""The benchmark's parts run, and the regression check by ratio holds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mmsched_env.benchmarks.__main__ import PARTS, measure
from mmsched_env.benchmarks.environment import RandomActions, kernel_task, on_gpus
from mmsched_env.benchmarks.machine import machine
from mmsched_env.benchmarks.requests import one_model, poisson_trace
from mmsched_env.benchmarks.timing import Rate, Stopwatch, rates
from mmsched_env.config import EnvConfig, SimConfig
from mmsched_env.core import Simulation
from mmsched_env.errors import ConfigError
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.evaluation.rollout import run_episode


def test_ratios_hold() -> None:
    figures = measure("ratios", EnvConfig(), 3)
    assert figures["holds"] == 1.0, figures


def test_every_figure_is_a_positive_number() -> None:
    figures = measure("memory", EnvConfig(), 1)
    assert all(value > 0 for value in figures.values())
    assert machine()["packages"]["numba"]


def test_rates_are_of_the_time_on_the_clock() -> None:
    def task(watch: Stopwatch) -> int:
        total = 0
        with watch:
            for i in range(200_000):
                total += i
        for i in range(400_000):  # off the clock
            total += i
        return 200_000

    whole = rates({"a": task}, 3)["a"]
    assert isinstance(whole, Rate)
    watch = Stopwatch()
    task(watch)
    assert whole.fastest * watch.wall_s < 3 * 200_000


def test_random_actions_are_legal() -> None:
    simulation, random = Simulation(EnvConfig(), 2), RandomActions(2)
    for env in range(2):
        simulation.reset(env, EnvConfig().workload.sample(env, EnvConfig().models.names))
    for _ in range(50):
        mask = simulation.current.mask
        actions = random.draw(mask)
        assert mask[[0, 1], actions].all()
        assert not simulation.step(actions)["illegal"].any()


def test_fcfs_serves_the_compared_workload_the_same_with_all_to_decide_and_to_see() -> None:
    single = one_model()
    full = dataclasses.replace(single, sim=SimConfig(), limits=dataclasses.replace(single.limits, queue=16))
    trace = poisson_trace(4.0, 300)  # above what the GPU serves: requests wait and are put together
    short, long = (run_episode(Simulation(config, 1), make_policy("fcfs")[1], trace, 0) for config in (single, full))
    assert long.rows["queue_s"].max() > 1.0
    for column in ("queue_s", "ttft_s", "e2e_s"):
        np.testing.assert_array_equal(short.rows[column], long.rows[column])


def test_more_gpus_of_the_same_kinds() -> None:
    wide = on_gpus(EnvConfig(), 8)
    assert wide.cluster.gpus == 2 * EnvConfig().cluster.gpus and wide.cluster.gpu_hosts == (0, 0, 1, 1, 2, 2, 3, 3)
    assert wide.limits.gpus == 8 and wide.limits.hosts == len(wide.cluster.hosts) == 4


def test_a_wrong_part_is_named() -> None:
    with pytest.raises(ConfigError, match="part of the benchmark"):
        measure("speed", EnvConfig(), 1)
    assert set(PARTS) >= {"environment", "ratios"}
    assert callable(kernel_task)


def test_the_training_part_times_what_the_trainer_builds() -> None:
    pytest.importorskip("sb3_contrib")
    from mmsched_env.benchmarks import training

    model, serving = training.ours(EnvConfig())
    assert model.env is not None and model.env.num_envs == serving.num_envs == training.NUM_ENVS
    assert model.n_steps * training.NUM_ENVS == training.ROLLOUT


def test_the_export_part_times_decisions() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("sb3_contrib")
    from mmsched_env.benchmarks import export

    figures = export.measure(EnvConfig(), rounds=1, decisions=5)
    assert set(figures) == {"exported: ms a decision", "network: ms a decision"} and min(figures.values()) > 0


def test_the_attention_network_sees_what_is_there_and_nothing_else() -> None:
    torch = pytest.importorskip("torch")
    from mmsched_env.benchmarks import training

    model, serving = training.attention(EnvConfig())
    observation = model.policy.obs_to_tensor(serving.reset())[0]
    before = model.policy.extract_features(observation)
    slot = int(observation["queue"][0, :, 0].argmin())
    assert observation["queue"][0, slot, 0] == 0, "an empty slot"
    observation["queue"][0, slot, 1:] = 7.0
    assert torch.equal(model.policy.extract_features(observation), before)
    observation["queue"][0, slot, 0] = 1.0
    assert not torch.equal(model.policy.extract_features(observation), before)


def test_the_gpu_part_says_that_it_needs_a_gpu() -> None:
    from numba import cuda

    if cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="NVIDIA GPU"):
        measure("gpu", EnvConfig(), 1)
