"""Shortest remaining processing time by predicted length. Source: Schrage 1968; for LLMs with predictions: TRAIL, 2024.

As `Sjf`, and running work is preempted for a request that would be done sooner: the longest request of a full instance
of its model (PREEMPT, scope request), or an instance none of whose requests would end before the newcomer could, loads
and unloads both ways counted (scope instance). Adapted: TRAIL preempts single requests of one model at every token;
here at decision points, and across models at the price of a swap.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import RulePolicy, eviction_code, level_code
from .parts import (
    INSTANCE,
    REQUEST,
    WAIT,
    has_run,
    instance_of,
    may_be_preempted,
    remaining_tokens,
    room_when_left,
    service_seconds,
    slots_per_gpu,
)
from .placement import best_option, serve_in_order
from .rules import rule
from .sjf import sizes
from .view import part, preempt_index


class SrptKnobs(NamedTuple):
    factor: float
    ageing: float
    level: float
    eviction: float


@part
def preempt_longer(view, q, factor, level):  # type: ignore[no-untyped-def]
    """The PREEMPT of work that is `factor` times longer than the request of slot q; WAIT: there is none."""
    for g in range(view.gpus.shape[0]):
        i = instance_of(view, view.queue[q].model, g)
        if i >= 0 and view.instances[i].free_seats == 0.0:
            action = preempt_index(view, i, REQUEST)
            longer = view.instances[i].longest_left_tokens > factor * remaining_tokens(view.queue[q])
            if longer and view.mask[action] == 1 and has_run(view, i):
                return action
    _, g, k = best_option(view, q, level)
    if g < 0 or instance_of(view, view.queue[q].model, g) >= 0:
        return WAIT
    room, _ = room_when_left(view, g)
    slots = slots_per_gpu(view)
    for i in range(g * slots, (g + 1) * slots):
        row = view.instances[i]
        action = preempt_index(view, i, INSTANCE)
        if not may_be_preempted(view, i):
            continue
        enough = room + row.gpu_gb + row.kv_gb >= view.pairs[q, g].gpu_need_gb[k]
        swap = row.unload_s + view.pairs[q, g].load_s[k] + row.reload_s
        if enough and row.next_finish_s > factor * (swap + service_seconds(view, q, g, k)):
            return action
    return WAIT


@rule
def srpt(view, knobs):  # type: ignore[no-untyped-def]
    index = sizes(view, knobs.ageing)
    action = serve_in_order(view, index.copy(), knobs.level, knobs.eviction)
    q = int(np.argmin(index))
    if action == WAIT and index[q] < np.inf:
        return preempt_longer(view, q, knobs.factor, knobs.level)
    return action


class Srpt(RulePolicy):
    """Shortest predicted remaining request first, preempting longer ones.

    Parameters
    ----------
    factor
        What is preempted must be this many times longer.
    ageing, level, eviction
        As for `Sjf`.
    """

    rule = srpt

    def __init__(self, factor: float = 2.0, ageing: float = 0.1, level: str = "deepest", eviction: str = "lru") -> None:
        self.knobs = SrptKnobs(float(factor), float(ageing), level_code(level), eviction_code(eviction))
