"""Weighted fair queueing by virtual token counters. Source: VTC, Sheng et al., OSDI 2024.

The client that has been served the fewest weighted tokens goes first; one that comes back from having nothing to serve
has its counter lifted to the least of those that wait, so that it cannot live on its past. Adapted: policies do not see
tenants, so a model is a client here, as where every user group has its own; and a request is charged when it is let in,
its output as predicted, since tokens as they come are not seen either (the paper's variant with length prediction).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import RulePolicy, eviction_code, level_code
from .parts import WAIT, remaining_tokens
from .placement import is_ready, serve_in_order
from .rules import rule
from .view import dispatch_index, part


class VtcKnobs(NamedTuple):
    output_weight: float
    level: float
    eviction: float


@part
def lift_returning(view):  # type: ignore[no-untyped-def]
    """Counters of clients whose queue was empty at the last look rise to the least of those whose was not."""
    memory = view.memory
    least = np.inf
    for m in range(view.models.shape[0]):
        if memory.queued[m] > 0.0 and view.models[m].queued > 0.0:
            least = min(least, memory.served[m])
    for m in range(view.models.shape[0]):
        if memory.queued[m] == 0.0 and view.models[m].queued > 0.0 and least < np.inf:
            memory.served[m] = max(memory.served[m], least)
        memory.queued[m] = view.models[m].queued


@rule
def vtc(view, knobs):  # type: ignore[no-untyped-def]
    lift_returning(view)
    index = np.full(view.queue.shape[0], np.inf)
    for q in range(index.shape[0]):
        if is_ready(view, q):
            index[q] = view.memory.served[int(view.queue[q].model)] + 1e-6 * q
    action = serve_in_order(view, index, knobs.level, knobs.eviction)
    per_request = dispatch_index(view, 1, 0, 0) - dispatch_index(view, 0, 0, 0)
    if WAIT < action <= per_request * view.queue.shape[0]:
        row = view.queue[(action - 1) // per_request]
        tokens = row.prompt_tokens + row.image_tokens if row.generated_tokens == 0.0 else 0.0
        view.memory.served[int(row.model)] += (tokens + knobs.output_weight * remaining_tokens(row)) / row.weight
    return action


class Vtc(RulePolicy):
    """The least served client first.

    Parameters
    ----------
    output_weight
        What an output token counts, in prompt tokens.
    level, eviction
        As for `Mect`.
    """

    rule = vtc

    def __init__(self, output_weight: float = 2.0, level: str = "deepest", eviction: str = "lru") -> None:
        self.knobs = VtcKnobs(float(output_weight), level_code(level), eviction_code(eviction))
