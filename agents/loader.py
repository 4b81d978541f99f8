"""A trained policy as an `mmsched_env.policy.Policy`, for evaluation: raw observations in, an action index out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from numpy.typing import NDArray

from mmsched_env.action import ActionLayout
from mmsched_env.errors import ConfigError
from mmsched_env.observation import MASK_KEY, layout_signature
from mmsched_env.sim.state import Dims

from .checkpoint import Checkpoint, read_checkpoint, require_layout
from .policies import policy_arguments
from .sb3_vec_env import learner_space


class TrainedPolicy:
    """Takes the likeliest legal action, or draws one if `stochastic`."""

    def __init__(self, path: Path, checkpoint: Checkpoint, stochastic: bool) -> None:
        self.path = path
        self.layout = checkpoint.layout
        self.stochastic = stochastic
        self.network = _network(path, checkpoint)
        self._generator = torch.Generator()

    def reset(self, layout: ActionLayout, seed: int) -> None:
        """Check that the environment is laid out as the training one was.

        Raises
        ------
        ConfigError
            It is not; the message names the sizes and fields that differ.
        """
        require_layout(self.path, self.layout, layout_signature(layout.dims))
        self._generator.manual_seed(seed % 2**63)

    def act(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> int:
        """Index of the action to take; blocks (rows..., fields), mask (A,)."""
        with torch.no_grad():
            batch = {key: torch.as_tensor(x).unsqueeze(0) for key, x in observation.items() if key != MASK_KEY}
            chosen = self.network.get_distribution(batch, mask)
            if not self.stochastic:
                return int(chosen.mode())
            return int(torch.multinomial(chosen.logits.softmax(-1), 1, generator=self._generator))


def load_policy(path: str | Path, stochastic: bool = False) -> TrainedPolicy:
    """Load a checkpoint's policy.

    Raises
    ------
    ConfigError
        There is no such file, it is not a checkpoint, or not one of this version's networks.
    """
    torch.set_num_threads(1)  # one decision is too little work to share, and threads that wait for it cost more
    return TrainedPolicy(Path(path), read_checkpoint(path), stochastic)


def _network(path: Path, checkpoint: Checkpoint) -> Any:
    try:
        sizes = {letter: int(checkpoint.layout["sizes"][letter]) for letter in "QGHMSBK"}
        dims = Dims(**sizes)
        policy, arguments = policy_arguments(checkpoint.agent["policy"], tuple(checkpoint.agent["net_arch"]), dims)
        network = policy(learner_space(dims), gym.spaces.Discrete(dims.A), lambda _: 0.0, **arguments)
        require_layout(path, checkpoint.layout, layout_signature(dims))
        network.load_state_dict(checkpoint.parameters["policy"])
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"checkpoint {path}: its network does not fit this version's code; accepted: one trained with this version"
        ) from error
    network.set_training_mode(False)
    return network
