"""Look-ahead by rollouts: policy improvement over a base rule. Source: Bertsekas and Castanon 1999; parallel rollout, 2004;
races of Maron and Moore 1994.

Each candidate action is tried in imagined worlds (`mmsched_env.imagine`: lengths drawn from their predictions,
arrivals from observed rates, nothing hidden is read), the base rule deciding from then on until all requests there are
served. The worlds are the same for all candidates. They race: after every `batch` worlds those leave that, one standard error better
than they look, still would not beat the base rule's own action by `caution` standard errors after all `samples` worlds. The candidate
of the least flow time is taken, if it beats the base rule's action by more than `caution` standard errors. Candidates are
what the base and other rules would do, waiting, and legal dispatches of the oldest requests and unloads. A learned policy may
lead: then its action, not the base rule's, is the one to beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.action import ActionLayout, Kind
from mmsched_env.core import Simulation, Snapshot
from mmsched_env.errors import ConfigError, MmschedError, unknown_name
from mmsched_env.imagine import imagined_worlds
from mmsched_env.policy import Policy

from .base import RulePolicy
from .cmu import Cmu
from .collate import Collate
from .composite import Composite
from .evolved import Evolved
from .least_loaded import LeastLoaded
from .mect import Mect
from .memory import copies
from .parts import WAIT

RULES: dict[str, type[RulePolicy]] = {
    "composite": Composite,
    "mect": Mect,
    "least_loaded": LeastLoaded,
    "collate": Collate,
    "cmu": Cmu,
}
"""rules that may be the base; the others propose candidates"""


class Planner:
    """Rollout policy improvement.

    Parameters
    ----------
    base
        Rule that decides in the rollouts: composite, mect, least_loaded, collate or cmu; or a .json of `mmsched evolve`.
    base_settings
        A named rule's settings, other than those of conf/policy.
    lead
        Policy that decides where nothing else does better, by its checkpoint's path or its name; empty: the base rule.
    samples
        Imagined worlds at most.
    batch
        Imagined worlds between two looks at who is still in the race.
    horizon_s
        Seconds of arrivals in them, at most.
    arrivals
        Arrivals in them, at most in the mean: the more there are, the less one decision is beside what chance does later.
    width
        Candidates at most.
    caution
        Standard errors of the paired difference by which a candidate must beat the base rule's action.
    sigma
        Spread the length predictions are taken to have (assumed; the default of `workload.prediction`).
    max_rounds
        Decisions of a rollout at most: a world in which one has not ended by then says nothing.

    Raises
    ------
    ConfigError
        An unknown base rule, a number of worlds, arrivals, candidates or decisions below one, a negative horizon, caution or
        spread, or a checkpoint that cannot be used.
    """

    is_bound = False

    def __init__(
        self,
        base: str = "composite",
        base_settings: Mapping[str, Any] = MappingProxyType({}),
        lead: str = "",
        samples: int = 32,
        batch: int = 4,
        horizon_s: float = 60.0,
        arrivals: float = 40.0,
        width: int = 12,
        caution: float = 2.0,
        sigma: float = 0.5,
        max_rounds: int = 20_000,
    ) -> None:
        if base not in RULES and not base.endswith(".json"):
            raise unknown_name("base rule", base, [*RULES, "a .json written by `mmsched evolve`"])
        least_one = {
            "samples": samples,
            "batch": batch,
            "arrivals": arrivals,
            "width": width,
            "max_rounds": max_rounds,
        }
        for name, number in least_one.items():
            if not number >= 1:  # nor NaN
                raise ConfigError(f"planner: {name} is {number}; accepted: at least 1")
        self.base_settings = dict(base_settings)
        least_zero = {"horizon_s": horizon_s, "caution": caution, "sigma": sigma}
        for name, number in least_zero.items():
            if not number >= 0:
                raise ConfigError(f"planner: {name} is {number}; accepted: at least 0")
        self._lead = _leading(lead) if lead else None
        self.base, self.samples, self.batch, self.width = base, int(samples), int(batch), int(width)
        self.horizon_s, self.arrivals = float(horizon_s), float(arrivals)
        self.caution, self.sigma = float(caution), float(sigma)
        self.max_rounds = int(max_rounds)
        self._stretch = max(1, self.max_rounds - 1)
        """decisions in compiled code between two calls of `_tell`"""
        self._rule(self.base)  # raises for settings that it does not have

    def reset(self, layout: ActionLayout, seed: int) -> None:
        """A new episode; `seed` drives the imagined worlds."""
        self._layout, self._rng = layout, np.random.default_rng(seed)
        self._source: Simulation | None = None
        self._rules = [self._rule(name) for name in [self.base, *(name for name in RULES if name != self.base)]]
        for policy in (*self._rules, *([self._lead] if self._lead else [])):
            policy.reset(layout, seed)

    def _rule(self, name: str) -> RulePolicy:
        if name not in RULES:
            return Evolved(name)
        return RULES[name](**self.base_settings if name == self.base else {})

    def attach(self, simulation: Simulation) -> None:
        """Plan for environment 0 of `simulation`."""
        self._source = simulation
        self._branches = Simulation(simulation.config, self.width * min(self.batch, self.samples))

    def _worlds(self, simulation: Simulation, count: int) -> list[Snapshot]:
        rate = float(simulation.current.records["models"]["arrivals_per_s"][0].sum())
        horizon_s = min(self.horizon_s, self.arrivals / max(rate, 1e-9))
        return imagined_worlds(simulation, count, horizon_s, self.sigma, self._rng)

    def act(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> int:
        """The candidate of the least expected flow time.

        Raises
        ------
        MmschedError
            `attach` has not been called in this episode.
        """
        if self._source is None:
            raise MmschedError("the planner needs the simulation it decides for; accepted: attach() before act()")
        worlds = self._worlds(self._source, min(self.batch, self.samples))
        self._branches.restore(worlds[0], slice(0, 1))
        # Rules look at every decision point, also where there is no choice: they remember.
        proposals = [self._proposal(rule) for rule in self._rules]
        first = [self._lead.act(observation, mask)] if self._lead else []
        candidates = self._candidates([*first, *proposals], np.flatnonzero(mask))
        if len(candidates) == 1:
            return candidates[0]
        return self._race(self._source, candidates, worlds)

    def _race(self, source: Simulation, candidates: list[int], worlds: list[Snapshot]) -> int:
        """The candidate that beats the first beyond doubt and by most, or the first."""
        gains = self._gains(candidates, worlds)
        while True:
            mean, error = _mean_and_error(gains)
            left = self.samples - len(gains)
            # Still to be won by whom one standard error better than now would do, when all worlds have been seen. The first
            # gains nothing over itself; one that has made no difference yet is thought to make none.
            in_the_end = self.caution * error * np.sqrt(len(gains) / self.samples)
            racing = [0, *np.flatnonzero(mean + error > in_the_end)]
            if left == 0 or len(racing) == 1:
                return candidates[int(np.argmax(mean - self.caution * error))]
            candidates = [candidates[i] for i in racing]
            more = self._gains(candidates, self._worlds(source, min(self.batch, left)))
            gains = np.concatenate([gains[:, racing], more])

    def _gains(self, candidates: list[int], worlds: list[Snapshot]) -> NDArray[np.float64]:
        """[W, C] reward of each candidate over the first's, in each world; 0 in one in which not all came to the end."""
        count = len(candidates)
        for w, world in enumerate(worlds):
            self._branches.restore(world, slice(w * count, (w + 1) * count))
        rewards = self._roll(np.tile(candidates, len(worlds))).reshape(len(worlds), count)
        ended = np.isfinite(rewards).all(axis=1, keepdims=True)
        return np.where(ended, rewards - rewards[:, :1], 0.0)

    def _proposal(self, rule: RulePolicy) -> int:
        """What the rule would do now."""
        action = np.zeros(1, np.int64)
        current = self._branches.current
        self._tell(rule.memory, 1)
        rule.decide(current.records[:1], current.mask[:1], rule.memory, action)
        return int(action[0])

    def _tell(self, memory: Any, count: int) -> None:
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

    def _roll(self, first: NDArray[np.int64]) -> NDArray[np.float64]:
        """[N] rewards of taking `first` and letting the base rule decide from then on; NaN of a rollout that was cut:
        what it had not yet paid for would look like a gain."""
        branches, count, base = self._branches, len(first), self._rules[0]
        actions = np.zeros(branches.num_envs, np.int64)
        actions[:count] = first
        memory = copies(base.memory, count)
        rewards: NDArray[np.float64] = branches.step(actions)[:count]["reward"].copy()
        for _ in range(1, self.max_rounds, self._stretch):
            outcomes = branches.outcomes[:count]
            if np.all(outcomes["terminated"] | outcomes["truncated"]):
                break
            self._tell(memory, count)
            base.play_batch(branches, memory, self._stretch, rewards)
        outcomes = branches.outcomes[:count]
        return np.where(outcomes["terminated"] | outcomes["truncated"], rewards, np.nan)


def _mean_and_error(gains: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[C] mean over worlds and its standard error, 0 for a single world."""
    worlds = len(gains)
    error = gains.std(axis=0, ddof=1) / np.sqrt(worlds) if worlds > 1 else np.zeros(gains.shape[1])
    return gains.mean(axis=0), error


def _leading(policy: str) -> Policy:
    from mmsched_env.evaluation.policies import make_policy  # which imports the rules

    return make_policy(policy)[1]
