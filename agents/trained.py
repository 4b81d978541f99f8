"""A checkpoint's policy as an `mmsched_env.policy.Policy`: raw observations in, an action index out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from mmsched_env.action import ActionLayout
from mmsched_env.errors import ConfigError
from mmsched_env.observation import layout_signature
from mmsched_env.sim.state import Dims

from .checkpoint import Checkpoint, read_checkpoint, require_layout
from .learner import SingleView, learner_space
from .policies import FIXED_SIZES, policy_arguments
from .ppo import decided_logits


class TrainedPolicy:
    """Takes the likeliest legal action, or draws one if `stochastic`. A scorer's weights serve any padded sizes: one
    checkpoint decides for clusters of more or fewer GPUs, models and queue slots than it was trained on."""

    def __init__(self, path: Path, stochastic: bool) -> None:
        checkpoint = read_checkpoint(path)
        torch.set_num_threads(1)  # one decision is too little work to share, and threads that wait for it cost more
        self.path = path
        self.checkpoint = checkpoint
        self.stochastic = stochastic
        self.network = network(path, checkpoint, dims_of(path, checkpoint))
        self._view = SingleView(checkpoint.agent["advisers"])
        self._generator = torch.Generator()

    def reset(self, layout: ActionLayout, seed: int) -> None:
        """Get the network ready for an environment.

        Raises
        ------
        ConfigError
            Its observation is not laid out as the network needs it; the message names the sizes and fields that differ.
        """
        fixed = FIXED_SIZES[self.checkpoint.agent["policy"]]
        require_layout(self.path, self.checkpoint.layout, layout_signature(layout.dims), fixed)
        self._view.reset(layout, seed)
        self._generator.manual_seed(seed % 2**63)

    def logits(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> torch.Tensor:
        """(A,) masked logits; blocks (rows..., fields), mask (A,)."""
        seen = self._view.observation(observation, mask)
        return decided_logits(self.network, {key: np.asarray(values)[None] for key, values in seen.items()})[0]

    def act(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> int:
        """Index of the action to take."""
        logits = self.logits(observation, mask)
        if not self.stochastic:
            return int(logits.argmax())
        return int(torch.multinomial(logits.softmax(-1), 1, generator=self._generator))


def network(path: Path, checkpoint: Checkpoint, dims: Dims) -> Any:
    """The checkpoint's network for observations of some sizes.

    Raises
    ------
    ConfigError
        It is not one of this version's, or its weights are of other sizes.
    """
    require_layout(path, checkpoint.layout, layout_signature(dims), FIXED_SIZES.get(checkpoint.agent["policy"], ""))
    try:
        agent, advisers = checkpoint.agent, len(checkpoint.agent["advisers"])
        policy, arguments = policy_arguments(agent["policy"], tuple(agent["net_arch"]), dims, advisers)
        built = policy(learner_space(dims, advisers), gym.spaces.Discrete(dims.A), lambda _: 0.0, **arguments)
        built.load_state_dict(checkpoint.policy)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _other_version(path) from error
    built.set_training_mode(False)
    return built


def dims_of(path: Path, checkpoint: Checkpoint) -> Dims:
    """Sizes of the environments it was trained on."""
    try:
        return Dims(**{letter: int(checkpoint.layout["sizes"][letter]) for letter in "QGHMSBK"})
    except (KeyError, TypeError, ValueError) as error:
        raise _other_version(path) from error


def _other_version(path: Path) -> ConfigError:
    return ConfigError(
        f"checkpoint {path}: its network does not fit this version's code; accepted: one trained with this version"
    )
