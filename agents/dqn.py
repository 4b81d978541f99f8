"""DQN on masked actions: the networks are PPO's, their logits read as what an action is worth.

Stable-Baselines3's DQN knows no masks: here illegal actions are neither explored, nor chosen, nor bootstrapped from. Its discount is by
decision, not by simulated time. It is here to be compared with, from scratch: no imitation, no advice.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import DQN
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from mmsched_env.observation import MASK_KEY

from .ppo import logits_and_values


class QNetwork(nn.Module):
    """An actor's masked logits (B, A) as the values of its actions; those of illegal ones are very low."""

    def __init__(self, actor: MaskableActorCriticPolicy) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        return logits_and_values(self.actor, observations, observations[MASK_KEY])[0]

    def set_training_mode(self, mode: bool) -> None:
        """As SB3 calls it."""
        self.actor.set_training_mode(mode)


class QPolicy(BasePolicy):
    """What SB3's DQN wants of a policy: a network, its delayed copy, and their optimiser.

    Parameters
    ----------
    actor, arguments
        What `policy_arguments` gives.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.spaces.Discrete,
        lr_schedule: Schedule,
        actor: type[MaskableActorCriticPolicy],
        arguments: dict[str, Any],
    ) -> None:
        super().__init__(observation_space, action_space)
        self.q_net, self.q_net_target = (
            QNetwork(actor(observation_space, action_space, lr_schedule, **arguments)) for _ in range(2)
        )
        self.q_net_target.load_state_dict(self.q_net.state_dict())
        self.q_net_target.set_training_mode(False)
        self.optimizer = torch.optim.Adam(self.q_net.parameters(), lr=lr_schedule(1))

    def _predict(self, observation: Any, deterministic: bool = True) -> Tensor:
        return self.q_net(observation).argmax(-1)  # type: ignore[no-any-return]

    def set_training_mode(self, mode: bool) -> None:
        self.q_net.set_training_mode(mode)
        self.training = mode


class MaskedDQN(DQN):
    """DQN that explores legal actions, each environment by itself."""

    policy: QPolicy  # type: ignore[assignment]

    @property
    def deciding(self) -> MaskableActorCriticPolicy:
        """The network that a checkpoint keeps."""
        return self.policy.q_net.actor

    def predict(
        self,
        observation: Any,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Actions (N,): the best, or where a draw says so any legal one."""
        actions, state = self.policy.predict(observation, state, episode_start, deterministic)
        if not deterministic:
            for env in np.flatnonzero(np.random.random(len(actions)) < self.exploration_rate):  # noqa: NPY002  (SB3 seeds it)
                actions[env] = np.random.choice(np.flatnonzero(observation[MASK_KEY][env]))  # noqa: NPY002
        return actions, state

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        actions, _ = self.predict(self._last_obs, deterministic=False)
        return actions, actions
