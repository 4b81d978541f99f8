"""Short training runs: they learn something, go on where they stopped, and leave a policy that can be used."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmsched_env import agents
from mmsched_env.action import ActionLayout
from mmsched_env.agents.checkpoint import read_checkpoint
from mmsched_env.agents.config import (
    AgentConfig,
    CurriculumConfig,
    DqnConfig,
    ImitationConfig,
    ImprovementConfig,
    TrainConfig,
)
from mmsched_env.agents.curriculum import eased
from mmsched_env.agents.export import export
from mmsched_env.agents.learner import BatchRule
from mmsched_env.agents.loader import load_policy
from mmsched_env.agents.rollouts import Explorer
from mmsched_env.agents.sb3_vec_env import ServingSB3VecEnv
from mmsched_env.agents.train import train
from mmsched_env.agents.validation import Validation, Validator
from mmsched_env.config import ClusterConfig, EnvConfig, ModelsConfig, SimConfig
from mmsched_env.core import Simulation
from mmsched_env.errors import ConfigError
from mmsched_env.evaluation.rollout import run_episode
from mmsched_env.policy import Policy
from mmsched_env.sim.state import Dims
from mmsched_env.vector_env import ServingVectorEnv
from mmsched_env.workload import GeneratorConfig

PRETRAINED = Path(agents.__file__).parent / "pretrained"
ENV = EnvConfig(workload=GeneratorConfig(num_requests=10))
SCRATCH = ImitationConfig(teacher=None)
AGENT = AgentConfig(n_steps=64, batch_size=128, n_epochs=2, net_arch=(16,), advisers=(), imitation=SCRATCH)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configuration(folder, **changes):
    values = {"envs": (ENV,), "agent": AGENT, "total_steps": 512, "num_envs": 4, "checkpoint_every": 256}
    return TrainConfig(run_dir=str(folder), validate_every=0, **(values | changes))


def weights(path):
    return read_checkpoint(path).policy


DQN = dataclasses.replace(
    AGENT,
    algorithm="dqn",
    batch_size=32,
    gamma=0.99,
    dqn=DqnConfig(buffer_size=400, learning_starts=100, updates=1, target_every=100),
)


@pytest.mark.parametrize("policy", ["scorer", "mlp"])
def test_dqn_trains_on_legal_actions_and_leaves_a_policy_that_can_be_used(tmp_path, policy):
    """An illegal action would raise in the simulator; both networks, whose checkpoints are those of any agent."""
    agent = dataclasses.replace(DQN, policy=policy)
    first, again = (train(configuration(tmp_path / name, agent=agent)) for name in "ab")
    fresh = train(configuration(tmp_path / "c", agent=agent, total_steps=0))
    assert first.num_steps == 512
    moved = 0
    for name, value in weights(first.checkpoint).items():
        torch.testing.assert_close(value, weights(again.checkpoint)[name], rtol=0, atol=0)
        moved += not torch.equal(value, weights(fresh.checkpoint)[name])
    assert moved > 2
    trace = ENV.workload.sample(7, ENV.models.names)
    episode = run_episode(Simulation(ENV, 1), load_policy(first.checkpoint), trace, 0)
    assert episode.summary["completed"] == 10


def test_dqn_is_not_resumed(tmp_path):
    with pytest.raises(ConfigError, match="resume is True; accepted: false with agent=dqn"):
        configuration(tmp_path, agent=DQN, resume=True)


def test_dqn_takes_no_advice():
    with pytest.raises(ConfigError, match=r"agent.algorithm is 'dqn'; accepted: .*advisers=\[\]"):
        AgentConfig(algorithm="dqn")


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
    assert checkpoint.resume is not None and checkpoint.resume[1]["parts"][0]["var"] > 0
    assert read_checkpoint(tmp_path / "checkpoints" / "000000256.zip").resume is None
    assert checkpoint.envs[0]["workload"]["num_requests"] == 10
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    for name in ("p50_ttft_ms", "p99_ttft_ms", "slo_attainment", "loads_per_100", "gpu_busy_share"):
        assert f"scheduler/{name}" in tags
    expected = {"rollout/ep_rew_mean", "train/approx_kl", "train/entropy_dispatch", "train/share_preempt"}
    assert expected <= set(tags)


def test_resume_goes_on(tmp_path):
    train(configuration(tmp_path))
    before = read_checkpoint(tmp_path / "latest.zip")
    result = train(configuration(tmp_path, total_steps=1024, resume=True))
    after = read_checkpoint(result.checkpoint)
    assert (before.num_steps, after.num_steps) == (512, 1024)
    assert after.num_updates == 2 * before.num_updates
    counts = [found.resume[1]["parts"][0]["count"] for found in (before, after)]
    assert counts[1] == pytest.approx(counts[0] + 512)
    done = train(configuration(tmp_path, total_steps=1024, resume=True))
    assert done.num_steps == 1024


def test_resume_starts_from_the_checkpoints_weights(tmp_path):
    train(configuration(tmp_path))
    result = train(configuration(tmp_path, resume=True))  # nothing left to do
    for name, value in weights(tmp_path / "checkpoints" / "000000512.zip").items():
        torch.testing.assert_close(value, weights(result.checkpoint)[name], rtol=0, atol=0)


def test_resume_keeps_the_best_of_before(tmp_path, monkeypatch):
    validated = {"validate_every": 256, "validation_episodes": 2}
    first = train(dataclasses.replace(configuration(tmp_path), **validated))
    assert np.isfinite(first.best_score)
    best = (tmp_path / "best.zip").read_bytes()
    monkeypatch.setattr(Validation, "score", property(lambda _: first.best_score + 1))
    longer = configuration(tmp_path, total_steps=1024, resume=True)
    again = train(dataclasses.replace(longer, **validated))
    assert again.best_score == first.best_score and (tmp_path / "best.zip").read_bytes() == best
    without = train(longer)
    assert np.isnan(without.best_score)


def test_resume_of_a_run_without_a_step_begins_anew(tmp_path):
    """One that was stopped before PPO, or has none, has no episodes to go on with."""
    fresh = train(configuration(tmp_path, total_steps=0))
    again = train(configuration(tmp_path, resume=True))
    assert (fresh.num_steps, again.num_steps) == (0, 512)
    for name, value in weights(train(configuration(tmp_path / "whole")).checkpoint).items():
        torch.testing.assert_close(value, weights(again.checkpoint)[name], rtol=0, atol=0)


def test_resume_refuses_another_number_of_environments_or_other_ones(tmp_path):
    train(configuration(tmp_path))
    with pytest.raises(ConfigError, match=r"has num_envs=4, not 8; accepted: 4"):
        train(configuration(tmp_path, resume=True, num_envs=8))
    other = dataclasses.replace(ENV, models=ModelsConfig(("llama-3-8b-f16", "phi-4-14b-q4_k_m")))
    with pytest.raises(ConfigError, match=r"is of a run with another models.names in scenario 0"):
        train(configuration(tmp_path, resume=True, envs=(other,)))
    with pytest.raises(ConfigError, match="is of no run with these scenarios"):
        train(configuration(tmp_path, resume=True, envs=(ENV, ENV)))


def test_resume_says_which_setting_of_the_agent_is_another(tmp_path, capsys):
    train(configuration(tmp_path))
    train(configuration(tmp_path, resume=True))
    assert "another than" not in capsys.readouterr().err
    train(configuration(tmp_path, resume=True, agent=dataclasses.replace(AGENT, clip_range=0.3)))
    assert "resume: agent.clip_range is another than the run began with\n" in capsys.readouterr().err


def test_resume_refuses_other_groups_of_traces(tmp_path):
    train(configuration(tmp_path))
    with pytest.raises(ConfigError, match=r"agent.common_traces=1, not 2; accepted: 1"):
        train(configuration(tmp_path, resume=True, agent=dataclasses.replace(AGENT, common_traces=2)))


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
    agent = dataclasses.replace(AGENT, policy="mlp")
    policy = load_policy(train(configuration(tmp_path, agent=agent)).checkpoint)
    other = dataclasses.replace(Dims.of(ENV.limits), Q=ENV.limits.queue + 1)
    with pytest.raises(ConfigError, match="size Q is 16 in the checkpoint, 17 here"):
        policy.reset(ActionLayout(other), seed=0)


WARM = dataclasses.replace(
    AGENT,
    advisers=("composite", "mect"),
    imitation=ImitationConfig(steps=512, batch_size=64),
    kl_coef=0.5,
    kl_share=1.0,
)
MIXED = (ENV, dataclasses.replace(ENV, cluster=dataclasses.replace(ENV.cluster, uncertainty="sample")))
BUSY = EnvConfig(workload=GeneratorConfig(num_requests=60, rate_per_s=4.0))
LONG = {
    "envs": MIXED,
    "agent": dataclasses.replace(WARM, n_steps=16, batch_size=32, common_traces=2),
    "total_steps": 64 * 24,
    "checkpoint_every": 64 * 4,
}


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path):
    """SIGKILL after the checkpoint of update 4: the other 20 updates give the weights of an uninterrupted run, bit for bit."""
    whole = train(configuration(tmp_path / "whole", **LONG))
    folder = tmp_path / "killed"
    process = get_context("spawn").Process(target=train, args=(configuration(folder, **LONG),))
    process.start()
    first = folder / "checkpoints" / "000000256.zip"
    while not (first.exists() and (folder / "latest.zip").exists()):
        time.sleep(0.005)
        assert process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert read_checkpoint(folder / "latest.zip").num_steps < 64 * 24
    again = train(configuration(folder, resume=True, **LONG))
    assert again.num_steps == whole.num_steps
    for name, value in weights(whole.checkpoint).items():
        assert torch.equal(value, weights(again.checkpoint)[name]), name
    states = [read_checkpoint(run.checkpoint).resume for run in (whole, again)]
    assert states[0][0].keys() == states[1][0].keys()
    for name, value in states[0][0].items():  # optimiser, generators, environments: everything a next update would use
        torch.testing.assert_close(value, states[1][0][name], rtol=0, atol=0, equal_nan=True, msg=name)
    assert states[0][1] == states[1][1]


def test_stages_improve_and_keep_the_best(tmp_path):
    agent = dataclasses.replace(
        WARM,
        improvement=ImprovementConfig(
            rounds=1, states=32, width=4, share=0.5, epochs=2, batch_size=32, cautions=(0.0, 1.0)
        ),
    )
    changes = {"validate_every": 256, "validation_episodes": 2, "envs": MIXED, "agent": agent}
    result = train(dataclasses.replace(configuration(tmp_path), **changes))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scores = [event.value for event in events.Scalars("validation/score")]
    assert len(scores) >= 4 and np.isfinite(scores).all()
    assert {"improvement/ranking_loss", "imitation/accuracy", "validation_line/slo_attainment"} <= set(
        events.Tags()["scalars"]
    )
    best = read_checkpoint(tmp_path / "best.zip")
    simulations = Validator(MIXED, 2, "composite", agent.advisers)
    network = load_policy(tmp_path / "best.zip").network
    assert simulations(network).score == pytest.approx(min(scores), rel=1e-5)
    assert best.num_steps <= result.num_steps


def test_gains_may_be_averaged_over_imagined_futures(warm):
    """Of the same states and candidates; what the rule does gains nothing in any, and in more of them chance counts for less."""
    network = load_policy(warm).network

    def gains(worlds):
        settings = ImprovementConfig(states=24, width=4, share=0.5, worlds=worlds)
        return Explorer(BUSY, WARM.advisers, settings, seed=3, num_envs=4).gather(network, 24)

    own, one, few, many = (gains(worlds) for worlds in (0, 1, 4, 64))
    np.testing.assert_array_equal(one.gains, gains(1).gains)
    for found in (one, few, many):
        np.testing.assert_array_equal(found.candidates, own.candidates)
        np.testing.assert_array_equal(found.observation["queue"], own.observation["queue"])
        assert not found.gains[found.candidates == found.candidates[:, :1]].any()
    assert 0 < np.abs(few.gains - many.gains).mean() < np.abs(one.gains - many.gains).mean()


def test_an_episode_that_would_be_cut_off_says_nothing():
    """Where a rollout ended for its number of decisions, what had not been served by then would have cost nothing."""
    cut = dataclasses.replace(BUSY, sim=SimConfig(max_steps=20))
    settings = ImprovementConfig(states=24, width=4, share=1.0)
    network = load_policy(PRETRAINED / "default-v0.zip").network
    advisers = ("composite", "mect", "least_loaded")
    explorer = Explorer(cut, advisers, settings, seed=3, num_envs=4)
    assert explorer.gather(network, 24).gains.any()
    assert (explorer.branches.outcomes["terminated"] == 1).all() and explorer.branches.state["num_steps"].max() > 20
    unsettled = Explorer(BUSY, advisers, settings, seed=3, num_envs=4)
    unsettled.roller.rule.play_batch = lambda *_: None  # a rollout of no decision
    assert not unsettled.gather(network, 24).gains.any()


@pytest.mark.slow
def test_imitation_learns_what_the_rule_does(tmp_path):
    imitation = ImitationConfig(steps=20_000, batch_size=64)
    agent = dataclasses.replace(WARM, advisers=(), net_arch=(32,), imitation=imitation)
    train(configuration(tmp_path, agent=agent, num_envs=16, total_steps=1))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    alike = [event.value for event in events.Scalars("imitation/accuracy")]
    assert alike[-1] > 0.85 and alike[-1] > alike[0]


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Checkpoint of a short run with advice, imitation and PPO."""
    return train(configuration(tmp_path_factory.mktemp("warm"), agent=WARM)).checkpoint


