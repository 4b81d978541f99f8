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

from .common_traces import input_dependent_baseline
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
    moment
        Gives the number of episodes the environments had finished, and the simulated seconds, (N,) each, when the step being added
        was decided on.
    common_traces
        Environments that play the same traces (common_traces.py); 1: none do.
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
        moment: Callable[[], tuple[NDArray[np.int64], NDArray[np.float64]]] | None = None,
        common_traces: int = 1,
        **kwargs: Any,
    ) -> None:
        if common_traces > 1 and moment is None:
            raise ValueError(f"common_traces={common_traces} without moment, which says when decisions were made")
        self.elapsed_s = elapsed_s
        self.moment = moment
        self.common_traces = common_traces
        self.horizon_s = horizon_s
        self.trace_s = trace_s
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        self.seconds = np.zeros((self.buffer_size, self.n_envs), np.float32)
        self.episodes = np.zeros((self.buffer_size, self.n_envs), np.int64)
        self.times_s = np.zeros((self.buffer_size, self.n_envs))
        self.steps: list[Any] = []
        self.features: Any = None
        super().reset()

    def add(self, *args: Any, **kwargs: Any) -> None:
        self.seconds[self.pos] = self.elapsed_s()
        if self.moment is not None:
            self.episodes[self.pos], self.times_s[self.pos] = self.moment()
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
        """Fill `advantages` and `returns` (steps, N); `last_values` (N, 1) are of the observation that came last.

        Returns, which the critic learns, are with what the traffic did; advantages without, where traces are common.
        """
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
        if self.common_traces > 1:
            self.advantages -= input_dependent_baseline(
                self.advantages, self.episodes, self.times_s, self.common_traces
            )
