"""Least outstanding work with model affinity. Source: join the shortest queue; affinity as in Ray Serve's multiplexing.

Requests are looked at oldest first, none blocks another: one whose model is loaded joins the instance with the fewest
requests; one whose model is not goes to the GPU with the least predicted work, at the deepest level that fits there,
after unloading least recently used idle models.
"""

from __future__ import annotations

import numpy as np

from .base import RulePolicy
from .parts import WAIT, best_join, deepest_level, instance_of, make_room, slots_per_gpu
from .rules import dispatch_index, rule


@rule
def least_loaded(view, knobs):  # type: ignore[no-untyped-def]
    slots = slots_per_gpu(view)
    for q in range(view.queue.shape[0]):
        if view.queue[q].present == 0.0:
            break
        if view.queue[q].ready == 0.0:
            continue
        join = best_join(view, q)
        if join >= 0:
            return join
        best = -1
        least = np.inf
        for g in range(view.gpus.shape[0]):
            k = deepest_level(view, q, g)
            if k < 0 or instance_of(view, view.queue[q].model, g) >= 0:
                continue
            step = dispatch_index(view, q, g, k)
            if view.mask[step] == 0:
                step = make_room(view, q, g, k)
            if step < 0:
                continue
            load = 0.0
            for i in range(g * slots, (g + 1) * slots):
                load += view.instances[i].drain_s + view.instances[i].operation_left_s
            load += view.pairs[q, g].token_s[k]  # equal load: the faster GPU
            if load < least:
                best = step
                least = load
        if best > WAIT:
            return best
    return WAIT


class LeastLoaded(RulePolicy):
    """Shortest backlog, model affinity, LRU eviction."""

    rule = least_loaded
