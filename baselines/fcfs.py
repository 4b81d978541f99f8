"""First come, first served. Source: the default of vLLM and Ollama; llama.cpp's router evicts the least recently used.

Only the oldest request is looked at: if its model has a free seat it joins; if not, the model is loaded where it
fits with the most layers on the GPU, after unloading idle models there; else all wait. The published rule always loads
fully or spills; here that is the deepest level that fits on an empty GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import RulePolicy, eviction_code
from .parts import DEEPEST, WAIT, best_join, deepest_level, instance_of, make_room
from .placement import is_ready, step_for, too_small
from .rules import rule
from .view import dispatch_index


class FcfsKnobs(NamedTuple):
    eviction: float


@rule
def fcfs(view, knobs):  # type: ignore[no-untyped-def]
    if not is_ready(view, 0):
        return WAIT
    join = best_join(view, 0)
    if join >= 0:
        return join
    if too_small(view, 0) >= 0:
        action, _ = step_for(view, 0, DEEPEST, knobs.eviction)
        return action
    deepest = -1
    for g in range(view.gpus.shape[0]):
        if instance_of(view, view.queue[0].model, g) < 0:
            deepest = max(deepest, deepest_level(view, 0, g))
    action = WAIT
    most_free = -np.inf
    waiting = False
    for g in range(view.gpus.shape[0]):
        if deepest < 0 or view.pairs[0, g].fits[deepest] == 0.0 or instance_of(view, view.queue[0].model, g) >= 0:
            continue
        step = dispatch_index(view, 0, g, deepest)
        free = view.gpus[g].free_gb
        if view.mask[step] == 1:
            free += 1e6  # a GPU with room now comes before one that must be cleared
        else:
            step = make_room(view, 0, g, deepest, knobs.eviction)
            waiting = waiting or step == WAIT
        if step > WAIT and free > most_free:
            action = step
            most_free = free
    return WAIT if waiting and most_free < 1e5 else action


class Fcfs(RulePolicy):
    """First come, first served, one queue.

    Parameters
    ----------
    eviction
        Which idle instances make room first: lru, lfu, gdsf or keep_alive (see `keep_value`).
    """

    rule = fcfs

    def __init__(self, eviction: str = "lru") -> None:
        self.knobs = FcfsKnobs(eviction_code(eviction))
