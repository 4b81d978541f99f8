"""The rollout buffer with discounting by simulated time, not by number of decisions.

Decisions take between zero and many simulated seconds. If each costs a factor gamma, an agent whose rewards are all
negative learns to fill the horizon with decisions that let no time pass: with gamma = 0.998 it spent half of its
actions preempting and redispatching the same request, its return rose to nearly zero, and no episode ever ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from torch import Tensor


class TimedRolloutBuffer(MaskableDictRolloutBuffer):
    """Generalised advantage estimates with the discount ``gamma exp(-seconds / horizon_s)`` for each step.

    Parameters
    ----------
    elapsed_s
        Gives the simulated seconds (N,) of the step being added.
    horizon_s
        Time constant of the discount.
    """

    def __init__(
        self, *args: Any, elapsed_s: Callable[[], NDArray[np.float64]], horizon_s: float, **kwargs: Any
    ) -> None:
        self._elapsed_s = elapsed_s
        self._horizon_s = horizon_s
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        self.discounts = np.ones((self.buffer_size, self.n_envs), np.float32)
        super().reset()

    def add(self, *args: Any, **kwargs: Any) -> None:
        self.discounts[self.pos] = self.gamma * np.exp(-self._elapsed_s() / self._horizon_s)
        super().add(*args, **kwargs)

    def compute_returns_and_advantage(self, last_values: Tensor, dones: NDArray[np.bool_]) -> None:
        """Fill `advantages` and `returns` (steps, N); `last_values` (N, 1) are of the observation that came last."""
        next_value = last_values.cpu().numpy().flatten()
        alive = 1.0 - dones
        advantage = np.zeros(self.n_envs, np.float32)
        for step in reversed(range(self.buffer_size)):
            discount = self.discounts[step] * alive
            delta = self.rewards[step] + discount * next_value - self.values[step]
            advantage = delta + discount * self.gae_lambda * advantage
            self.advantages[step] = advantage
            next_value = self.values[step]
            alive = 1.0 - self.episode_starts[step]
        self.returns = self.advantages + self.values
