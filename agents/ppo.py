"""MaskablePPO that stays near a reference policy at first, and says how sure it is of each kind of action."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from torch import Tensor
from torch.nn import functional

from mmsched_env.action import ActionLayout, Kind
from mmsched_env.observation import MASK_KEY

from .buffer import TimedRolloutBuffer


class AnchoredPPO(MaskablePPO):
    """PPO whose loss has ``kl_coef KL(policy || reference)`` added, with a coefficient that falls as training goes on.

    A cloned policy is good and its critic is not: without the anchor the first updates undo what was cloned.

    Parameters
    ----------
    layout
        Of the actions, for the figures by kind.
    kl_coef
        Coefficient as a function of the share of training that is left (1 to 0).
    """

    reference: MaskableActorCriticPolicy | None = None

    def __init__(self, *args: Any, layout: ActionLayout, kl_coef: Callable[[float], float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layout = layout
        self.kl_coef = kl_coef

    def _setup_model(self) -> None:
        super()._setup_model()
        if isinstance(self.rollout_buffer, TimedRolloutBuffer) and not list(
            self.policy.features_extractor.parameters()
        ):
            self.rollout_buffer.decided_on = lambda: self.policy.decided_on

    def anchor(self) -> None:
        """Make the policy as it is now the reference."""
        self.reference = type(self.policy)(
            self.observation_space, self.action_space, lambda _: 0.0, **self.policy_kwargs
        )
        assert self.reference is not None
        self.reference.load_state_dict(self.policy.state_dict())
        self.reference.set_training_mode(False)

    def train(self) -> None:
        """Update from the rollout buffer."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self.clip = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        self.pull = self.kl_coef(self._current_progress_remaining) if self.reference is not None else 0.0
        figures: dict[str, list[float]] = defaultdict(list)
        for _ in range(self.n_epochs):
            self._n_updates += 1
            if not self._epoch(figures):
                break
        for name, values in figures.items():
            self.logger.record(f"train/{name}", float(np.mean(values)))
        returns = self.rollout_buffer.returns.flatten()
        left = float(np.var(returns - self.rollout_buffer.values.flatten()))
        self.logger.record("train/explained_variance", 1 - left / max(float(np.var(returns)), 1e-12))
        self.logger.record("train/kl_coef", self.pull)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _epoch(self, figures: dict[str, list[float]]) -> bool:
        """One pass over the buffer; false: the policy has moved too far to go on."""
        for data in self.rollout_buffer.get(self.batch_size):
            loss, change = self._loss(data, figures)
            if self.target_kl is not None and change > 1.5 * self.target_kl:
                return False
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        return True

    def _loss(self, data: Any, figures: dict[str, list[float]]) -> tuple[Tensor, float]:
        """Loss of a minibatch, and the divergence from the policy that gathered it."""
        logits, values = logits_and_values(self.policy, data.observations, data.action_masks)
        logs = logits.log_softmax(-1)
        log_prob = logs.gather(-1, data.actions.long().view(-1, 1)).squeeze(-1)
        advantages = (data.advantages - data.advantages.mean()) / (data.advantages.std() + 1e-8)
        log_ratio = log_prob - data.old_log_prob
        ratio = torch.exp(log_ratio)
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        gain = torch.min(advantages * ratio, advantages * clipped).mean()
        value_loss = functional.mse_loss(values, data.returns)
        # not logs.exp(): of illegal actions it takes ten times as long (distribution.py)
        probabilities = logits.softmax(-1)
        with torch.set_grad_enabled(self.ent_coef != 0):
            uncertainty = -(probabilities * logs)
            entropy = uncertainty.sum(-1).mean()
        loss = -gain - self.ent_coef * entropy + self.vf_coef * value_loss
        if self.pull > 0:
            assert self.reference is not None
            with torch.no_grad():
                anchor = logits_and_values(self.reference, data.observations, data.action_masks)[0].log_softmax(-1)
            divergence = (probabilities * (logs - anchor)).sum(-1).mean()
            loss = loss + self.pull * divergence
            figures["kl_to_reference"].append(divergence.item())
        with torch.no_grad():
            change = float(((ratio - 1) - log_ratio).mean())
            figures["approx_kl"].append(change)
            figures["clip_fraction"].append(float((torch.abs(ratio - 1) > self.clip).float().mean()))
            figures["policy_gradient_loss"].append(-gain.item())
            figures["value_loss"].append(value_loss.item())
            figures["entropy"].append(entropy.item())
            for kind, where in kind_slices(self.layout).items():
                figures[f"entropy_{kind.name.lower()}"].append(float(uncertainty[:, where].sum(-1).mean()))
                figures[f"share_{kind.name.lower()}"].append(float(probabilities[:, where].sum(-1).mean()))
        return loss, change


def logits_and_values(policy: MaskableActorCriticPolicy, observations: Any, masks: Any) -> tuple[Tensor, Tensor]:
    """Masked logits (B, A) and values (B,), from one pass through the shared part; `observations` may be what the features
    extractor has made of them."""
    features = policy.extract_features(observations) if isinstance(observations, dict) else observations
    latent_pi, latent_vf = policy.mlp_extractor(features)
    distribution = policy._get_action_dist_from_latent(latent_pi)
    distribution.apply_masking(masks)
    return distribution.logits, policy.value_net(latent_vf).flatten()  # type: ignore[attr-defined]


def decided_logits(policy: MaskableActorCriticPolicy, seen: Mapping[str, Any]) -> Tensor:
    """Masked logits (B, A), on the CPU, for what a learner sees (learner.py), nothing to be learned from them."""
    with torch.no_grad():
        batch = {key: torch.as_tensor(values, device=policy.device) for key, values in seen.items()}
        return logits_and_values(policy, batch, batch[MASK_KEY])[0].cpu()


def kind_slices(layout: ActionLayout) -> dict[Kind, slice]:
    """Where the actions of each kind are in the flat index."""
    return {
        Kind.WAIT: slice(0, 1),
        Kind.DISPATCH: slice(1, layout.preempt_at),
        Kind.PREEMPT: slice(layout.preempt_at, layout.offload_at),
        Kind.OFFLOAD: slice(layout.offload_at, layout.size),
    }
