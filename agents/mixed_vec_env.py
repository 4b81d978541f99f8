"""Several batches of environments as one `VecEnv`: one policy trained on different scenarios, clusters and model sets at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from mmsched_env.errors import ConfigError


class MixedVecEnv(VecEnv):
    """The environments of `parts` in a row. All must have the same padded sizes.

    Raises
    ------
    ConfigError
        Two parts of different `limits`.
    """

    def __init__(self, parts: Sequence[VecEnv]) -> None:
        first = parts[0]
        for at, part in enumerate(parts):
            if part.observation_space != first.observation_space or part.action_space != first.action_space:
                raise ConfigError(
                    f"scenario {at} of the training has other limits than the first; accepted: the same sizes in all"
                )
        self.parts = list(parts)
        counts = [part.num_envs for part in parts]
        self._slices = [slice(sum(counts[:i]), sum(counts[: i + 1])) for i in range(len(counts))]
        super().__init__(sum(counts), first.observation_space, first.action_space)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Every part gets ``seed`` and the number of environments before it at the next reset."""
        seeds = [
            part.seed(None if seed is None else seed + where.start)
            for part, where in zip(self.parts, self._slices, strict=True)
        ]
        return [one for part in seeds for one in part]

    def reset(self) -> VecEnvObs:
        return _joined([part.reset() for part in self.parts])

    def step_async(self, actions: NDArray[Any]) -> None:
        for part, where in zip(self.parts, self._slices, strict=True):
            part.step_async(actions[where])

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, done, infos = zip(*(part.step_wait() for part in self.parts), strict=True)
        return _joined(observations), np.concatenate(rewards), np.concatenate(done), [x for part in infos for x in part]

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def has_attr(self, attr_name: str) -> bool:
        return all(part.has_attr(attr_name) for part in self.parts)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        values = [value for part in self.parts for value in part.get_attr(attr_name)]
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise NotImplementedError("the environments of a batch share one configuration; build another MixedVecEnv")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        values = [value for part in self.parts for value in part.env_method(method_name, *args, **kwargs)]
        return [values[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        values = [value for part in self.parts for value in part.env_is_wrapped(wrapper_class)]
        return [values[i] for i in self._get_indices(indices)]


def _joined(parts: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """Observations one after the other; of a single part its own."""
    if len(parts) == 1:
        return dict(parts[0])
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
