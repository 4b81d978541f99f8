"""Policies by name (conf/policy/<name>.yaml), by checkpoint path, or by name with other settings."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ..errors import ConfigError, MmschedError, unknown_name
from ..policy import Policy

CHECKPOINT = "checkpoint"
READERS = {".zip": CHECKPOINT, ".onnx": CHECKPOINT, ".json": "evolved"}
"""suffix of a learned policy's file -> option of conf/policy that reads it"""
BOUND_MARK = " (bound)"
"""in the label of what sees hidden facts: it shows what is left to gain and competes with no policy"""


def policy_names() -> list[str]:
    """Names accepted for rules."""
    folder = resources.files("mmsched_env.conf") / "policy"
    names = (entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return sorted(name for name in names if name not in READERS.values())


def make_policy(entry: str | Mapping[str, Any]) -> tuple[str, Policy]:
    """(label, policy) for an entry of ``policies=[...]``: a name, a checkpoint's path, or ``{name: mect, ...}``.

    Raises
    ------
    ConfigError
        An unknown name or setting, or a checkpoint that cannot be used.
    """
    settings = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    name = str(settings.pop("name", ""))
    label = name + "".join(f",{key}={value}" for key, value in settings.items())
    if Path(name).suffix in READERS or "/" in name:
        return label, _instantiate(READERS.get(Path(name).suffix, CHECKPOINT), {"path": name, **settings})
    if name not in policy_names():
        raise unknown_name("policy or checkpoint (.zip, .json)", name, policy_names())
    policy = _instantiate(name, settings)
    return label + (BOUND_MARK if getattr(policy, "is_bound", False) else ""), policy


def chosen_entry(values: DictConfig) -> dict[str, Any]:
    """The running command's option of the group ``policy``, with its `values`, in the form of an entry of ``policies=[...]``."""
    choice = str(HydraConfig.get().runtime.choices["policy"])
    settings = _plain(values)
    del settings["_target_"]
    return {"name": settings.pop("path") if choice in READERS.values() else choice, **settings}


def policy_settings(name: str) -> dict[str, Any]:
    """The contents of conf/policy/<name>.yaml."""
    file = resources.files("mmsched_env.conf") / "policy" / f"{name}.yaml"
    return _plain(OmegaConf.create(file.read_text()))


def _plain(config: Any) -> dict[str, Any]:
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _instantiate(name: str, settings: Mapping[str, Any]) -> Policy:
    values = policy_settings(name)
    for key in settings:
        if key not in values:
            raise unknown_name(f"setting of policy {name}", key, [str(k) for k in values if k != "_target_"])
    if name in READERS.values() and not Path(str(settings["path"])).is_file():
        raise ConfigError(
            f"checkpoint '{settings['path']}' does not exist; accepted: a .zip written by `mmsched train` or a .json by `mmsched evolve`"
        )
    try:
        policy = instantiate(values | dict(settings))
    except InstantiationException as error:
        if isinstance(error.__cause__, MmschedError):
            raise error.__cause__ from None
        raise ConfigError(f"policy {name} with {dict(settings)}: {error.__cause__ or error}") from None
    assert isinstance(policy, Policy)
    _check_numbers(name, policy)
    return policy


def _check_numbers(name: str, policy: Policy) -> None:
    """No number that a rule decides by may be negative: costs, factors, seconds and shares are none, and NaN compares with nothing."""
    knobs: Any = getattr(policy, "knobs", None)
    for key, value in knobs._asdict().items() if hasattr(knobs, "_asdict") else ():
        if isinstance(value, float) and not value >= 0:
            raise ConfigError(f"policy {name}: {key} is {value}; accepted: a number >= 0")
