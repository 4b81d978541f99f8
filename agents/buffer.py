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
    """Generalised advantage estimates with discount ``gamma exp(-t / horizon_s)`` and trace decay
    ``gae_lambda exp(-t / trace_s)`` for a step of t simulated seconds.

    Parameters
    ----------
    elapsed_s
        Gives the simulated seconds (N,) of the step being added.
    horizon_s, trace_s
        Time constants.
    """

    def __init__(
        self,
        *args: Any,
        elapsed_s: Callable[[], NDArray[np.float64]],
        horizon_s: float,
        trace_s: float,
        **kwargs: Any,
    ) -> None:
        self.elapsed_s = elapsed_s
        self.horizon_s = horizon_s
        self.trace_s = trace_s
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        self.seconds = np.zeros((self.buffer_size, self.n_envs), np.float32)
        super().reset()

    def add(self, *args: Any, **kwargs: Any) -> None:
        self.seconds[self.pos] = self.elapsed_s()
        super().add(*args, **kwargs)

    def compute_returns_and_advantage(self, last_values: Tensor, dones: NDArray[np.bool_]) -> None:
        """Fill `advantages` and `returns` (steps, N); `last_values` (N, 1) are of the observation that came last."""
        next_value = last_values.cpu().numpy().flatten()
        alive = 1.0 - dones
        advantage = np.zeros(self.n_envs, np.float32)
        discounts = self.gamma * np.exp(-self.seconds / self.horizon_s)
        traces = self.gae_lambda * np.exp(-self.seconds / self.trace_s)
        for step in reversed(range(self.buffer_size)):
            discount = discounts[step] * alive
            delta = self.rewards[step] + discount * next_value - self.values[step]
            advantage = delta + discount * traces[step] * advantage
            self.advantages[step] = advantage
            next_value = self.values[step]
            alive = 1.0 - self.episode_starts[step]
        self.returns = self.advantages + self.values
