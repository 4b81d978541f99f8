"""Random legal actions, a floor for comparisons. Source: common practice.

Uniform over all legal actions is no schedule at all: three quarters of them preempt or resize what has just been
loaded, and episodes hardly end. So the kind is drawn first: mostly among WAIT and DISPATCH, now and then among PREEMPT
and OFFLOAD, which is also how a model that needs room gets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.action import ActionLayout
from mmsched_env.errors import ConfigError


class RandomPolicy:
    """Draws uniformly among the legal WAIT and DISPATCH, or among the legal PREEMPT and OFFLOAD.

    Parameters
    ----------
    change_share
        Probability of drawing among PREEMPT and OFFLOAD, if any is legal.

    Raises
    ------
    ConfigError
        A share that is no probability.
    """

    def __init__(self, change_share: float = 0.02) -> None:
        if not isinstance(change_share, int | float) or not 0 <= change_share <= 1:
            raise ConfigError(f"random: change_share is {change_share!r}; accepted: a number in [0, 1]")
        self.change_share = change_share

    def reset(self, layout: ActionLayout, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._split = layout.preempt_at

    def act(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> int:
        serve = np.flatnonzero(mask[: self._split])
        change = self._split + np.flatnonzero(mask[self._split :])
        draw_change = len(change) and (not len(serve) or self._rng.random() < self.change_share)
        return int(self._rng.choice(change if draw_change else serve))
