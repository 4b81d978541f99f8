"""Double DQN over legal actions (van Hasselt et al. 2016), for semi-Markov steps. The policy's logits are its action values."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.utils import obs_as_tensor
from torch.nn import functional

from .buffer import TimedRolloutBuffer
from .config import DqnConfig
from .ppo import AnchoredPPO, logits_and_values


class Replay:
    """The last `rounds` steps of N environments, a ring in time; what follows a step is the next row."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.count = 0
        self._rows: dict[str, NDArray[Any]] = {}

    def add(self, row: dict[str, NDArray[Any]]) -> None:
        """One step of all environments, each array (N, ...)."""
        if not self._rows:
            self._rows = {key: np.zeros((self.rounds, *np.shape(x)), np.asarray(x).dtype) for key, x in row.items()}
        for key, x in row.items():
            self._rows[key][self.count % self.rounds] = x
        self.count += 1

    def sample(self, size: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """`size` steps drawn at random, and the rows that follow them."""
        known = min(self.count, self.rounds)
        envs = self._rows["actions"].shape[1]
        back = np.random.randint(2, known + 1, size)  # noqa: NPY002  (as SB3's own buffers, so that one seed sets both)
        env = np.random.randint(0, envs, size)  # noqa: NPY002
        at = (self.count - back) % self.rounds
        after = (at + 1) % self.rounds
        return tuple(  # type: ignore[return-value]
            {key: torch.as_tensor(x[rows, env]) for key, x in self._rows.items()} for rows in (at, after)
        )


class MaskedDQN(AnchoredPPO):
    """Rollouts and updates of DQN in the frame (learning loop, callbacks, checkpoints) of `MaskablePPO`.

    A step of t simulated seconds is discounted by ``gamma exp(-t / horizon_s)``. A resumed run begins with an empty replay
    memory.
    """

    def __init__(self, *args: Any, dqn: DqnConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dqn = dqn
        self.replay = Replay(max(2, dqn.memory // self.n_envs))
        self.target = copy.deepcopy(self.policy)

    def collect_rollouts(
        self, env: Any, callback: Any, rollout_buffer: Any, n_rollout_steps: int, use_masking: bool = True
    ) -> bool:
        """`n_rollout_steps` of every environment into the replay memory; false: a callback asked to stop."""
        assert isinstance(rollout_buffer, TimedRolloutBuffer)
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        for _ in range(n_rollout_steps):
            masks = np.stack(get_action_masks(env)).astype(bool)
            actions = self._explore(masks)
            after, rewards, dones, infos = env.step(actions)
            seconds = rollout_buffer.elapsed_s()
            row: dict[str, Any] = {"mask": masks, "actions": actions, "rewards": rewards, "dones": dones}
            self.replay.add(row | {"seconds": seconds.astype(np.float32)} | dict(self._last_obs))  # type: ignore[arg-type]
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            self._last_obs, self._last_episode_starts = after, dones
        callback.on_rollout_end()
        return True

    def _explore(self, masks: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The best known action (N,), or with a falling chance a legal one."""
        with torch.no_grad():
            logits, _ = logits_and_values(self.policy, obs_as_tensor(self._last_obs, self.device), masks)  # type: ignore[arg-type]
        best = np.asarray(logits.argmax(-1).cpu().numpy(), np.int64)
        left = self._current_progress_remaining
        chance = self.dqn.explore_last + (self.dqn.explore_first - self.dqn.explore_last) * left
        drawn = (np.random.random(masks.shape) * masks).argmax(1)  # noqa: NPY002
        return np.where(np.random.random(len(best)) < chance, drawn, best)  # noqa: NPY002

    def train(self) -> None:
        """As many minibatches as fit to what was gathered."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        figures: dict[str, list[float]] = defaultdict(list)
        for _ in range(max(1, self.n_steps * self.n_envs * self.n_epochs // self.batch_size)):
            self._n_updates += 1
            if self._n_updates % self.dqn.target_every == 0:
                self.target.load_state_dict(self.policy.state_dict())
            self._update(figures)
        for name, values in figures.items():
            self.logger.record(f"train/{name}", float(np.mean(values)))

    def _update(self, figures: dict[str, list[float]]) -> None:
        now, after = self.replay.sample(self.batch_size)
        blocks = list(self.observation_space.spaces)  # type: ignore[attr-defined]
        before, then = ({block: rows[block] for block in blocks} for rows in (now, after))
        with torch.no_grad():
            choice = logits_and_values(self.policy, then, after["mask"])[0].argmax(-1, keepdim=True)
            value = logits_and_values(self.target, then, after["mask"])[0].gather(1, choice).squeeze(1)
            assert isinstance(self.rollout_buffer, TimedRolloutBuffer)
            discount = self.gamma * torch.exp(-now["seconds"] / self.rollout_buffer.horizon_s) * ~now["dones"]
            goal = now["rewards"] + discount * value
        taken = logits_and_values(self.policy, before, now["mask"])[0].gather(1, now["actions"].unsqueeze(1)).squeeze(1)
        loss = functional.smooth_l1_loss(taken, goal)
        self.policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        figures["td_loss"].append(loss.item())
        figures["value"].append(float(goal.mean()))
