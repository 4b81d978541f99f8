"""Policy improvement from rollouts: actions that did better in the same future are rated higher than those that did worse."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from torch import Tensor
from torch.nn import functional

from mmsched_env.observation import MASK_KEY

from .config import ImprovementConfig
from .ppo import decided_logits, logits_and_values
from .rollouts import Samples, joined

CAP = 5.0
"""gains are cut off at so many times their scenario's mean: a few collapses would outweigh everything else"""


def fit(
    policy: MaskableActorCriticPolicy,
    reference: MaskableActorCriticPolicy,
    found: Sequence[Samples],
    settings: ImprovementConfig,
) -> dict[str, float]:
    """Several passes over the samples of all scenarios; returns means over the last one.

    For every two candidates a, b of a state the loss is ``|gain(a) - gain(b)| log(1 + exp(logit(worse) - logit(better)))``.
    In expectation over the futures a state may have, the logit of a rises above that of the rule's action exactly if a
    is better on average, and a confident mistake is corrected as fast as a hesitant one. Added is `anchor` times the
    cross entropy with the reference's probabilities, which holds the logits of what was not tried.
    """
    samples = joined(list(found))
    gains = torch.as_tensor(np.concatenate([scaled(part.gains) for part in found]), dtype=torch.float32)
    blocks = {key: torch.as_tensor(rows) for key, rows in samples.observation.items()}
    candidates = torch.as_tensor(samples.candidates)
    gains -= settings.toll * (candidates != candidates[:, :1])
    anchors = _probabilities(reference, blocks)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
    batches = -(-len(gains) // settings.batch_size) * settings.epochs
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, batches)
    policy.set_training_mode(True)
    figures: dict[str, list[float]] = {}
    for _ in range(settings.epochs):
        figures = defaultdict(list)
        for rows in torch.split(torch.randperm(len(gains)), settings.batch_size):
            seen = {key: x[rows] for key, x in blocks.items()}
            logits, _ = logits_and_values(policy, seen, seen[MASK_KEY])
            loss = _ranking_loss(logits.gather(1, candidates[rows]), gains[rows])
            held = functional.cross_entropy(logits, anchors[rows])
            optimizer.zero_grad()
            (loss + settings.anchor * held).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            figures["ranking_loss"].append(loss.item())
            figures["anchor_cross_entropy"].append(held.item())
            figures["expected_gain"].append(_expected(logits, candidates[rows], gains[rows]))
    policy.set_training_mode(False)
    return {name: float(np.mean(values)) for name, values in figures.items()}


def scaled(gains: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gains (N, C) over the mean size of those that are not 0, cut off at `CAP`."""
    sizes = np.abs(gains[gains != 0])
    scale = float(sizes.mean()) if len(sizes) else 1.0
    return np.clip(gains / scale, -CAP, CAP)


def _ranking_loss(logits: Tensor, gains: Tensor) -> Tensor:
    """Mean over states of the sum over pairs of candidates; logits and gains (B, C)."""
    gap = gains.unsqueeze(2) - gains.unsqueeze(1)
    lead = logits.unsqueeze(2) - logits.unsqueeze(1)
    loss: Tensor = (gap.clamp(min=0.0) * functional.softplus(-lead)).sum((1, 2)).mean()
    return loss


def _expected(logits: Tensor, candidates: Tensor, gains: Tensor) -> float:
    """Mean gain of what the policy would do, as far as it was tried."""
    with torch.no_grad():
        chosen = logits.argmax(1, keepdim=True) == candidates
        first = chosen & (chosen.cumsum(1) == 1)
        return float((first * gains).sum(1).mean())


def _probabilities(policy: MaskableActorCriticPolicy, blocks: dict[str, Tensor]) -> Tensor:
    """(N, A) of a policy that does not change."""
    parts = zip(*(torch.split(x, 1024) for x in blocks.values()), strict=True)
    return torch.cat([decided_logits(policy, dict(zip(blocks, rows, strict=True))).softmax(-1) for rows in parts])
