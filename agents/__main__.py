"""`mmsched train`: train an agent as the composed configuration says."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from mmsched_env import hydra_app
from mmsched_env.config import build

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
    from .train import train  # torch takes seconds to import: not for a wrong setting or --help

    result = train(build(TrainConfig, own | {"envs": envs, "run_dir": hydra_app.output_folder()}))
    if result.stopped:
        raise SystemExit(130)
    print(f"trained {result.num_steps:,} steps: {result.checkpoint}")
    return result.best_score


def main(arguments: Sequence[str]) -> None:
    hydra_app.run(COMMAND, run, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
