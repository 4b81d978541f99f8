"""Look-ahead by rollouts: policy improvement over a base rule. Source: Bertsekas and Castanon 1999; parallel rollout, 2004.

Each candidate action is tried in `samples` imagined worlds (`mmsched_env.imagine`: lengths drawn from their predictions,
arrivals from observed rates, nothing hidden is read), the base rule deciding from then on until all requests there are
served. The worlds are the same for all candidates. The candidate of the least flow time is taken, if it beats the
base rule's own action by more than `caution` standard errors. Candidates are what the base and other rules would do,
waiting, and legal dispatches of the oldest requests and unloads. Other rules may be followed too: then what one of them does now and
from then on is one more candidate. A learned policy may lead: then its action, not the base rule's, is the one to beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.action import ActionLayout, Kind
from mmsched_env.core import Simulation, Snapshot
from mmsched_env.errors import MmschedError, unknown_name
from mmsched_env.imagine import imagined_worlds
from mmsched_env.observation import BLOCKS
from mmsched_env.policy import Policy

from .base import RulePolicy
from .cmu import Cmu
from .collate import Collate
from .composite import Composite
from .least_loaded import LeastLoaded
from .mect import Mect
from .memory import copies
from .mlfq import Mlfq
from .parts import WAIT
from .preemptive import Preemptive
from .srpt import Srpt

RULES: dict[str, type[RulePolicy]] = {
    "composite": Composite,
    "mect": Mect,
    "least_loaded": LeastLoaded,
    "collate": Collate,
    "cmu": Cmu,
}
"""rules that propose candidates"""

FOLLOWED: dict[str, type[RulePolicy]] = {**RULES, "preemptive": Preemptive, "mlfq": Mlfq, "srpt": Srpt}
"""rules that may decide in rollouts"""


class Planner:
    """Rollout policy improvement.

    Parameters
    ----------
    base
        Rule that decides in the rollouts, one of `FOLLOWED`.
    base_settings
        Its settings, by name, other than those of conf/policy.
    follow
        Rules that may be followed in its place, with their settings.
    lead
        Path of a checkpoint that decides where nothing else does better; empty: the base rule.
    samples
        Imagined worlds.
    horizon_s
        Seconds of arrivals in them.
    width
        Candidates at most.
    caution
        Standard errors of the paired difference by which a candidate must beat the base rule's action.
    sigma
        Spread the length predictions are taken to have (assumed; the default of `workload.prediction`).
    max_rounds
        Decisions of a rollout at most.

    Raises
    ------
    ConfigError
        An unknown rule to follow, or a checkpoint that cannot be used.
    """

    is_bound = False

    def __init__(
        self,
        base: str = "composite",
        base_settings: Mapping[str, Any] = MappingProxyType({}),
        follow: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        lead: str = "",
        samples: int = 8,
        horizon_s: float = 60.0,
        width: int = 6,
        caution: float = 2.0,
        sigma: float = 0.5,
        max_rounds: int = 1000,
    ) -> None:
        for name in (base, *follow):
            if name not in FOLLOWED:
                raise unknown_name("rule of rollouts", name, FOLLOWED)
        self.settings = {name: dict(settings or {}) for name, settings in follow.items()} | {base: dict(base_settings)}
        """of the rules that decide in rollouts"""
        self.follow = [name for name in follow if name != base]
        self._lead = _learned(lead) if lead else None
        self.base, self.samples, self.horizon_s, self.width = base, int(samples), float(horizon_s), int(width)
        self.caution, self.sigma, self.max_rounds = float(caution), float(sigma), int(max_rounds)
        self._stretch = max(1, self.max_rounds - 1)
        """decisions in compiled code between two calls of `_tell`"""

    def reset(self, layout: ActionLayout, seed: int) -> None:
        """A new episode; `seed` drives the imagined worlds."""
        self._layout, self._rng = layout, np.random.default_rng(seed)
        self._source: Simulation | None = None
        names = dict.fromkeys([self.base, *RULES, *self.follow])
        self._rules = {name: self._rule(name) for name in names}
        for policy in (*self._rules.values(), *([self._lead] if self._lead else [])):
            policy.reset(layout, seed)

    def _rule(self, name: str) -> RulePolicy:
        return FOLLOWED[name](**self.settings.get(name, {}))

    def attach(self, simulation: Simulation) -> None:
        """Plan for environment 0 of `simulation`."""
        self._source = simulation
        self._branches = Simulation(simulation.config, self.width * self._num_worlds())
        self._others = Simulation(simulation.config, self._num_worlds()) if self.follow else None

    def _num_worlds(self) -> int:
        return self.samples

    def _worlds(self, simulation: Simulation) -> list[Snapshot]:
        return imagined_worlds(simulation, self.samples, self.horizon_s, self.sigma, self._rng)

    def act(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> int:
        """The candidate of the least expected flow time.

        Raises
        ------
        MmschedError
            `attach` has not been called in this episode.
        """
        if self._source is None:
            raise MmschedError("the planner needs the simulation it decides for; accepted: attach() before act()")
        worlds = self._worlds(self._source)
        self._branches.restore(worlds[0], slice(0, 1))
        # Rules look at every decision point, also where there is no choice: they remember.
        proposals = {name: self._proposal(rule) for name, rule in self._rules.items()}
        first = [self._lead.act(observation, mask)] if self._lead else []
        candidates = self._candidates([*first, *proposals.values()], np.flatnonzero(mask))
        plans = [*candidates, *(proposals[name] for name in self.follow)]
        if len(set(plans)) == 1:
            return plans[0]
        rewards = np.column_stack([self._rewards(worlds, candidates), *self._followed(worlds, proposals)])
        gain = rewards - rewards[:, :1]
        error = gain.std(axis=0, ddof=1) / np.sqrt(len(worlds)) if len(worlds) > 1 else np.zeros(len(plans))
        return plans[int(np.argmax(gain.mean(axis=0) - self.caution * error))]

    def _rewards(self, worlds: list[Snapshot], candidates: list[int]) -> NDArray[np.float64]:
        """[W, C] of each candidate in each world, the base rule deciding from then on."""
        count = len(candidates)
        for w, world in enumerate(worlds):
            self._branches.restore(world, slice(w * count, (w + 1) * count))
        first = np.tile(candidates, len(worlds))
        return self._roll(self._branches, self._rules[self.base], first).reshape(len(worlds), count)

    def _followed(self, worlds: list[Snapshot], proposals: Mapping[str, int]) -> list[NDArray[np.float64]]:
        """[W] of each rule that may be followed: what it does now and from then on."""
        found = []
        for name in self.follow:
            assert self._others
            for w, world in enumerate(worlds):
                self._others.restore(world, slice(w, w + 1))
            found.append(self._roll(self._others, self._rules[name], np.full(len(worlds), proposals[name])))
        return found

    def _proposal(self, rule: RulePolicy) -> int:
        """What the rule would do now."""
        action = np.zeros(1, np.int64)
        current = self._branches.current
        self._tell(self._branches, rule.memory, 1)
        rule.decide([current.records[block][:1] for block in BLOCKS], current.mask[:1], rule.memory, action)
        return int(action[0])

    def _tell(self, branches: Simulation, memory: Any, count: int) -> None:
        """Write to the memories of the first `count` branches what a bound knows beforehand."""

    def _candidates(self, proposals: list[int], legal: NDArray[np.int64]) -> list[int]:
        """Distinct legal actions, the base rule's first, `width` at most."""
        dispatch, unload = [], []
        best: dict[tuple[int, int], int] = {}
        for index in legal.tolist():
            action = self._layout.decode(index)
            if action.kind == Kind.DISPATCH:
                best[action.queue_slot, action.gpu] = index  # levels rise: the deepest legal one stays
            elif action.kind == Kind.PREEMPT and action.scope == 0:
                unload.append(index)
        dispatch = list(best.values())
        ordered = [*proposals, WAIT, *dispatch[: self.width // 2], *unload, *dispatch[self.width // 2 :]]
        allowed = set(legal.tolist())
        return [index for index in dict.fromkeys(ordered) if index in allowed][: self.width]

    def _roll(self, branches: Simulation, rule: RulePolicy, first: NDArray[np.int64]) -> NDArray[np.float64]:
        """[N] rewards of taking `first` in the first N branches and letting the rule decide from then on."""
        count = len(first)
        actions = np.zeros(branches.num_envs, np.int64)
        actions[:count] = first
        memory = copies(rule.memory, count)
        rewards: NDArray[np.float64] = branches.step(actions)[:count]["reward"].copy()
        for _ in range(1, self.max_rounds, self._stretch):
            outcomes = branches.outcomes[:count]
            if np.all(outcomes["terminated"] | outcomes["truncated"]):
                break
            self._tell(branches, memory, count)
            rule.play_batch(branches, memory, self._stretch, rewards)
        return rewards


def _learned(path: str) -> Policy:
    from mmsched_env.agents.loader import load_policy

    policy: Policy = load_policy(path)
    return policy
