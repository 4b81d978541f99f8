"""Families of scenarios, where Optuna looks, and what it has found: everything named there exists."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from mmsched_env import hydra_app
from mmsched_env.errors import ConfigError
from mmsched_env.evaluation import policies
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.evaluation.tuned import tuned_entry

CONF = Path(__file__).parents[2] / "conf"
FAMILIES = sorted(path.stem for path in (CONF / "family").glob("*.yaml"))
SEARCHED = sorted(path.stem for path in (CONF / "search").glob("*.yaml"))


def values(group: str, name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_every_scenario_belongs_to_one_family() -> None:
    named = [
        name for f in FAMILIES for key in ("scenarios", "too_slow_to_tune_on") for name in values("family", f)[key]
    ]
    assert sorted(named) == hydra_app.scenario_names()
    assert all(values("family", name)["name"] == name for name in FAMILIES)


@pytest.mark.parametrize("name", SEARCHED)
def test_every_knob_of_a_rule_is_searched(name: str) -> None:
    searched_elsewhere = {"policy._target_", "policy.weights"}  # weights: by `mmsched evolve`
    knobs = {f"policy.{key}" for key in values("policy", name)} - searched_elsewhere
    assert knobs == set(values("search", name)["params"])


@pytest.mark.parametrize("name", SEARCHED)
def test_a_composed_policy_is_an_entry_that_can_be_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = SimpleNamespace(runtime=SimpleNamespace(choices={"policy": name}))
    monkeypatch.setattr(policies.HydraConfig, "get", lambda: choices)
    entry = policies.chosen_entry(OmegaConf.create(values("policy", name)))
    assert json.loads(json.dumps(entry)) == entry
    policies.make_policy(entry)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_found_makes_policies(family: str) -> None:
    scenario = values("family", family)["scenarios"][0]
    for name, found in values("tuned_for", family).items():
        assert found["command"].startswith("mmsched tune ") and f"family={family}" in found["command"]
        assert set(found["settings"]) <= set(values("policy", name))
        assert (found["score"]["other_traces"] < 1) == bool(found["settings"]), "kept only if better where not searched"
        entry = tuned_entry(name, f"{scenario}-v0")
        assert entry == {"name": name, **found["settings"]}
        make_policy(entry)


def test_what_is_given_comes_before_what_was_tuned() -> None:
    assert tuned_entry({"name": "composite", "factor": 7.0}, "popularity-drift")["factor"] == 7.0
    assert tuned_entry("random", "default") == {"name": "random"}
    composite = values("tuned_for", "drift")["composite"]["settings"]
    assert tuned_entry("planner", "popularity-drift") == {"name": "planner", "base_settings": composite}
    with pytest.raises(ConfigError, match="belongs to no family"):
        tuned_entry("mect", "mine")
