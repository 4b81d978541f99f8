"""What other actions would have led to: rollouts of a rule from states of training episodes, all on the same future.

From a state, each candidate action is taken in a copy of the simulation and the rule decides from then on. The copies
have the episode's own future (arrivals, true lengths), so the difference of two returns is what the one action was worth
there: no baseline is left to be learned, and what has nothing to do with the action cancels out (common random numbers;
the vine estimate of TRPO, Schulman et al. 2015; rollout policy iteration, Bertsekas and Castanon 1999). The future is
hidden from the policy that learns from this: it sees the observation, and an action that was only lucky is unlucky elsewhere.
Or (`worlds`) they are averaged over futures imagined from the observation, as the planner does: less noise, more rollouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation, Snapshot
from mmsched_env.env import draw_episode
from mmsched_env.imagine import imagined_worlds, near_world
from mmsched_env.observation import MASK_KEY

from .config import ImprovementConfig
from .learner import ADVICE_KEY, BatchRule, BatchView
from .ppo import decided_logits

RARE = 1e-6
"""probability below which an action is none of the policy's likeliest"""
MAX_DECISIONS = 5000
"""of a rollout: a state from which one is not over by then says nothing"""
UNCUT = 2**40
"""decisions of an episode at most in rollouts: what was cut off would have cost nothing"""


@dataclass(frozen=True)
class Samples:
    """N states with C candidates each."""

    observation: dict[str, NDArray[Any]]
    """as a learner sees it (N, ...)"""
    candidates: NDArray[np.int64]
    """(N, C) actions; the first is the rule's own, and fills the row where there are fewer"""
    gains: NDArray[np.float64]
    """(N, C) return of each less that of the first, weight x s"""


class Explorer:
    """Episodes of one scenario in which a policy acts, and rollouts from a share of its decisions.

    Parameters
    ----------
    config
        The scenario.
    advisers
        Rules whose actions the policy sees.
    settings
        What decides in the rollouts, how many candidates a state has (the rule's action, what the advisers would do, what the
        policy likes best, others drawn from what is legal), in which futures, and how far ahead requests arrive there.
    """

    def __init__(
        self, config: EnvConfig, advisers: Sequence[str], settings: ImprovementConfig, seed: int, num_envs: int = 16
    ) -> None:
        self.settings, self.width, self.futures = settings, settings.width, max(1, settings.worlds)
        self.source = Simulation(config, num_envs)
        whole = dataclasses.replace(config, sim=dataclasses.replace(config.sim, max_steps=UNCUT))
        self.branches = Simulation(whole, num_envs * self.futures * self.width)
        self.view = BatchView(self.source, advisers)
        self.rule = BatchRule(settings.rule, self.source)
        self.roller = BatchRule(settings.rule, self.branches)
        self._rng = np.random.default_rng(seed)
        # of its own: how many futures are imagined changes neither states nor candidates
        self._imagination = np.random.default_rng([seed, num_envs])
        self._draws = [np.random.default_rng([seed, env]) for env in range(num_envs)]
        for env in range(num_envs):
            self._begin(env)

    def gather(self, policy: MaskableActorCriticPolicy, count: int) -> Samples:
        """`count` states and a few more."""
        policy.set_training_mode(False)
        found: list[Samples] = []
        states: list[tuple[list[Snapshot], NDArray[np.int64]]] = []
        observations: list[dict[str, NDArray[Any]]] = []
        while sum(len(part.candidates) for part in found) < count:
            rule, seen = self.rule.decide().copy(), self.view.observation()
            chances = decided_logits(policy, seen).softmax(-1).numpy()
            for env in np.flatnonzero(self._rng.random(self.source.num_envs) < self.settings.share).tolist():
                if seen[MASK_KEY][env].sum() == 1:
                    continue
                now = {key: x[env].copy() for key, x in seen.items()}
                branches = self.futures * self.width
                self.roller.memory[len(states) * branches :][:branches] = self.rule.memory[env]
                states.append((self._futures(env), self._candidates(rule[env], chances[env], now)))
                observations.append(now)
                if len(states) == self.source.num_envs:
                    found.append(self._roll(states, observations))
                    states, observations = [], []
            self._advance(chances)
        return joined(found)

    def _candidates(self, rule: int, chances: NDArray[np.float32], seen: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
        """(C,) distinct actions as far as there are any."""
        advised = seen[ADVICE_KEY].astype(np.int64).tolist() if ADVICE_KEY in seen else []
        likely = [a for a in np.argsort(-chances, kind="stable")[: self.width // 2].tolist() if chances[a] > RARE]
        legal = np.flatnonzero(seen[MASK_KEY])
        if advised:  # changes of instances are up to the rules, as in the network
            legal = legal[legal < self.source.layout.preempt_at]
        others = self._rng.permutation(legal).tolist()
        wanted = [a for a in dict.fromkeys([int(rule), *advised, *likely, *others]) if seen[MASK_KEY][a]]
        chosen = wanted[: self.width]
        return np.array(chosen + [int(rule)] * (self.width - len(chosen)), np.int64)

    def _futures(self, env: int) -> list[Snapshot]:
        """Environment `env` with the arrivals of the next `horizon_s`, one at least: its own, or imagined ones."""
        horizon_s, worlds = self.settings.horizon_s, self.settings.worlds
        if worlds:
            return imagined_worlds(self.source, worlds, horizon_s, self.settings.sigma, self._imagination, env)
        return [near_world(self.source, horizon_s, env)]

    def _roll(
        self, states: list[tuple[list[Snapshot], NDArray[np.int64]]], observations: list[dict[str, NDArray[Any]]]
    ) -> Samples:
        """What all candidates of all states gain over the first, the rule deciding after it: means over the futures."""
        for at, world in enumerate(world for worlds, _ in states for world in worlds):
            self.branches.restore(world, slice(at * self.width, (at + 1) * self.width))
        candidates = np.stack([actions for _, actions in states])
        returns = self.branches.step(np.repeat(candidates, self.futures, 0).reshape(-1))["reward"].copy()
        self.roller.rule.play_batch(self.branches, self.roller.memory, MAX_DECISIONS, returns)
        table = returns.reshape(len(states), self.futures, self.width).mean(1)
        over = self.branches.outcomes["terminated"].reshape(len(states), -1).all(1, keepdims=True)
        seen = {key: np.stack([one[key] for one in observations]) for key in observations[0]}
        return Samples(seen, candidates, np.where(over, table - table[:, :1], 0.0))

    def _advance(self, chances: NDArray[np.float32]) -> None:
        """One decision of the policy in every episode."""
        done = self.source.step(chances.argmax(1))
        ended = (done["terminated"] | done["truncated"]).astype(bool)
        for env in np.flatnonzero(ended):
            self._begin(int(env))
        self.rule.forget(ended)
        self.view.forget(ended)

    def _begin(self, env: int) -> None:
        trace, seed = draw_episode(self.source.config, self._draws[env])
        self.source.reset(env, trace, seed)


def joined(parts: list[Samples]) -> Samples:
    """One after the other."""
    return Samples(
        {key: np.concatenate([part.observation[key] for part in parts]) for key in parts[0].observation},
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("candidates", "gains")),
    )
