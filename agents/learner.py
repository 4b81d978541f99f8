"""What a learner sees: the observation, what is legal, and what some rules would do now.

A network that is told what a good rule would do starts where the rule ends: it learns when to do otherwise, not everything
again (residual policy learning, Silver et al. 2018). The rules see the same observation and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mmsched_env.action import ActionLayout
from mmsched_env.core import Simulation
from mmsched_env.errors import ConfigError
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.observation import BLOCKS, MASK_KEY, space
from mmsched_env.sim.state import Dims

ADVICE_KEY = "advice"
"""(R,) the action each of R rules would take"""


def learner_space(dims: Dims, advisers: int) -> gym.spaces.Dict:
    """The observation space with `advisers` pieces of advice."""
    spaces = dict(space(dims).spaces)
    if advisers:
        spaces[ADVICE_KEY] = gym.spaces.Box(0, dims.A - 1, (advisers,), np.float32)
    return gym.spaces.Dict(spaces)


class BatchRule:
    """A rule, by its name in conf/policy, deciding for all environments of a simulation at once."""

    def __init__(self, name: str, simulation: Simulation) -> None:
        self.simulation = simulation
        self.rule = _rule(name)
        self.rule.reset(simulation.layout, 0)
        self._fresh: Any = self.rule.memory.copy()
        memory = np.zeros(
            simulation.num_envs, self._fresh.dtype
        )  # bytes between fields too: they are saved and compared
        memory[:] = self._fresh[0]
        self.memory: Any = memory.view(np.recarray)
        self._actions = np.zeros(simulation.num_envs, np.int64)

    def decide(self) -> NDArray[np.int64]:
        """What the rule would do now in each environment (N,); overwritten by the next call."""
        current = self.simulation.current
        self.rule.decide(current.records, current.mask, self.memory, self._actions)
        return self._actions

    def forget(self, done: NDArray[np.bool_]) -> None:
        """New episodes have begun in the environments that are `done` (N,)."""
        self.memory[done] = self._fresh[0]


class BatchView:
    """A batch as a learner sees it."""

    def __init__(self, simulation: Simulation, advisers: Sequence[str]) -> None:
        self.simulation = simulation
        self.rules = [BatchRule(name, simulation) for name in advisers]

    def observation(self) -> dict[str, NDArray[Any]]:
        """The observation now (N, ...); views that the next step overwrites, the advice apart."""
        return self.completed(self.simulation.current.observation())

    def completed(self, observation: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The current observation, in whatever form, with the advice."""
        seen = dict(observation)
        if self.rules:
            seen[ADVICE_KEY] = np.stack([rule.decide() for rule in self.rules], 1).astype(np.float32)
        return seen

    def forget(self, done: NDArray[np.bool_]) -> None:
        """New episodes have begun in the environments that are `done` (N,)."""
        for rule in self.rules:
            rule.forget(done)


class SingleView:
    """The same for one environment at a time, from its observation alone."""

    def __init__(self, advisers: Sequence[str]) -> None:
        self._rules = [_rule(name) for name in advisers]

    def reset(self, layout: ActionLayout, seed: int) -> None:
        """A new episode begins."""
        for rule in self._rules:
            rule.reset(layout, seed)

    def observation(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Blocks (rows..., fields), mask (A,) and advice (R,)."""
        seen = {block: observation[block] for block in BLOCKS} | {MASK_KEY: mask}
        if self._rules:
            seen[ADVICE_KEY] = np.array([rule.act(observation, mask) for rule in self._rules], np.float32)
        return seen


def _rule(name: str) -> Any:
    rule: Any = make_policy(name)[1]
    if not hasattr(rule, "decide"):
        raise ConfigError(f"'{name}' cannot decide for a batch of environments; accepted: a rule of baselines/")
    return rule
