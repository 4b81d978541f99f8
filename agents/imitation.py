"""Imitation: a policy learns what a rule would do, and a critic what comes of it, from episodes the rule decides.

Every decision is used once and then thrown away: the rule and the simulator are compiled and cost less than the
network, so there is always fresh data and nothing to overfit to. In a share of the environments the policy acts itself while
the rule only says what it would do (DAgger), so that it also learns to go on from states that its own slips lead to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.utils import obs_as_tensor
from torch.nn import functional

from mmsched_env.core import Simulation

from .buffer import TimedRolloutBuffer
from .config import ImitationConfig
from .learner import BatchRule
from .policies import RememberingPolicy
from .ppo import AnchoredPPO, logits_and_values


class Teachers:
    """One teacher for each part of a mixed batch."""

    def __init__(self, name: str, simulations: Sequence[Simulation]) -> None:
        self._teachers = [BatchRule(name, simulation) for simulation in simulations]

    def decide(self) -> NDArray[np.int64]:
        """(N,) of all parts."""
        return np.concatenate([teacher.decide() for teacher in self._teachers])

    def forget(self, done: NDArray[np.bool_]) -> None:
        """New episodes have begun where `done` (N,) of all parts."""
        at = 0
        for teacher in self._teachers:
            teacher.forget(done[at : at + teacher.simulation.num_envs])
            at += teacher.simulation.num_envs


def imitate(
    model: AnchoredPPO,
    teachers: Teachers,
    settings: ImitationConfig,
    report: Callable[[int, dict[str, float]], bool],
) -> None:
    """Clone the teachers' decisions, in rounds of one rollout buffer each.

    `report` is called after each round with the decisions so far and the round's figures; false ends the cloning.
    """
    env, buffer, policy = model.env, model.rollout_buffer, model.policy
    assert env is not None and isinstance(buffer, TimedRolloutBuffer) and isinstance(policy, RememberingPolicy)
    trace_s, buffer.trace_s = buffer.trace_s, np.inf  # returns as they came: there are no predictions to trust yet
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
    observation: Any = env.reset()
    starts, done = np.ones(env.num_envs, bool), np.zeros(env.num_envs, bool)
    count = 0
    acting = np.arange(env.num_envs) % 10 < 10 * settings.student_share  # in every scenario
    nothing = torch.zeros(env.num_envs)
    while count < settings.steps:
        buffer.reset()
        policy.set_training_mode(False)
        agreed = 0.0
        for _ in range(buffer.buffer_size):
            labels = teachers.decide()
            masks = get_action_masks(env)
            actions, seen = labels, obs_as_tensor(observation, model.device)
            if count < settings.steps // 3 or not acting.any():
                with torch.no_grad():
                    policy.remember(seen)  # for the buffer
            else:
                with torch.no_grad():
                    own = policy(seen, action_masks=masks)[0].cpu().numpy()
                agreed += float(np.mean(own == labels))
                actions = np.where(acting, own, labels)
            after, rewards, done, _ = env.step(actions)
            buffer.add(observation, labels.reshape(-1, 1), rewards, starts, nothing, nothing, action_masks=masks)
            teachers.forget(done)
            observation, starts = after, done
        with torch.no_grad():
            last = policy.predict_values(obs_as_tensor(observation, model.device))
        buffer.compute_returns_and_advantage(last, done)
        count += buffer.buffer_size * env.num_envs
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * max(0.05, 1 - count / settings.steps)
        figures = _fit(model, optimizer, settings.batch_size)
        figures["student_agreement"] = agreed / buffer.buffer_size
        if not report(count, figures):
            break
    buffer.trace_s = trace_s


def _fit(model: AnchoredPPO, optimizer: torch.optim.Optimizer, batch_size: int) -> dict[str, float]:
    """One pass over the buffer: cross entropy of the teacher's actions, squared error of the returns."""
    model.policy.set_training_mode(True)
    figures: dict[str, list[float]] = defaultdict(list)
    for data in model.rollout_buffer.get(batch_size):
        logits, values = logits_and_values(model.policy, data.observations, data.action_masks)
        labels = data.actions.long().flatten()
        cross_entropy = functional.cross_entropy(logits, labels)
        value_loss = functional.mse_loss(values, data.returns)
        optimizer.zero_grad()
        (cross_entropy + model.vf_coef * value_loss).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.policy.parameters(), model.max_grad_norm)
        optimizer.step()
        figures["cross_entropy"].append(cross_entropy.item())
        figures["accuracy"].append(float((logits.argmax(-1) == labels).float().mean()))
        figures["value_loss"].append(value_loss.item())
        spread = float(data.returns.var())
        figures["value_explained"].append(1 - value_loss.item() / max(spread, 1e-12))
    return {name: float(np.mean(values)) for name, values in figures.items()}
