"""`mmsched train`: train an agent as the composed configuration says."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mmsched_env import hydra_app
from mmsched_env.config import build
from mmsched_env.errors import ConfigError

from .config import TrainConfig

COMMAND = "train"


def run(config: DictConfig) -> float:
    """Build the `TrainConfig`, train, and say where the checkpoint is; returns the best validation's score, for sweepers."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    keys = {field.name for field in dataclasses.fields(TrainConfig)} - {"envs", "run_dir"}
    own = {key: values[key] for key in keys}
    composed = [config]
    if config.scenarios is not None:
        composed = [hydra_app.with_scenario(COMMAND, str(name)) for name in config.scenarios]
    envs = tuple(hydra_app.env_config_of(scenario) for scenario in composed)
    settings = build(TrainConfig, own | {"envs": envs, "run_dir": hydra_app.output_folder()})
    latest = Path(settings.run_dir) / "latest.zip"
    if latest.exists() and not settings.resume:
        raise ConfigError(f"{latest} is there already; accepted: resume=true, which goes on with it, or another out")
    from .train import train  # torch takes seconds to import: not for a wrong setting or --help

    result = train(settings)
    if result.stopped:
        raise SystemExit(130)
    print(f"trained {result.num_steps:,} steps: {result.checkpoint}")
    return result.best_score


def main(arguments: Sequence[str]) -> None:
    hydra_app.run(COMMAND, run, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