@pytest.mark.parametrize("gpus", [pytest.param(2, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow), 16])
def test_one_checkpoint_serves_other_clusters_and_models(warm, gpus, larger_limits):
    """Trained on four GPUs; loaded for others, with models it never saw, it serves every request."""
    cluster = ClusterConfig(gpus=("rtx-a6000-48gb", "rtx-4090-24gb") * (gpus // 2), gpu_hosts=(0, 1) * (gpus // 2))
    models = ModelsConfig(names=("qwen3-8b-f16", "qwen2.5-0.5b-f16", "qwen2.5-7b-q4_k_m"))
    limits = dataclasses.replace(larger_limits, gpus=gpus)
    config = dataclasses.replace(ENV, cluster=cluster, models=models, limits=limits)
    trace = config.workload.sample(1, models.names)
    assert run_episode(Simulation(config, 1), load_policy(warm), trace, 1).rows["finished"].all()


@pytest.mark.parametrize("file", sorted(PRETRAINED.glob("*.zip")), ids=lambda file: file.name)
def test_a_pretrained_policy_serves_its_scenario_and_has_a_card(file):
    assert file.stat().st_size < 5_000_000
    assert f"## {file.name}" in (PRETRAINED / "README.md").read_text()
    config = EnvConfig(workload=GeneratorConfig(num_requests=20))
    rows = run_episode(Simulation(config, 1), load_policy(file), config.workload.sample(1, config.models.names), 1).rows
    assert rows["finished"].all()


def test_a_curriculum_ends_at_the_scenario(tmp_path):
    settings = CurriculumConfig(until=0.5, length=0.5, load=0.8)
    first, last = (eased(ENV, settings, done).workload for done in (0.0, 1.0))
    assert (first.num_requests, first.rate_per_s) == (5, pytest.approx(0.8))
    assert last == ENV.workload
    train(configuration(tmp_path, agent=dataclasses.replace(AGENT, curriculum=settings)))


def observations_along(config, count):
    """What there is to be seen along an episode in which the composite rule decides."""
    simulation = Simulation(config, 1)
    simulation.reset(0, config.workload.sample(1, config.models.names), 1)
    rule = BatchRule("composite", simulation)
    for _ in range(count):
        seen = {key: values[0].copy() for key, values in simulation.current.observation().items()}
        yield simulation.layout, seen, seen["action_mask"]
        if simulation.step(rule.decide())[0]["terminated"]:
            break


@pytest.mark.parametrize("advisers", [(), ("composite", "mect")])
def test_an_export_decides_as_the_network_does(tmp_path, advisers):
    """Without PyTorch, within 1e-5 of its logits along an episode."""
    path = train(configuration(tmp_path, agent=dataclasses.replace(WARM, advisers=advisers))).checkpoint
    policy, exported = load_policy(path), load_policy(export(path, tmp_path / "policy.onnx"))
    compared = 0
    for layout, seen, mask in observations_along(BUSY, 200):
        if compared == 0:
            policy.reset(layout, 0)
            exported.reset(layout, 0)
        np.testing.assert_allclose(exported.logits(seen, mask), policy.logits(seen, mask).numpy(), rtol=1e-5, atol=1e-5)
        assert mask[exported.act(seen, mask)] == 1
        compared += 1
    assert compared >= 80
    with pytest.raises(ConfigError, match="was exported for"):
        exported.reset(ActionLayout(dataclasses.replace(Dims.of(ENV.limits), Q=17)), 0)


def test_an_exported_policy_needs_no_torch(tmp_path):
    file = export(train(configuration(tmp_path, total_steps=1)).checkpoint, tmp_path / "policy.onnx")
    code = (
        "import sys; from mmsched_env.agents.loader import load_policy; "
        f"load_policy({str(file)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_of_sb3_is_loaded_only_if_asked_for(tmp_path):
    adapter = ServingSB3VecEnv(1, ENV)
    model = MaskablePPO("MultiInputPolicy", adapter, n_steps=8, batch_size=8, policy_kwargs={"net_arch": [8]})
    model.save(tmp_path / "sb3.zip")
    with pytest.raises(ConfigError, match="not of format"):
        load_policy(tmp_path / "sb3.zip")
    policy = load_policy(tmp_path / "sb3.zip", sb3=True)
    simulation = Simulation(ENV, 1)
    simulation.reset(0, ENV.workload.sample(1, ENV.models.names), 1)
    policy.reset(simulation.layout, 0)
    seen = {key: values[0] for key, values in simulation.current.observation().items()}
    assert simulation.current.mask[0][policy.act(seen, simulation.current.mask[0])] == 1
