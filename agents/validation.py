"""A policy on validation traces, all episodes of a scenario side by side, against the same traces served by a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from mmsched_env import metrics
from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation
from mmsched_env.workload.splits import seed_of

from .learner import BatchRule, BatchView
from .ppo import decided_logits

KEY = "weighted_mean_e2e_ms"
"""the figure policies are chosen by: what the reward adds up to, per unit of weight"""

MOST = 3
"""an episode has failed after so many times the decisions of the rule's longest: a policy that puts out what it has just
loaded may never end it"""

Decide = Callable[[], NDArray[np.int64]]


@dataclass(frozen=True)
class Validation:
    """Figures (scenarios, episodes) of a policy, and of the rule it is held against."""

    ours: dict[str, NDArray[np.float64]]
    line: dict[str, NDArray[np.float64]]

    @property
    def ratios(self) -> NDArray[np.float64]:
        """Mean of `KEY` over the rule's, for each scenario; below 1 is better."""
        ratio: NDArray[np.float64] = self.ours[KEY].mean(1) / self.line[KEY].mean(1)
        return ratio

    @property
    def score(self) -> float:
        """Geometric mean of the ratios: no scenario counts for more because its waits are longer."""
        return float(np.exp(np.log(self.ratios).mean()))


class Validator:
    """Episodes of the first validation seeds of every scenario.

    Parameters
    ----------
    envs
        The scenarios.
    episodes
        Traces of each.
    rule
        Name in conf/policy of what is compared with; it is run once.
    advisers
        Rules whose actions the policy sees.
    """

    def __init__(self, envs: Sequence[EnvConfig], episodes: int, rule: str, advisers: Sequence[str]) -> None:
        self.simulations = [Simulation(env, episodes) for env in envs]
        self.rule = rule
        self.advisers = advisers
        self._line: tuple[dict[str, NDArray[np.float64]], list[int]] | None = None

    def line(self) -> tuple[dict[str, NDArray[np.float64]], list[int]]:
        """The rule's figures (scenarios, episodes), and the decisions of its longest episode for each scenario."""
        if self._line is None:
            played = [episodes_of(s, BatchRule(self.rule, s).decide, s.config.sim.max_steps) for s in self.simulations]
            self._line = _stacked([rows for rows, _ in played]), [steps for _, steps in played]
        return self._line

    def __call__(self, policy: MaskableActorCriticPolicy, stochastic: bool = False) -> Validation:
        """Run the policy: the likeliest action, or one drawn."""
        views = [BatchView(simulation, self.advisers) for simulation in self.simulations]
        line, longest = self.line()
        rows = [
            episodes_of(view.simulation, network_decisions(policy, view, stochastic), MOST * steps)[0]
            for view, steps in zip(views, longest, strict=True)
        ]
        return Validation(_stacked(rows), line)


def network_decisions(policy: MaskableActorCriticPolicy, view: BatchView, stochastic: bool) -> Decide:
    """A function that gives the network's actions (N,) in a simulation as it stands."""
    generator = torch.Generator().manual_seed(0)

    def decide() -> NDArray[np.int64]:
        logits = decided_logits(policy, view.observation())
        if stochastic:
            chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
        else:
            chosen = logits.argmax(-1)
        return np.asarray(chosen.numpy(), np.int64)

    policy.set_training_mode(False)
    return decide


def episodes_of(simulation: Simulation, decide: Decide, limit: int) -> tuple[list[dict[str, Any]], int]:
    """Summaries (`mmsched_env.metrics`) of the first validation traces, one in each environment, and the decisions of the
    longest. An episode that is not over after `limit` of them has an infinite `KEY`; dropped requests are charged in it."""
    config, count = simulation.config, simulation.num_envs
    for env in range(count):
        seed = seed_of("validation", env)
        simulation.reset(env, config.workload.sample(seed, config.models.names), seed)
    running = np.ones(count, bool)
    summaries: list[dict[str, Any]] = [{} for _ in range(count)]
    steps = 0
    while running.any():
        outcomes = simulation.step(np.where(running, decide(), 0))
        steps += 1
        ended = running & ((outcomes["terminated"] | outcomes["truncated"]).astype(bool) | (steps >= limit))
        for env in np.flatnonzero(ended).tolist():
            summaries[env] = metrics.summary(simulation.episode_requests(env), simulation.state[env])
            charged_ms = metrics.charged_mean_e2e_ms(simulation.episode_requests(env))
            summaries[env][KEY] = charged_ms if outcomes["terminated"][env] else np.inf
        running &= ~ended
    return summaries, steps


def _stacked(rows: list[list[dict[str, Any]]]) -> dict[str, NDArray[np.float64]]:
    """[scenario][episode] summaries -> figure -> (scenarios, episodes)."""
    return {key: np.array([[one[key] for one in scenario] for scenario in rows], float) for key in rows[0][0]}
