"""Uniformly random legal action, a floor for comparisons. Source: common practice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from mmsched_env.action import ActionLayout
from numpy.typing import NDArray


class RandomPolicy:
    """Draws among the legal actions."""

    def reset(self, layout: ActionLayout, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def act(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> int:
        return int(self._rng.choice(np.flatnonzero(mask)))
