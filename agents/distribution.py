"""A masked categorical distribution in three fused operations.

sb3-contrib's takes the exponential of masked logits (-1e8), for which the CPU routine's underflow path costs over ten
times as much; on 405 actions that was a quarter of the whole update. PyTorch's `multinomial` draws an exponential variate for
each action; one uniform variate and the cumulative sum do.
"""

from __future__ import annotations

from typing import Any

import torch
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from torch import Tensor

ILLEGAL = -1e8


class MaskedCategorical(MaskableCategoricalDistribution):
    """Probabilities over (B, A) logits, zero where the mask is."""

    logits: Tensor

    def proba_distribution(self, action_logits: Tensor) -> MaskedCategorical:
        self.logits = action_logits
        return self

    def apply_masking(self, masks: Any) -> None:
        if masks is not None:
            legal = torch.as_tensor(masks, dtype=self.logits.dtype, device=self.logits.device)
            # added, not filled in: nothing to be undone in the gradient, which is 0 there by the softmax
            self.logits = self.logits.add(1 - legal.reshape(self.logits.shape), alpha=ILLEGAL)

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.logits.log_softmax(-1).gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        # where a probability is 0, so is its product with the finite ILLEGAL logit
        return -(self.logits.softmax(-1) * self.logits.log_softmax(-1)).sum(-1)

    def sample(self) -> Tensor:
        until = self.logits.softmax(-1).cumsum(-1)
        # the end of the last may be off 1 by rounding; the first end beyond the mark is never that of an illegal action
        mark = torch.rand_like(until[..., -1:]) * until[..., -1:]
        return torch.searchsorted(until, mark, right=True).squeeze(-1)

    def mode(self) -> Tensor:
        return self.logits.argmax(-1)
