"""Start-time rule. Source: ServerlessLLM, Fu et al., OSDI 2024: the server with the smallest estimated start time.

Oldest first, none blocks another: for each GPU the start time is the rest of the loads under way there, the time until
there is room, and the load from the tier that holds the weights (host RAM or disk); a loaded model with a free
seat starts at once. The request takes the GPU with the smallest. Adapted: no live migration, which the environment does
not have, so where a GPU is busy the start waits for its instances to drain.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import RulePolicy, eviction_code, level_code
from .parts import WAIT, instance_of, lowest_level, seconds_until_room, slots_per_gpu
from .placement import first_step, is_ready, step_for, too_small
from .rules import rule
from .view import dispatch_index, part


class ServerlessKnobs(NamedTuple):
    level: float
    eviction: float


@part
def start_seconds(view, q, g, k):  # type: ignore[no-untyped-def]
    """Seconds until the request of slot q could start on GPU g at level k; inf: not there."""
    pair = view.pairs[q, g]
    i = instance_of(view, view.queue[q].model, g)
    if pair.fits[k] == 0.0 or (i >= 0 and (view.instances[i].level != k or view.instances[i].leaving > 0.0)):
        return np.inf
    if view.mask[dispatch_index(view, q, g, k)] == 0:
        if i >= 0:
            return pair.load_s[k] + view.instances[i].next_finish_s
        wait = seconds_until_room(view, q, g, k)
    else:
        wait = 0.0
    if i < 0:  # loads under way share the link and the disk with this one
        slots = slots_per_gpu(view)
        for other in range(g * slots, (g + 1) * slots):
            if view.instances[other].loading > 0.0:
                wait += view.instances[other].operation_left_s
    return wait + pair.load_s[k]


@rule
def serverless_llm(view, knobs):  # type: ignore[no-untyped-def]
    for q in range(view.queue.shape[0]):
        if not is_ready(view, q):
            continue
        best = np.inf
        best_g = -1
        best_k = -1
        for g in range(view.gpus.shape[0]):
            levels = view.pairs[q, g].fits.shape[0]
            resident = instance_of(view, view.queue[q].model, g) >= 0
            lowest = 0 if resident else lowest_level(view, q, g, knobs.level)
            for k in range(levels - 1, lowest - 1, -1):
                seconds = start_seconds(view, q, g, k)
                seconds += 1e-3 * view.pairs[q, g].token_s[k]  # equal start: the faster place
                if seconds < best:
                    best = seconds
                    best_g = g
                    best_k = k
        action = WAIT
        if best_g >= 0:
            action = first_step(view, q, best_g, best_k, knobs.eviction)
        elif too_small(view, q) >= 0:
            action, _ = step_for(view, q, knobs.level, knobs.eviction)
        if action > WAIT:
            return action
    return WAIT


class ServerlessLlm(RulePolicy):
    """Smallest estimated start time.

    Parameters
    ----------
    level, eviction
        As for `Mect`.
    """

    rule = serverless_llm

    def __init__(self, level: str = "whole", eviction: str = "lru") -> None:
        self.knobs = ServerlessKnobs(level_code(level), eviction_code(eviction))
