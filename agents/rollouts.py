"""What other actions would have led to: rollouts of a rule from states of training episodes, all on the same future.

From a state, each candidate action is taken in a copy of the simulation and the rule decides from then on. The copies
have the episode's own future (arrivals, true lengths), so the difference of two returns is what the one action was worth
there: no baseline is left to be learned, and what has nothing to do with the action cancels out (common random numbers;
the vine estimate of TRPO, Schulman et al. 2015; rollout policy iteration, Bertsekas and Castanon 1999). The future is
hidden from the policy that learns from this: it sees the observation, and an action that was only lucky is unlucky elsewhere.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation, Snapshot
from mmsched_env.env import draw_episode
from mmsched_env.observation import MASK_KEY

from .imitation import Teacher

MAX_DECISIONS = 5000
"""of a rollout"""


@dataclass(frozen=True)
class Samples:
    """N states with C candidates each."""

    observation: dict[str, NDArray[Any]]
    """blocks (N, rows..., fields)"""
    mask: NDArray[np.int8]
    """(N, A)"""
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
    rule
        Name in conf/policy of what decides in the rollouts.
    width
        Candidates of a state: the rule's action, the policy's likeliest, and others drawn from what is legal.
    horizon_s
        Arrivals later than this do not take part in a rollout; it runs until all others are served.
    share
        Share of the decisions that are looked into.
    """

    def __init__(
        self, config: EnvConfig, rule: str, width: int, horizon_s: float, share: float, seed: int, num_envs: int = 16
    ) -> None:
        self.width, self.horizon_s, self.share = width, horizon_s, share
        self.source = Simulation(config, num_envs)
        self.branches = Simulation(config, num_envs * width)
        self.teacher = Teacher(rule, self.source)
        self.roller = Teacher(rule, self.branches)
        self._rng = np.random.default_rng(seed)
        self._draws = [np.random.default_rng([seed, env]) for env in range(num_envs)]
        for env in range(num_envs):
            self._begin(env)

    def gather(self, policy: MaskableActorCriticPolicy, count: int) -> Samples:
        """`count` states and a few more."""
        policy.set_training_mode(False)
        found: list[Samples] = []
        states: list[tuple[int, Snapshot, NDArray[np.int64]]] = []
        seen: list[dict[str, NDArray[Any]]] = []
        while sum(len(part.mask) for part in found) < count:
            rule = self.teacher.decide().copy()
            chances = self._chances(policy)
            for env in np.flatnonzero(self._rng.random(self.source.num_envs) < self.share).tolist():
                mask = self.source.current.mask[env]
                if mask.sum() > 1:
                    states.append((env, self._snapshot(env), self._candidates(rule[env], chances[env], mask)))
                    seen.append({k: x[env].copy() for k, x in self.source.current.observation().items()})
                    self.roller.memory[(len(states) - 1) * self.width : len(states) * self.width] = self.teacher.memory[
                        env
                    ]
                if len(states) == self.source.num_envs:
                    found.append(self._roll(states, seen))
                    states, seen = [], []
            self._advance(chances)
        return joined(found)

    def _chances(self, policy: MaskableActorCriticPolicy) -> NDArray[np.float32]:
        """The policy's probabilities (E, A)."""
        current = self.source.current
        with torch.no_grad():
            batch = {key: torch.as_tensor(x) for key, x in current.observation().items() if key != MASK_KEY}
            logits = policy.get_distribution(batch, current.mask.view(np.bool_)).logits  # type: ignore[attr-defined]
            return np.asarray(logits.softmax(-1).numpy(), np.float32)

    def _candidates(self, rule: int, chances: NDArray[np.float32], mask: NDArray[np.int8]) -> NDArray[np.int64]:
        """(C,) distinct actions as far as there are any."""
        likely = np.argsort(-chances, kind="stable")[: 1 + self.width // 2]
        legal = self._rng.permutation(np.flatnonzero(mask))
        chosen = [a for a in dict.fromkeys([int(rule), *likely.tolist(), *legal.tolist()]) if mask[a]][: self.width]
        return np.array(chosen + [int(rule)] * (self.width - len(chosen)), np.int64)

    def _snapshot(self, env: int) -> Snapshot:
        """Environment `env` with the arrivals of the next `horizon_s`, one at least."""
        now = self.source.snapshot(env)
        until = float(now.state["now"][0]) + self.horizon_s
        count = max(
            int(now.state["num_arrived"][0]) + 1, int(np.searchsorted(now.requests["arrival_s"], until, "right"))
        )
        count = min(count, len(now.requests))
        now.state["num_requests"] = count
        return dataclasses.replace(now, requests=now.requests[:count])

    def _roll(
        self, states: list[tuple[int, Snapshot, NDArray[np.int64]]], seen: list[dict[str, NDArray[Any]]]
    ) -> Samples:
        """Returns of all candidates of all states, the rule deciding after the first action."""
        for at, (_, snapshot, _) in enumerate(states):
            self.branches.restore(snapshot, slice(at * self.width, (at + 1) * self.width))
        returns = self.branches.step(np.concatenate([candidates for *_, candidates in states]))["reward"].copy()
        self.roller.rule.play_batch(self.branches, self.roller.memory, MAX_DECISIONS, returns)
        table = returns.reshape(len(states), self.width)
        observation = {key: np.stack([one[key] for one in seen]) for key in seen[0]}
        mask = observation.pop(MASK_KEY)
        return Samples(observation, mask, np.stack([c for *_, c in states]), table - table[:, :1])

    def _advance(self, chances: NDArray[np.float32]) -> None:
        """One decision of the policy in every episode."""
        done = self.source.step(chances.argmax(1))
        ended = (done["terminated"] | done["truncated"]).astype(bool)
        for env in np.flatnonzero(ended):
            self._begin(int(env))
        self.teacher.forget(ended)

    def _begin(self, env: int) -> None:
        trace, seed = draw_episode(self.source.config, self._draws[env])
        self.source.reset(env, trace, seed)


def joined(parts: list[Samples]) -> Samples:
    """One after the other."""
    return Samples(
        {key: np.concatenate([part.observation[key] for part in parts]) for key in parts[0].observation},
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("mask", "candidates", "gains")),
    )
