"""Running a command whose configuration Hydra composes, with one-line errors and exit status 2 for bad input."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib import resources
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .config import EnvConfig, env_config
from .errors import ConfigError, MmschedError, unknown_name
from .files import usable_folder

CONF = "mmsched_env.conf"

LISTS = {"cluster": ("cluster.gpus={}", "cluster.gpu_hosts=[]"), "models": ("models.names={}",)}
"""group -> what it stands for with a list in the place of an option's name: these GPUs, all in the first host; these models"""


def run(command: str, task: Callable[[DictConfig], float | None], arguments: Sequence[str]) -> None:
    """Compose ``conf/<command>.yaml`` with the overrides in `arguments` and call `task` with it (``-m``: for each).

    What `task` returns is the value that a sweeper makes small.
    """
    arguments = expanded(arguments)
    with_one_line_errors(lambda: check_out(arguments))
    sys.argv = [f"mmsched {command}", *arguments]
    flags = {argument for argument in arguments if argument.startswith("-")}
    if flags <= {"-m", "--multirun"}:
        check_overrides(command, [argument for argument in arguments if argument not in flags], sweep=bool(flags))

    def guarded(config: DictConfig) -> Any:
        return with_one_line_errors(lambda: task(config))

    try:
        hydra.main(version_base="1.3", config_path=f"pkg://{CONF}", config_name=command)(guarded)()
    except SystemExit as stop:
        raise SystemExit(2 if stop.code == 1 else stop.code) from None


def expanded(overrides: Sequence[str]) -> list[str]:
    """The overrides with ``cluster=[rtx4090,rtx3090]`` and ``models=[qwen3-8b-q4_k_m]`` written out, before the others:
    what is said of a single key counts."""
    parts = [override.partition("=") for override in overrides]
    lists = [(key, value) for key, _, value in parts if key in LISTS and value.startswith("[")]
    written = [template.format(value) for key, value in lists for template in LISTS[key]]
    return written + ["".join(part) for part in parts if (part[0], part[2]) not in lists]


def check_out(overrides: Sequence[str]) -> None:
    """Raises ConfigError if ``out=...`` cannot be a folder: Hydra makes it before the command is asked."""
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "out" and "$" not in value:  # nor a text with other settings in it
            if value in ("", "null") or value[0] in "[{":
                raise ConfigError(f"out is '{value}'; accepted: a folder")
            usable_folder(value.strip("'\""))


def check_overrides(command: str, overrides: Sequence[str], sweep: bool = False) -> None:
    """Compose once beforehand, so that a wrong override ends in one line instead of Hydra's several; of a sweep its first job."""
    try:
        with initialize_config_module(CONF, version_base="1.3"):
            compose(command, overrides=first_of(overrides) if sweep else list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        message = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        fail(f"{message} (see `mmsched {command} --help`)")


def first_of(overrides: Sequence[str]) -> list[str]:
    """The first value of each ``key=a,b``; a ``key=interval(a, b)``, which only a sweeper can choose from, is left out."""
    parsed = [o for o in OverridesParser.create().parse_overrides(list(overrides)) if not o.is_interval_sweep()]
    return [
        f"{o.get_key_element()}={next(o.sweep_string_iterator())}" if o.is_sweep_override() else str(o.input_line)
        for o in parsed
    ]


def composed(config_name: str, overrides: Sequence[str], command: str) -> DictConfig:
    """``conf/<config_name>.yaml`` with overrides, for a command that is no experiment (no output folder, no sweeps)."""
    try:
        with initialize_config_module(CONF, version_base="1.3"):
            return compose(config_name, overrides=expanded(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        message = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        fail(f"{message} (see `mmsched {command} --help`)")


def with_one_line_errors(action: Callable[[], Any]) -> Any:
    """Run `action`; bad input prints one line and exits with status 2, Ctrl-C with 130."""
    try:
        return action()
    except (MmschedError, OmegaConfBaseException) as error:
        fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print("mmsched: stopped", file=sys.stderr)
        raise SystemExit(130) from None


def fail(message: str) -> NoReturn:
    """Print one line to stderr and exit with status 2."""
    print(f"mmsched: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def env_config_of(config: DictConfig) -> EnvConfig:
    """The environment's part of a composed configuration."""
    return env_config(env_values_of(config))


def env_values_of(config: DictConfig) -> dict[str, Any]:
    """The same as plain values."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {field.name: values[field.name] for field in fields(EnvConfig)}


def scenario_names() -> list[str]:
    """Names of conf/scenario."""
    folder = resources.files(CONF) / "scenario"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def scenario_ids() -> list[str]:
    """Ids of the scenarios, each with the version that its file states."""
    folder = resources.files(CONF) / "scenario"
    return [str(OmegaConf.load(str(folder / f"{name}.yaml")).scenario.name) for name in scenario_names()]


def with_scenario(config_name: str, scenario: str) -> DictConfig:
    """The running command's configuration composed again with another scenario, by file name or id (``<name>-v0``)."""
    overrides = list(HydraConfig.get().overrides.task)
    if any(override.startswith("scenario=") for override in overrides):
        raise ConfigError("scenario=... and scenarios=[...] are both given; accepted: one of them")
    return known_scenario(config_name, scenario, overrides)


def known_scenario(config_name: str, scenario: str, overrides: Sequence[str] = ()) -> DictConfig:
    """``conf/<config_name>.yaml`` with a scenario, within a running command.

    Raises
    ------
    ConfigError
        No such scenario.
    """
    scenario = re.sub(r"-v\d+$", "", scenario) if scenario in scenario_ids() else scenario
    if scenario not in scenario_names():
        raise unknown_name("scenario", scenario, scenario_names())
    return compose(config_name, overrides=[*overrides, f"scenario={scenario}"])


def scenario_label(name: str) -> str:
    """The scenario's name, with the overrides that make it another one."""
    groups = {field.name for field in fields(EnvConfig)} | {"env"}
    changes = [o for o in HydraConfig.get().overrides.task if o.lstrip("+~").split(".")[0].split("=")[0] in groups]
    return " ".join([name, *changes])


def output_folder() -> str:
    """Where the running job's results go (``out=...``)."""
    return str(HydraConfig.get().runtime.output_dir)
