"""A zip file of `sb3_contrib.MaskablePPO.save` as an `mmsched_env.policy.Policy`. Loading one executes what is pickled in it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3.common.utils import set_random_seed

from mmsched_env.action import ActionLayout
from mmsched_env.errors import ConfigError

from .learner import learner_space


class SB3Policy:
    """Trained by hand with `MaskablePPO` on `ServingSB3VecEnv`."""

    def __init__(self, path: Path, stochastic: bool) -> None:
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; accepted: a .zip of MaskablePPO.save")
        self.path = path
        self.stochastic = stochastic
        try:
            self.model = MaskablePPO.load(path, device="cpu")
        except (ValueError, KeyError, OSError, RuntimeError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{path} cannot be read; accepted: a .zip of MaskablePPO.save") from error

    def reset(self, layout: ActionLayout, seed: int) -> None:
        """Seed it, and raise ConfigError unless it was trained on such observations."""
        if self.model.observation_space != learner_space(layout.dims, 0):
            raise ConfigError(f"{self.path} was trained on other observations; accepted: one of this layout")
        set_random_seed(seed % 2**32)

    def act(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> int:
        """Index of the action to take."""
        return int(self.model.predict(dict(observation), action_masks=mask, deterministic=not self.stochastic)[0])
