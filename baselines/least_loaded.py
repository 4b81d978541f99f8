"""Least outstanding work with model affinity. Source: join the shortest queue; affinity as in Ray Serve's multiplexing.

Requests are looked at oldest first, none blocks another: one whose model is loaded joins the instance with the fewest
requests; one whose model is not goes to the GPU with the least predicted work, at the deepest level that fits there,
after unloading idle models.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import RulePolicy, eviction_code, level_code
from .parts import WAIT, backlog_seconds, best_join, deepest_level, instance_of, lowest_level, make_room
from .placement import is_ready, step_for, too_small
from .rules import rule
from .view import dispatch_index, part


class LeastLoadedKnobs(NamedTuple):
    level: float
    eviction: float


@part
def load_on_least(view, q, allowed, level, eviction):  # type: ignore[no-untyped-def]
    """First step to load the model of slot q on the GPU with the least predicted work among `allowed` [G]; WAIT: none."""
    best = WAIT
    least = np.inf
    for g in range(view.gpus.shape[0]):
        k = deepest_level(view, q, g)
        wanted = allowed[g] and k >= lowest_level(view, q, g, level)
        if k < 0 or not wanted or instance_of(view, view.queue[q].model, g) >= 0:
            continue
        step = dispatch_index(view, q, g, k)
        if view.mask[step] == 0:
            step = make_room(view, q, g, k, eviction)
        if step < 0:
            continue
        load = backlog_seconds(view, g) + view.pairs[q, g].token_s[k]  # equal load: the faster GPU
        if load < least:
            best = step
            least = load
    return best


@rule
def least_loaded(view, knobs):  # type: ignore[no-untyped-def]
    everywhere = np.ones(view.gpus.shape[0], np.bool_)
    for q in range(view.queue.shape[0]):
        if not is_ready(view, q):
            continue
        action = best_join(view, q)
        if action < 0:
            action = load_on_least(view, q, everywhere, knobs.level, knobs.eviction)
        if action == WAIT and too_small(view, q) >= 0:
            action, _ = step_for(view, q, knobs.level, knobs.eviction)
        if action > WAIT:
            return action
    return WAIT


class LeastLoaded(RulePolicy):
    """Shortest backlog, model affinity.

    Parameters
    ----------
    level, eviction
        As for `Mect`.
    """

    rule = least_loaded

    def __init__(self, level: str = "whole", eviction: str = "lru") -> None:
        self.knobs = LeastLoadedKnobs(level_code(level), eviction_code(eviction))
