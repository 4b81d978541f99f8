"""Short and easy episodes first: their outcomes say more about each decision (Decima, SIGCOMM 2019)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from stable_baselines3.common.callbacks import BaseCallback

from mmsched_env.config import EnvConfig
from mmsched_env.errors import ConfigError
from mmsched_env.workload import GeneratorConfig

from .config import CurriculumConfig
from .sb3_vec_env import ServingSB3VecEnv


class Curriculum(BaseCallback):
    """Sets what the next episodes are like before every rollout, from the share of training that is done."""

    def __init__(self, parts: Sequence[ServingSB3VecEnv], settings: CurriculumConfig, total_steps: int) -> None:
        super().__init__()
        self.parts = [(part, part.serving.config) for part in parts]
        self.settings = settings
        self.total_steps = total_steps

    def _on_rollout_start(self) -> None:
        done = min(1.0, self.model.num_timesteps / (self.settings.until * self.total_steps))
        for part, config in self.parts:
            part.serving.config = eased(config, self.settings, done)
        self.logger.record("curriculum/done", done)

    def _on_step(self) -> bool:
        return True


def eased(config: EnvConfig, settings: CurriculumConfig, done: float) -> EnvConfig:
    """The scenario with its episodes' length and load between the settings' shares (`done` = 0) and its own (1).

    Raises
    ------
    ConfigError
        A workload that is no generator has no length and load to change.
    """
    workload = config.workload
    if not isinstance(workload, GeneratorConfig):
        raise ConfigError(
            f"agent.curriculum with workload kind {type(workload).__name__}; accepted: generator, or until=0"
        )
    length = settings.length + (1 - settings.length) * done
    load = settings.load + (1 - settings.load) * done
    changed = dataclasses.replace(
        workload,
        num_requests=max(1, round(length * workload.num_requests)),
        rate_per_s=load * workload.rate_per_s,
        rho=None if workload.rho is None else load * workload.rho,
    )
    return dataclasses.replace(config, workload=changed)
