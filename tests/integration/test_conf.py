"""conf/ says what the dataclasses say, and everything in it composes and runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from mmsched_env import hydra_app
from mmsched_env.config import EnvConfig, env_config
from mmsched_env.core import Simulation
from mmsched_env.evaluation.policies import make_policy, policy_names
from mmsched_env.evaluation.rollout import run_episode

CONF = Path(__file__).parents[2] / "conf"


def values(path: str) -> dict[str, Any]:
    loaded = yaml.safe_load((CONF / path).read_text())
    assert isinstance(loaded, dict)
    return loaded


def plain(config: Any) -> Any:
    """Tuples as lists, as YAML has them."""
    if isinstance(config, dict):
        return {key: plain(value) for key, value in config.items()}
    return [plain(value) for value in config] if isinstance(config, tuple | list) else config


def test_yaml_defaults_equal_the_dataclasses() -> None:
    default = {f.name: plain(dataclasses.asdict(getattr(EnvConfig(), f.name))) for f in dataclasses.fields(EnvConfig)}
    assert values("env/default.yaml") == {"limits": default["limits"], "sim": default["sim"]}
    assert values("cluster/quad.yaml") == default["cluster"]
    assert values("models/seven.yaml") == default["models"]
    assert values("reward/flow_time.yaml") == default["reward"]
    assert values("workload/generator.yaml") == {"kind": "generator"} | default["workload"]


@pytest.mark.parametrize("name", policy_names())
def test_policy_yaml_equals_the_constructor(name: str) -> None:
    settings = values(f"policy/{name}.yaml")
    policy = make_policy(name)[1]
    bare = type(policy)()
    for key in settings:
        if key != "_target_":
            assert key in type(policy).__init__.__annotations__, f"{name}.yaml has {key}"
    np.testing.assert_equal(vars(policy), vars(bare))


def test_every_policy_file_is_named_in_conf() -> None:
    shared = {
        "__init__",
        "adjust",
        "base",
        "displace",
        "memory",
        "parts",
        "placement",
        "play",
        "resize",
        "suspend",
        "rules",
        "view",
    }
    by_path = {"evolved"}
    search = {"evolve", "genes", "episodes"}
    files = {path.stem for path in (CONF.parent / "baselines").glob("*.py")} - shared - by_path - search
    targets = {values(f"policy/{name}.yaml")["_target_"].split(".")[-2] for name in policy_names()}
    assert files == targets


@pytest.mark.parametrize("name", hydra_app.scenario_names())
def test_every_scenario_runs(name: str) -> None:
    with initialize_config_module(hydra_app.CONF, version_base="1.3"):
        config = compose("evaluate", overrides=[f"scenario={name}", "workload.num_requests=8"])
    assert config.scenario.name == f"{name}-v0"
    env = hydra_app.env_config_of(config)
    trace = env.workload.sample(0, env.models.names)
    assert run_episode(Simulation(env, 1), make_policy("mect")[1], trace, 0).rows["finished"].all()


@pytest.mark.parametrize("group", ["cluster", "models", "workload", "reward", "agent"])
def test_every_group_option_composes(group: str) -> None:
    for path in sorted((CONF / group).glob("*.yaml")):
        with initialize_config_module(hydra_app.CONF, version_base="1.3"):
            config = compose("train", overrides=[f"{group}={path.stem}"])
        plain_values = OmegaConf.to_container(config, resolve=False)
        assert isinstance(plain_values, dict)
        if group != "agent":
            env_config({key: plain_values[key] for key in ("cluster", "models", "limits", "sim", "reward", "workload")})
