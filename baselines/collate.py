"""FCFS with collation and a bounded wait. Source: llama-swap, internal/router/scheduler/fifo.go; the bound: its issue 612.

A request whose model is loaded or being loaded joins it at once, past older requests of other models, up to `in_flight`
at a time; one whose model is not waits until idle models can make room. So A B A B A B becomes A A A B B B. A request
that has waited `max_wait_s` ends that: nothing goes to the GPU it waits for any more that would not be done before it
has drained. A model that has just
been loaded stays for `min_residence_s`. Adapted: llama-swap has one set of models for the whole machine and priorities by
hand; here a GPU is chosen by expected completion, as for the other rules, and there are no priorities.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import RulePolicy, eviction_code, level_code
from .parts import INSTANCE, WAIT, best_join, instance_of
from .placement import best_option, goes_past, is_ready, seconds_to_drain, step_for
from .rules import rule
from .view import dispatch_index, part, preempt_index


class CollateKnobs(NamedTuple):
    max_wait_s: float
    min_residence_s: float
    in_flight: float
    level: float
    eviction: float


@part
def join_collated(view, q, reserved, in_flight):  # type: ignore[no-untyped-def]
    """The DISPATCH of slot q to the instance of its model with the fewest requests, under `in_flight` of them, where it
    `goes_past` those who have `reserved` [G] the GPU; WAIT: none."""
    best = WAIT
    fewest = in_flight
    for g in range(view.gpus.shape[0]):
        i = instance_of(view, view.queue[q].model, g)
        if i < 0 or view.instances[i].num_seated >= fewest:
            continue
        k = int(view.instances[i].level)
        action = dispatch_index(view, q, g, k) if goes_past(view, q, g, k, reserved) else WAIT
        if action > WAIT and view.mask[action] == 1:
            best = action
            fewest = view.instances[i].num_seated
    return best


@part
def unloads_too_soon(view, action, min_residence_s):  # type: ignore[no-untyped-def]
    """Is the action the PREEMPT of an instance that came less than `min_residence_s` ago?"""
    for i in range(view.instances.shape[0]):
        if action == preempt_index(view, i, INSTANCE):
            return view.whole[0].time_s - view.memory.since_s[i] < min_residence_s
    return False


@rule
def collate(view, knobs):  # type: ignore[no-untyped-def]
    reserved = np.zeros(view.gpus.shape[0])
    for overdue in (True, False):  # those that have waited too long come first and keep their GPU for themselves
        for q in range(view.queue.shape[0]):
            if not is_ready(view, q) or (view.queue[q].age_s > knobs.max_wait_s) != overdue:
                continue
            action = join_collated(view, q, reserved, knobs.in_flight)
            if action == WAIT and best_join(view, q) < 0:
                _, g, k = best_option(view, q, knobs.level)
                if g >= 0 and not goes_past(view, q, g, k, reserved):
                    continue
                action, _ = step_for(view, q, knobs.level, knobs.eviction)
                if unloads_too_soon(view, action, knobs.min_residence_s) and not overdue:
                    action = WAIT
                if action == WAIT and overdue and g >= 0:
                    reserved[g] = max(reserved[g], seconds_to_drain(view, q, g, k))
            if action > WAIT:
                return action
    return WAIT


class Collate(RulePolicy):
    """First come, first served, but requests for a loaded model go first, for so long.

    Parameters
    ----------
    max_wait_s
        A request that has waited so long has its GPU drained for it; inf: never, as llama-swap does it.
    min_residence_s
        A loaded model stays at least this long, except for a request that is overdue.
    in_flight
        Requests on an instance at most (llama-swap: 10).
    level, eviction
        As for `Mect`.
    """

    rule = collate

    def __init__(
        self,
        max_wait_s: float = 120.0,
        min_residence_s: float = 0.0,
        in_flight: int = 10,
        level: str = "deepest",
        eviction: str = "lru",
    ) -> None:
        codes = level_code(level), eviction_code(eviction)
        self.knobs = CollateKnobs(float(max_wait_s), float(min_residence_s), float(in_flight), *codes)
