"""The vector environment: N episodes stepped by one call of the same kernel."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from . import metrics, observation
from .config import EnvConfig, env_config
from .core import Simulation
from .env import draw_episode, require_legal
from .errors import ConfigError
from .reward import TERMS

Observation = dict[str, NDArray[Any]]


class ServingVectorEnv(VectorEnv[Observation, NDArray[np.int64], NDArray[np.float64]]):
    """N `ServingEnv`s in one kernel; ``gymnasium.make_vec("mmsched/Serving-v0", N, "vector_entry_point")``.

    Autoreset is SAME_STEP: the observation of a finished environment is the first of its next episode, and
    ``infos["final_obs"]``, ``infos["final_info"]`` hold the last ones (object arrays, with ``_final_obs`` as their
    mask).

    Parameters
    ----------
    num_envs
        N.
    config
        As for `ServingEnv`.
    copy
        False hands out the environment's own arrays: the next step overwrites them, and they must not be written to.
    logging
        Keep event logs.
    threads
        As for `mmsched_env.core.Simulation`: parts of the batch stepped at the same time.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012 (Gymnasium's convention)

    def __init__(
        self,
        num_envs: int = 1,
        config: EnvConfig | Mapping[str, Any] | None = None,
        copy: bool = True,
        logging: bool = False,
        render_mode: str | None = None,
        threads: int = 1,
    ) -> None:
        if num_envs < 1:
            raise ConfigError(f"num_envs is {num_envs}; accepted: a whole number >= 1")
        if render_mode is not None:
            raise ConfigError("the vector environment does not render; accepted: render_mode=None")
        self.num_envs = num_envs
        self.config = env_config(config)
        self.copy = copy
        self.render_mode = None
        self.simulation = Simulation(self.config, num_envs, logging, threads)
        self.single_observation_space = observation.space(self.simulation.dims)
        self.single_action_space = gym.spaces.Discrete(self.simulation.layout.size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._started = False
        self._rngs = [np.random.default_rng() for _ in range(num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start all episodes; an int seed gives environment i the seed ``seed + i``, as Gymnasium's vector envs do.

        ``options["trace"]`` replays one trace everywhere; ``options["reset_mask"]`` (bool (N,)) restarts only some.
        """
        seeds = self._seeds(seed)
        if len(seeds) != self.num_envs:
            raise ConfigError(f"seed has {len(seeds)} entries; accepted: one number, or one per environment")
        options = dict(options or {})
        chosen = options.pop("reset_mask", np.ones(self.num_envs, bool))
        for i in np.flatnonzero(chosen):
            if seeds[i] is not None:
                self._rngs[i] = gym.utils.seeding.np_random(seeds[i])[0]
            self.simulation.reset(int(i), *draw_episode(self.config, self._rngs[i], options))
        self._started = True
        self.simulation.outcomes["illegal"][chosen] = 0
        return self._observation(), self._infos()

    def step(  # type: ignore[override]  # Gymnasium types flags as float arrays, its own environments return bool
        self, actions: NDArray[np.int64]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One action per environment; finished ones are reset within the step."""
        if not self._started:
            raise gym.error.ResetNeeded("call reset() before step()")
        given = np.asarray(actions)
        if given.dtype.kind not in "iu":
            raise ConfigError(f"actions are of type {given.dtype}; accepted: whole numbers")
        actions = given.astype(np.int64, copy=False)
        if actions.shape != (self.num_envs,):
            raise ConfigError(f"actions have shape {actions.shape}; accepted: ({self.num_envs},)")
        if self.config.sim.strict_actions:
            for i, action in enumerate(actions):
                require_legal(self.simulation, i, int(action))
        outcome = self.simulation.step(actions)
        rewards = outcome["reward"].copy()
        terminated = outcome["terminated"].astype(bool)
        truncated = outcome["truncated"].astype(bool)
        infos = self._infos()
        done = terminated | truncated
        if done.any():
            self._finish(done, infos)
        return self._observation(), rewards, terminated, truncated, infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Legal actions, bool (N, A)."""
        return self.simulation.current.mask.astype(bool)

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, SupportsIndex) and not isinstance(seed, np.ndarray):
            return [operator.index(seed) + i for i in range(self.num_envs)]
        return [None if entry is None else operator.index(entry) for entry in seed]

    def _finish(self, done: NDArray[np.bool_], infos: dict[str, Any]) -> None:
        """Keep the last observations, infos and metrics of finished episodes, then start the next ones."""
        final_obs = np.full(self.num_envs, None, object)
        final_info: dict[str, Any] = {}
        observations = self.simulation.current.observation()
        ended = self._infos()
        for i in np.flatnonzero(done):
            final_obs[i] = {key: values[i].copy() for key, values in observations.items()}
            summary = metrics.summary(self.simulation.episode_requests(int(i)), self.simulation.state[i])
            last = {key: ended[key][i] for key in ("time_s", "illegal_action")}
            terms = {name: ended["reward_terms"][name][i] for name in TERMS}
            final_info = self._add_info(final_info, last | {"reward_terms": terms, "metrics": summary}, int(i))
            self.simulation.reset(int(i), *draw_episode(self.config, self._rngs[i]))
        infos |= self._infos()
        infos |= {"final_obs": final_obs, "_final_obs": done, "final_info": final_info, "_final_info": done}

    def _infos(self) -> dict[str, Any]:
        state = self.simulation.state
        everyone = np.ones(self.num_envs, bool)
        terms = {name: state["terms"][:, w].copy() for w, name in enumerate(TERMS)}
        return {
            "time_s": state["now"].copy(),
            "_time_s": everyone,
            "illegal_action": self.simulation.outcomes["illegal"].astype(bool),
            "_illegal_action": everyone,
            "reward_terms": terms | {f"_{name}": everyone for name in TERMS},
            "_reward_terms": everyone,
        }

    def _observation(self) -> Observation:
        views = self.simulation.current.observation()
        return {key: values.copy() for key, values in views.items()} if self.copy else views
