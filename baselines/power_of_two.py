"""Power of two choices. Source: Mitzenmacher 2001; the default router of Ray Serve.

For each request two GPUs that could hold its model are drawn; it goes to the one with less predicted work: joins its
model there or has it loaded. Oldest first, none blocks another. The draw belongs to the request, so that asking again
does not draw again. Adapted: Ray Serve's router counts requests; here loading counts too, as predicted seconds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import RulePolicy, eviction_code, level_code
from .least_loaded import load_on_least
from .parts import WAIT, backlog_seconds, deepest_level, instance_of
from .placement import is_ready, step_for, too_small
from .rules import rule
from .view import array_part, dispatch_index, part


class PowerOfTwoKnobs(NamedTuple):
    choices: float
    level: float
    eviction: float


@part
def draw(view, q, number, count):  # type: ignore[no-untyped-def]
    """A number below `count`, uniform over requests and episodes, the same whenever it is drawn for a request."""
    row = view.queue[q]
    state = np.uint64(view.memory.seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(number)
    for value in (row.model, row.prompt_tokens, row.image_tokens, np.float32(64.0) * row.predicted_tokens):
        state = (state ^ np.uint64(value)) * np.uint64(0xBF58476D1CE4E5B9)
        state = state ^ (state >> np.uint64(31))
    return int(state % np.uint64(count))


@array_part
def draw_gpus(view, q, choices):  # type: ignore[no-untyped-def]
    """[G] true for the GPUs drawn for slot q among those that can hold its request."""
    left = np.zeros(view.gpus.shape[0], np.bool_)
    count = 0
    for g in range(left.shape[0]):
        left[g] = deepest_level(view, q, g) >= 0
        count += left[g]
    drawn = np.zeros(left.shape[0], np.bool_)
    for number in range(min(choices, count)):
        skip = draw(view, q, number, count - number)
        for g in range(left.shape[0]):
            if left[g]:
                if skip == 0:
                    drawn[g] = True
                    left[g] = False
                    break
                skip -= 1
    return drawn


@rule
def power_of_two(view, knobs):  # type: ignore[no-untyped-def]
    for q in range(view.queue.shape[0]):
        if not is_ready(view, q):
            continue
        drawn = draw_gpus(view, q, int(knobs.choices))
        least = np.inf
        chosen = -1
        for g in range(drawn.shape[0]):
            if drawn[g] and backlog_seconds(view, g) < least:
                chosen = g
                least = backlog_seconds(view, g)
        if chosen < 0:
            continue
        i = instance_of(view, view.queue[q].model, chosen)
        if i >= 0:
            action = dispatch_index(view, q, chosen, int(view.instances[i].level))
            if view.mask[action] == 1:
                return action
        only = np.zeros(drawn.shape[0], np.bool_)
        only[chosen] = True
        action = load_on_least(view, q, only, knobs.level, knobs.eviction)
        if action == WAIT and too_small(view, q) >= 0:
            action, _ = step_for(view, q, knobs.level, knobs.eviction)
        if action > WAIT:
            return action
    return WAIT


class PowerOfTwo(RulePolicy):
    """The less loaded of a few GPUs drawn.

    Parameters
    ----------
    choices
        GPUs drawn for a request.
    level, eviction
        As for `Mect`.
    """

    rule = power_of_two

    def __init__(self, choices: int = 2, level: str = "whole", eviction: str = "lru") -> None:
        self.knobs = PowerOfTwoKnobs(float(choices), level_code(level), eviction_code(eviction))
