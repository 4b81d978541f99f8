"""Settings found by `mmsched tune`: conf/tuned_for/<family>.yaml, for the scenarios that conf/family/<family>.yaml names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

from ..errors import ConfigError
from ..hydra_app import CONF

LOOK_AHEAD = {"planner": "composite", "clairvoyant": "composite"}
"""policies that decide by another rule within their rollouts -> which, by default"""


def tuned_entry(entry: str | Mapping[str, Any], scenario: str) -> dict[str, Any]:
    """An entry of ``policies=[...]`` with the settings tuned for the scenario's family, under those that it states itself.

    A policy that has not been tuned (one without knobs, a learned one) is as it was.

    Raises
    ------
    ConfigError
        The scenario belongs to no family.
    """
    given: dict[str, Any] = {"name": entry} if isinstance(entry, str) else dict(entry)
    settings = _settings(_family_of(re.sub(r"-v\d+$", "", scenario)))
    name = str(given.get("name"))
    if name in LOOK_AHEAD:
        base = settings.get(str(given.get("base", LOOK_AHEAD[name])), {})
        return given | {"base_settings": base | dict(given.get("base_settings", {}))}
    return {"name": name, **settings.get(name, {}), **given}


def _family_of(scenario: str) -> str:
    for name in _yaml_names("family"):
        family = _read("family", name)
        if scenario in (*family["scenarios"], *family["too_slow_to_tune_on"]):
            return name
    raise ConfigError(
        f"tuned=true, but scenario '{scenario}' belongs to no family; accepted: those named in conf/family"
    )


@cache
def _settings(family: str) -> dict[str, dict[str, Any]]:
    return {name: found["settings"] for name, found in _read("tuned_for", family).items()}


@cache
def _read(group: str, name: str) -> dict[str, Any]:
    values = yaml.safe_load((resources.files(CONF) / group / f"{name}.yaml").read_text())
    assert isinstance(values, dict)
    return values


@cache
def _yaml_names(group: str) -> tuple[str, ...]:
    files = (resources.files(CONF) / group).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))
