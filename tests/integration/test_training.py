"""Short training runs: they learn something, go on where they stopped, and leave a policy that can be used."""

import dataclasses
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmsched_env.action import ActionLayout
from mmsched_env.agents.checkpoint import read_checkpoint
from mmsched_env.agents.config import AgentConfig, TrainConfig
from mmsched_env.agents.loader import load_policy
from mmsched_env.agents.train import train
from mmsched_env.config import EnvConfig
from mmsched_env.errors import ConfigError
from mmsched_env.policy import Policy
from mmsched_env.sim.state import Dims
from mmsched_env.vector_env import ServingVectorEnv
from mmsched_env.workload import GeneratorConfig

ENV = EnvConfig(workload=GeneratorConfig(num_requests=10))
AGENT = AgentConfig(n_steps=64, batch_size=128, n_epochs=2, net_arch=(16,))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configuration(folder, **changes):
    values = {"env": ENV, "agent": AGENT, "total_steps": 512, "num_envs": 4, "checkpoint_every": 256}
    return TrainConfig(run_dir=str(folder), **(values | changes))


def weights(path):
    return read_checkpoint(path).parameters["policy"]


@pytest.mark.parametrize("policy", ["scorer", "mlp"])
def test_same_seed_same_weights(tmp_path, policy):
    agent = dataclasses.replace(AGENT, policy=policy)
    first, again = (train(configuration(tmp_path / name, agent=agent, seed=3)) for name in "ab")
    other = train(configuration(tmp_path / "c", agent=agent, seed=4))
    assert first.num_steps == 512 and not first.stopped
    differs = False
    for name, value in weights(first.checkpoint).items():
        torch.testing.assert_close(value, weights(again.checkpoint)[name], rtol=0, atol=0)
        differs |= not torch.equal(value, weights(other.checkpoint)[name])
    assert differs


def test_a_run_leaves_checkpoints_and_figures(tmp_path):
    result = train(configuration(tmp_path))
    assert result.checkpoint == tmp_path / "latest.zip"
    assert [file.name for file in sorted((tmp_path / "checkpoints").iterdir())] == ["000000256.zip", "000000512.zip"]
    checkpoint = read_checkpoint(result.checkpoint)
    assert checkpoint.num_steps == 512
    assert checkpoint.returns is not None and checkpoint.returns["var"] > 0
    assert checkpoint.env["workload"]["num_requests"] == 10
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    for name in ("p50_ttft_ms", "p99_ttft_ms", "slo_attainment", "loads_per_100", "gpu_busy_share"):
        assert f"scheduler/{name}" in tags
    assert {"rollout/ep_rew_mean", "train/approx_kl"} <= set(tags)


def test_resume_goes_on(tmp_path):
    train(configuration(tmp_path))
    before = read_checkpoint(tmp_path / "latest.zip")
    result = train(configuration(tmp_path, total_steps=1024, resume=True))
    after = read_checkpoint(result.checkpoint)
    assert (before.num_steps, after.num_steps) == (512, 1024)
    assert after.num_updates == 2 * before.num_updates
    assert after.returns["count"] == pytest.approx(before.returns["count"] + 512)
    done = train(configuration(tmp_path, total_steps=1024, resume=True))
    assert done.num_steps == 1024


def test_resume_starts_from_the_checkpoints_weights(tmp_path):
    train(configuration(tmp_path))
    result = train(configuration(tmp_path, resume=True))  # nothing left to do
    for name, value in weights(tmp_path / "checkpoints" / "000000512.zip").items():
        torch.testing.assert_close(value, weights(result.checkpoint)[name], rtol=0, atol=0)


def test_resume_refuses_another_network(tmp_path):
    train(configuration(tmp_path))
    with pytest.raises(ConfigError, match=r"net_arch=\[16\]"):
        train(configuration(tmp_path, resume=True, agent=dataclasses.replace(AGENT, net_arch=(8,))))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends(tmp_path, capsys, number):
    def interrupt():
        while not (tmp_path / "tensorboard").exists():
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=interrupt, daemon=True).start()
    result = train(configuration(tmp_path, total_steps=10_000_000))
    assert result.stopped and 0 < result.num_steps < 10_000_000
    assert read_checkpoint(result.checkpoint).num_steps == result.num_steps
    assert signal.getsignal(number) is before
    assert f"{number.name}: stopped after" in capsys.readouterr().err


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_loaded_policy_acts_legally(tmp_path, stochastic):
    policy = load_policy(train(configuration(tmp_path)).checkpoint, stochastic=stochastic)
    assert isinstance(policy, Policy)
    runs = []
    for _ in range(2):
        env = ServingVectorEnv(1, ENV)
        policy.reset(env.simulation.layout, seed=7)
        seen, _ = env.reset(seed=1)
        actions = []
        for _ in range(100):
            one = {key: values[0] for key, values in seen.items()}
            actions.append(policy.act(one, one["action_mask"]))
            assert one["action_mask"][actions[-1]] == 1
            seen, *_ = env.step(np.array(actions[-1:]))
        runs.append(actions)
    assert runs[0] == runs[1]


def test_a_policy_of_another_layout_is_refused(tmp_path):
    policy = load_policy(train(configuration(tmp_path)).checkpoint)
    other = dataclasses.replace(Dims.of(ENV.limits), Q=ENV.limits.queue + 1)
    with pytest.raises(ConfigError, match="size Q is 16 in the checkpoint, 17 here"):
        policy.reset(ActionLayout(other), seed=0)
