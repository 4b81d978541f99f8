"""Learned corrections of the composite rule: none changes nothing, each one counts, files are checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsched_env.baselines.adjust import NETWORK, UNIT, UNITS, WEIGHTS
from mmsched_env.baselines.composite import Composite
from mmsched_env.baselines.evolved import FORMAT, Evolved
from mmsched_env.config import ClusterConfig, ConfigError, EnvConfig, LimitsConfig, ModelsConfig, env_config
from mmsched_env.core import Simulation
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.evaluation.rollout import run_episode
from mmsched_env.workload import GeneratorConfig

PRETRAINED = Path(__file__).parents[2] / "agents" / "pretrained"
ONE, THREE = ["rtx-4090-24gb"], ["rtx-4090-24gb", "rtx-4090-24gb", "rtx-5060-ti-16gb"]
SWAPPED = ["qwen2.5-14b-q4_k_m", "qwen3-8b-f16", "qwen3-32b-q4_k_m", "llama-3-8b-f16"]
SPREAD = ["llama-3-8b-f16", "qwen2.5-32b-q4_k_m", "gemma-3-12b-q4_k_m", "phi-4-14b-q4_k_m"]


@pytest.fixture(scope="module")
def busy() -> list[Simulation]:
    """Models that do not fit beside each other, on one GPU and on three unequal ones, requests of two classes."""
    workload = {"kind": "generator", "num_requests": 90, "classes": {"interactive_share": 0.5}}
    values = [
        {
            "cluster": {"gpus": gpus, "hosts": ["desktop-ddr5"], "gpu_hosts": [0] * len(gpus)},
            "models": {"names": models},
            "workload": workload | {"rate_per_s": rate},
        }
        for gpus, models, rate in ((ONE, SWAPPED, 1.0), (THREE, SWAPPED, 2.5), (THREE, SPREAD, 1.0))
    ]
    return [Simulation(env_config(value), 1) for value in values]


def outcomes(simulations: list[Simulation], weights: dict[str, Any], level: str = "cheapest") -> Iterator[Any]:
    """E2E of every request under the rule with these weights, trace by trace."""
    for simulation in simulations:
        for seed in (1, 2, 3, 4):
            trace = simulation.config.workload.sample(seed, simulation.config.models.names)
            episode = run_episode(simulation, Composite(factor=0.5, level=level, weights=weights), trace, seed)
            assert episode.rows["finished"].all(), weights
            yield episode.rows["e2e_s"]


def test_weights_of_nought_decide_as_none_do(busy: list[Simulation]) -> None:
    nought = dict.fromkeys(WEIGHTS, 0.0) | {NETWORK: np.zeros((UNITS, len(UNIT)))}
    for ours, plain in zip(outcomes(busy, nought), outcomes(busy, {}), strict=True):
        np.testing.assert_array_equal(ours, plain)


def test_every_weight_has_a_say(busy: list[Simulation]) -> None:
    plain = {level: list(outcomes(busy, {}, level)) for level in ("cheapest", "whole")}

    def says(name: str, weight: float) -> bool:
        level = "whole" if name.startswith("spill") else "cheapest"  # which the rule loads at of itself
        pairs = zip(outcomes(busy, {name: weight}, level), plain[level], strict=True)
        return any(not np.array_equal(ours, rule) for ours, rule in pairs)

    assert [name for name in WEIGHTS if not says(name, 4.0) and not says(name, -4.0)] == []


def test_padding_changes_no_decision(larger_limits: LimitsConfig) -> None:
    """Queues are counted for each GPU that there is."""
    cluster = ClusterConfig(tuple(THREE), ("desktop-ddr5",), (0, 0, 0))
    workload = GeneratorConfig(num_requests=60, rate_per_s=0.7)
    config = EnvConfig(cluster=cluster, models=ModelsConfig(tuple(SWAPPED)), workload=workload)
    trace = config.workload.sample(1, config.models.names)
    seen = []
    for sized in (config, replace(config, limits=larger_limits)):
        policy = Evolved(str(PRETRAINED / "several-gpus.json"))
        seen.append(run_episode(Simulation(sized, 1), policy, trace, 1).rows["e2e_s"])
        assert policy.memory["gpus"] == len(THREE) < sized.limits.gpus
    np.testing.assert_array_equal(*seen)


@pytest.mark.parametrize("number", range(1, len(UNIT) - 1))
def test_every_input_of_a_unit_has_a_say(busy: list[Simulation], number: int) -> None:
    """Beside the input `order_load`: what is the same for all requests counts only together with what is not."""
    without = np.zeros((UNITS, len(UNIT)))
    without[3, UNIT.index("order_load")] = 0.5
    unit = without.copy()
    unit[3, number] += 3.0

    def says(output: float) -> bool:
        unit[3, -1] = without[3, -1] = output
        pairs = zip(outcomes(busy, {NETWORK: unit}), outcomes(busy, {NETWORK: without}), strict=True)
        return any(not np.array_equal(ours, other) for ours, other in pairs)

    assert says(4.0) or says(-4.0)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"no_such": 1.0}, "no_such"),
        ({"keep": float("nan")}, "keep is nan"),
        ({"keep": "much"}, "a finite number"),
        ({"keep": [1.0]}, "a finite number"),
        ({NETWORK: [[1.0]]}, "lists of"),
        ({NETWORK: 1.0}, "lists of"),
    ],
)
def test_wrong_weights_are_said(weights: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Composite(weights=weights)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("{", "no JSON"),
        ("[]", "format"),
        (f'{{"format": "{FORMAT}", "settings": {{}}}}', "not both there"),
        (f'{{"format": "{FORMAT}", "settings": {{"no_such": 1}}, "weights": {{}}}}', "no_such"),
        (f'{{"format": "{FORMAT}", "settings": {{"level": "no_such"}}, "weights": {{}}}}', "no_such"),
        (f'{{"format": "{FORMAT}", "settings": {{}}, "weights": {{"no_such": 1}}}}', "no_such"),
    ],
)
def test_wrong_files_are_said(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "best.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        make_policy(str(path))


def test_a_file_decides_as_its_settings_and_weights(tmp_path: Path, busy: list[Simulation]) -> None:
    path = tmp_path / "best.json"
    settings, weights = (
        {"factor": 0.5, "level": "cheapest"},
        {"order_load_others": 1.0, NETWORK: np.full((UNITS, len(UNIT)), 0.3).tolist()},
    )
    path.write_text(json.dumps({"format": FORMAT, "settings": settings, "weights": weights}))
    simulation = busy[0]
    trace = simulation.config.workload.sample(1, simulation.config.models.names)
    episode = run_episode(simulation, make_policy(str(path))[1], trace, 1)
    np.testing.assert_array_equal(episode.rows["e2e_s"], next(outcomes(busy[:1], weights)))
    planner = make_policy({"name": "planner", "base": str(path), "samples": 4, "width": 2})[1]
    assert run_episode(simulation, planner, trace, 1).rows["finished"].all()


@pytest.mark.parametrize("path", sorted(PRETRAINED.glob("*.json")), ids=lambda path: path.stem)
def test_those_shipped_can_be_used_and_say_where_they_come_from(path: Path) -> None:
    make_policy(str(path))
    assert f"## {path.name}" in path.with_name("README.md").read_text()
    training = json.loads(path.read_text())["training"]
    assert training["command"].startswith("mmsched evolve ") and f"seed={training['seed']}" in training["command"]
    assert len(training["validation"]) == len(training["scenarios"]) > 0
