"""The native vector environment as a Stable-Baselines3 `VecEnv`: no subprocesses, no Python work per environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from mmsched_env.config import EnvConfig
from mmsched_env.vector_env import ServingVectorEnv

from .learner import ADVICE_KEY, BatchView, learner_space


class ServingSB3VecEnv(VecEnv):
    """N episodes stepped by one kernel call, in SB3's words.

    Observations are dicts of the blocks (N, rows..., fields), the action mask, which sb3-contrib asks for by
    ``env_method("action_masks")`` too, and what the rules named `advisers` would do (`learner.py`). They are copies: SB3
    stores an observation after the step that follows it.

    `rewards` are the environment's less `change_cost` (weight x s) for every PREEMPT and OFFLOAD; the returns in the infos
    are without it.

    The info of a finished episode holds ``terminal_observation`` (taken before the reset; no advice), ``TimeLimit.truncated``,
    ``episode`` {"r": return, "l": steps} as SB3's Monitor gives it, and ``metrics`` (`mmsched_env.metrics.summary`).
    All other infos are empty.

    Of each `common_traces` environments in a row all play the same traces, one after the other, if they have been given a seed.
    """

    def __init__(
        self,
        num_envs: int,
        config: EnvConfig,
        change_cost: float = 0.0,
        advisers: Sequence[str] = (),
        common_traces: int = 1,
    ) -> None:
        self.serving = ServingVectorEnv(num_envs, config)
        dims = self.serving.simulation.dims
        super().__init__(num_envs, learner_space(dims, len(advisers)), self.serving.single_action_space)
        self.view = BatchView(self.serving.simulation, advisers)
        self.change_cost = change_cost
        self.common_traces = common_traces
        self.elapsed_s = np.zeros(num_envs)
        """simulated seconds that the last step took (N,)"""
        self.decided_s = np.zeros(num_envs)
        """simulated time at which the last actions were taken (N,)"""
        self.finished = np.zeros(num_envs, np.int64)
        """episodes finished by then (N,)"""
        self.ended = np.zeros(num_envs, np.int64)
        """episodes finished by now (N,)"""
        self._actions = np.zeros(num_envs, np.int64)
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, np.int64)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Environment i gets ``seed + i // common_traces`` at the next reset."""
        first = super().seed(seed)[0]
        assert first is not None
        self._seeds = [first + i // self.common_traces for i in range(self.num_envs)]
        return self._seeds

    def reset(self) -> VecEnvObs:
        """Start all episodes, with the seeds of the last `seed()` call."""
        observation, _ = self.serving.reset(seed=self._seeds)
        self._reset_seeds()
        self.returns[:] = 0
        self.lengths[:] = 0
        self.ended[:] = 0
        self.view.forget(np.ones(self.num_envs, bool))
        return self.view.completed(observation)

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = np.asarray(actions, np.int64)

    def step_wait(self) -> VecEnvStepReturn:
        before = self.serving.simulation.state["now"].copy()
        observation, rewards, terminated, truncated, infos = self.serving.step(self._actions)
        after = infos["time_s"]
        if "final_info" in infos:  # a finished environment's clock has been set back for its next episode
            after = np.where(infos["_final_info"], infos["final_info"]["time_s"], after)
        self.elapsed_s = after - before
        self.decided_s, self.finished = before, self.ended.copy()
        self.returns += rewards
        self.lengths += 1
        done = terminated | truncated
        self.ended += done
        out: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(done):
            out[i] = {
                "terminal_observation": self._without_advice(infos["final_obs"][i]),
                "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                "episode": {"r": float(self.returns[i]), "l": int(self.lengths[i])},
                "metrics": {key: values[i] for key, values in infos["final_info"]["metrics"].items() if key[0] != "_"},
            }
            self.returns[i] = 0
            self.lengths[i] = 0
        changes = self._actions >= self.serving.simulation.layout.preempt_at
        self.view.forget(done)
        return self.view.completed(observation), (rewards - self.change_cost * changes).astype(np.float32), done, out

    def observation(self) -> dict[str, NDArray[Any]]:
        """The observation now; blocks and mask are views, overwritten by the next step."""
        return self.view.observation()

    def _without_advice(self, final: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """An episode's last observation, of which only the value is asked for: no rule is."""
        advice = {ADVICE_KEY: np.zeros(len(self.view.rules), np.float32)} if self.view.rules else {}
        return final | advice

    def close(self) -> None:
        self.serving.close()

    def action_masks(self) -> NDArray[np.bool_]:
        """Legal actions now, bool (N, A); a view, overwritten by the next step."""
        return self.serving.simulation.current.mask.view(np.bool_)

    # ---- SB3's access to single environments; there are none, so attributes are the batch's own

    def has_attr(self, attr_name: str) -> bool:
        return hasattr(self, attr_name) or hasattr(self.serving, attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        owner = self if hasattr(self, attr_name) else self.serving
        return [getattr(owner, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise NotImplementedError("the environments of a batch share one configuration; build another ServingSB3VecEnv")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        if method_name != "action_masks":
            raise AttributeError(f"the batch's environments have no method '{method_name}', only 'action_masks'")
        masks = self.action_masks()
        return list(masks) if indices is None else [masks[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """True for Monitor: its statistics are in the infos."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]
