"""The Gymnasium and Stable-Baselines3 contracts of the single environment."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import mmsched_env
from mmsched_env.config import ConfigError, EnvConfig
from mmsched_env.env import ServingEnv
from mmsched_env.errors import MmschedError, TraceError
from mmsched_env.vector_env import ServingVectorEnv

UNBOUNDED = "A Box observation space (minimum|maximum) value is (-)?infinity"  # plain units have no bounds


@pytest.fixture
def env(tiny: Any) -> ServingEnv:
    return ServingEnv(tiny())


@pytest.mark.filterwarnings("error")
def test_gymnasium_check_env(tiny: Any) -> None:
    env = gym.make("mmsched/Serving-v0", config=tiny()).unwrapped
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f".*{UNBOUNDED}")
        check_env(env, skip_render_check=True)


@pytest.mark.filterwarnings("error")
def test_stable_baselines3_check_env(tiny: Any) -> None:
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        # our blocks are tables of two and three dimensions on purpose; extractors.py flattens them
        warnings.filterwarnings(
            "ignore",
            message=".*has an unconventional shape|.*observation (space )?pairs is an image|.*image space|The minimal resolution",
        )
        sb3.check_env(ServingEnv(tiny()), warn=True)


def test_ids(tiny: Any) -> None:
    spec = gym.spec("mmsched/Serving-v0")
    assert spec.entry_point == "mmsched_env.env:ServingEnv"
    single = gym.make("mmsched/Serving-v0", config=tiny())
    assert isinstance(single.unwrapped, ServingEnv)
    vector = gym.make_vec("mmsched/Serving-v0", 2, vectorization_mode="vector_entry_point", config=tiny())
    assert isinstance(vector.unwrapped, ServingVectorEnv) and vector.num_envs == 2
    assert vector.single_observation_space == single.observation_space
    assert vector.single_action_space == single.action_space
    default = gym.make("mmsched/Serving-v0")
    assert default.action_space.n == 405  # the number in the docstring
    assert mmsched_env.__version__


def test_config_may_be_plain_values() -> None:
    env = ServingEnv({"workload": {"kind": "generator", "num_requests": 3}, "sim": {"preempt_mode": "recompute"}})
    assert env.config.sim.preempt_mode == "recompute" and env.config.workload.num_requests == 3


def test_observations_belong_to_the_space(env: ServingEnv, random_action: Any) -> None:
    rng = np.random.default_rng(0)
    obs, info = env.reset(seed=0)
    terminated = False
    while not terminated:
        assert env.observation_space.contains(obs)
        assert np.array_equal(env.action_masks(), obs["action_mask"] == 1)
        assert set(info) >= {"time_s", "illegal_action", "reward_terms"}
        obs, reward, terminated, truncated, info = env.step(random_action(rng, env.layout, obs["action_mask"]))
        assert isinstance(reward, float) and isinstance(terminated, bool) and isinstance(truncated, bool)
        assert reward == pytest.approx(-info["reward_terms"]["flow_time"])
    assert env.observation_space.contains(obs)
    assert obs["action_mask"].sum() == 1 and obs["action_mask"][0] == 1


def test_observations_are_not_overwritten(env: ServingEnv) -> None:
    kept = [env.reset(seed=0)[0]]
    copies = [copy.deepcopy(kept[0])]
    for _ in range(4):
        action = int(np.flatnonzero(kept[-1]["action_mask"])[-1])
        obs = env.step(action)[0]
        kept.append(obs)
        copies.append(copy.deepcopy(obs))
    for obs, as_it_was in zip(kept, copies, strict=True):
        assert all(np.array_equal(obs[key], as_it_was[key]) for key in obs)


def test_step_before_reset(tiny: Any) -> None:
    with pytest.raises(gym.error.ResetNeeded):
        ServingEnv(tiny()).step(0)


def test_an_action_is_a_whole_number(env: ServingEnv) -> None:
    env.reset(seed=0)
    for action in (1.5, np.float32(0.7), float("nan"), "a", None, [0], np.array([0])):
        with pytest.raises(ConfigError, match=r"action is .*; accepted: a whole number in \[0, "):
            env.step(action)
    for action in (0, np.int64(0), np.array(0), 10**30, -(10**30)):
        assert env.step(action)[4]["illegal_action"] == (action not in (0,))


def test_step_after_the_end_changes_nothing(env: ServingEnv, random_action: Any) -> None:
    rng = np.random.default_rng(0)
    obs, info = env.reset(seed=0)
    terminated = False
    while not terminated:
        obs, _, terminated, _, info = env.step(random_action(rng, env.layout, obs["action_mask"]))
    again, reward, terminated, _, later = env.step(0)
    assert terminated and reward == 0 and later["time_s"] == info["time_s"]
    assert all(np.array_equal(obs[key], again[key]) for key in obs)


@pytest.mark.parametrize("outside", [-1, 405, 10**12])
def test_illegal_actions_count_as_wait_or_raise(tiny: Any, outside: int) -> None:
    env = ServingEnv(tiny())
    obs, _ = env.reset(seed=0)
    illegal = int(np.flatnonzero(obs["action_mask"] == 0)[-1])
    for action in (illegal, outside):
        assert env.step(action)[4]["illegal_action"]
    strict = ServingEnv(tiny(strict_actions=True))
    strict.reset(seed=0)
    before = strict.simulation.state.tobytes()
    for action in (illegal, outside):
        with pytest.raises(MmschedError, match=f"action {action} of environment 0 is illegal now"):
            strict.step(action)
    assert strict.simulation.state.tobytes() == before
    strict.step(int(np.flatnonzero(obs["action_mask"])[0]))


def test_reset_on_a_given_trace(env: ServingEnv, trace_of: Any) -> None:
    trace = trace_of(arrival_s=[1.0, 2.0], model=[1, 2], prompt_tokens=[7, 8], output_tokens=[3, 4])
    _, info = env.reset(seed=0, options={"trace": trace})
    assert info["time_s"] == 1.0
    assert len(env.simulation.episode_requests(0)) == 2
    queue = env.simulation.current.records["queue"][0]
    assert queue["present"].tolist()[:2] == [1, 0] and queue["model"][0] == 1 and queue["prompt_tokens"][0] == 7
    # a shorter trace after a longer one, and the random numbers go on as if no trace had been given
    env.reset(seed=0)
    drawn = env.simulation.traces[0]
    env.reset(seed=0, options={"trace": trace})
    env.reset()
    other = ServingEnv(env.config)
    other.reset(seed=0)
    other.reset()
    assert np.array_equal(env.simulation.traces[0].arrival_s, other.simulation.traces[0].arrival_s)
    assert not np.array_equal(drawn.arrival_s, other.simulation.traces[0].arrival_s)


def test_reset_refuses(env: ServingEnv, trace_of: Any) -> None:
    trace = trace_of(arrival_s=[1.0], output_tokens=[3])
    with pytest.raises(ConfigError, match="unknown reset option 'tarce'"):
        env.reset(options={"tarce": trace})
    with pytest.raises(ConfigError, match=r"options\['trace'\] is a dict"):
        env.reset(options={"trace": {}})
    other = type(trace).from_columns(("llama-3.2-1b-f16",), arrival_s=[0.0], output_tokens=[1])
    with pytest.raises(ConfigError, match="the trace is of models llama-3"):
        env.reset(options={"trace": other})
    huge = trace_of(arrival_s=[0.0, 1.0], prompt_tokens=[1, 100_000_000], model=2, output_tokens=[1, 1])
    with pytest.raises(TraceError, match=r"request 1 of model 'qwen2\.5-14b-q4_k_m' reserves KV cache"):
        env.reset(options={"trace": huge})


def test_reset_refuses_more_tokens_than_an_int32_holds(env: ServingEnv, trace_of: Any) -> None:
    many = 2_000_000_000
    trace = trace_of(arrival_s=[0.0], prompt_tokens=many, max_tokens=many, output_tokens=1)
    with pytest.raises(TraceError, match="request 0 of model"):
        env.reset(options={"trace": trace})
        env.step(0)


def test_a_refused_reset_leaves_the_episode_alone(env: ServingEnv, trace_of: Any) -> None:
    obs, _ = env.reset(seed=0)
    with pytest.raises(TraceError):
        env.reset(options={"trace": trace_of(arrival_s=[0.0], prompt_tokens=[100_000_000], output_tokens=[1])})
    env.step(int(np.flatnonzero(obs["action_mask"])[-1]))


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_pickling_a_config(tiny: Any, pickler: Any) -> None:
    assert pickler.loads(pickler.dumps(tiny())) == tiny()


@pytest.mark.parametrize(
    "duplicate", [lambda env: pickle.loads(pickle.dumps(env)), copy.deepcopy], ids=["pickle", "deepcopy"]
)
def test_a_copy_of_an_environment_goes_on_alike(env: ServingEnv, duplicate: Any) -> None:
    obs, _ = env.reset(seed=3)
    other = duplicate(env)
    for _ in range(5):
        action = int(np.flatnonzero(obs["action_mask"])[-1])
        obs, twin = env.step(action)[0], other.step(action)[0]
        assert all(np.array_equal(obs[key], twin[key]) for key in obs)


def test_a_spec_with_a_config_survives_json(tiny: Any) -> None:
    env = gym.make("mmsched/Serving-v0", config={"models": {"names": ["llama-3.2-1b-f16"]}})
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.config.models.names == ("llama-3.2-1b-f16",)


def test_strict_config_reaches_the_environment() -> None:
    with pytest.raises(ConfigError, match="render_mode is 'human'; accepted: None, ansi, rgb_array"):
        ServingEnv(render_mode="human")
    assert ServingEnv().config == EnvConfig()


HEAVY = (
    "torch",
    "stable_baselines3",
    "sb3_contrib",
    "yaml",
    "pandas",
    "matplotlib",
    "hydra",
    "scipy",
    "rich",
    "pyarrow",
)


def test_importing_the_package_is_light() -> None:
    code = f"import sys, mmsched_env; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"


def test_making_an_environment_needs_no_optional_package() -> None:
    """Only gymnasium, numpy, numba and pyyaml are dependencies."""
    optional = [m for m in HEAVY if m != "yaml"]
    code = (
        f"import sys\nfor m in {optional!r}: sys.modules[m] = None\n"
        "import gymnasium, mmsched_env\n"
        "env = gymnasium.make('mmsched/Serving-v0'); obs, _ = env.reset(seed=0); print(obs['action_mask'].sum() > 0)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert out.stdout.strip() == "True"
