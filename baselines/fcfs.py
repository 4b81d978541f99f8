"""First come, first served with LRU eviction. Source: the default of vLLM and Ollama; llama.cpp's router evicts LRU.

Only the oldest request is looked at: if its model has a free seat it joins; if not, the model is loaded where it
fits with the most layers on the GPU, after unloading the least recently used idle models there; else all wait. The
published rule always loads fully or spills; here that is the deepest level that fits on an empty GPU.
"""

from __future__ import annotations

import numpy as np

from .base import RulePolicy
from .parts import WAIT, best_join, deepest_level, instance_of, make_room
from .rules import dispatch_index, rule


@rule
def fcfs(view, knobs):  # type: ignore[no-untyped-def]
    if view.queue[0].present == 0.0 or view.queue[0].ready == 0.0:
        return WAIT
    join = best_join(view, 0)
    if join >= 0:
        return join
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
            step = make_room(view, 0, g, deepest)
            waiting = waiting or step == WAIT
        if step > WAIT and free > most_free:
            action = step
            most_free = free
    return WAIT if waiting and most_free < 1e5 else action


class Fcfs(RulePolicy):
    """First come, first served, one queue, LRU eviction."""

    rule = fcfs
