"""The rollout buffer with discounting by simulated time, not by number of decisions.

Decisions take between zero and many simulated seconds. If each costs a factor gamma, an agent whose rewards are all
negative learns to fill the horizon with decisions that let no time pass: with gamma = 0.998 it spent half of its
actions preempting and redispatching the same request, its return rose to nearly zero, and no episode ever ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from torch import Tensor

from .extractors import Entities


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

    decided_on: Callable[[], Any] | None = None
    """gives what the policy has made, without anything learned, of the observations being added: kept in their place, and
    minibatches have that as observations"""

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
        self.steps: list[Any] = []
        self.features: Any = None
        super().reset()

    def add(self, *args: Any, **kwargs: Any) -> None:
        self.seconds[self.pos] = self.elapsed_s()
        if self.decided_on is not None:
            self.observations = {}
            self.steps.append(self.decided_on())
        super().add(*args, **kwargs)

    def _get_samples(self, batch_inds: NDArray[Any], env: Any = None) -> Any:
        if self.decided_on is None:
            return super()._get_samples(batch_inds, env)
        if self.features is None:
            self.features = torch.cat(self.steps) if isinstance(self.steps[0], Tensor) else Entities.joined(self.steps)
            self.steps = []
        # SB3 numbers the rows environment by environment
        env_of, step_of = np.divmod(batch_inds, self.buffer_size)
        at = torch.as_tensor(step_of * self.n_envs + env_of, device=self.device)
        features: Any = self.features[at] if isinstance(self.features, Tensor) else self.features.take(at)
        return super()._get_samples(batch_inds, env)._replace(observations=features)

    def to_torch(self, array: NDArray[Any], copy: bool = True) -> Tensor:
        """Without the copy: what a minibatch is made of has been picked from the buffer and is nobody else's."""
        return super().to_torch(array, copy=False)

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
