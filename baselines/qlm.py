"""Request groups with a virtual queue per GPU. Source: QLM, Patke et al., SoCC 2024; code: QLM-project/QLM.

Waiting requests are grouped by model and class. Groups, the most urgent first (their least slack), are put at the end
of the virtual queue of the GPU where they are expected to be done soonest: what is ahead there, the swap where the
model ahead is another, and the group's own tokens at the GPU's speed. The group at the head of a queue decides what is
loaded there; what is behind waits, unless its model is loaded there already beside the head's. Adapted: QLM's integer programme
is replaced by this list scheduling in EDF order (its own fallback), recomputed at every decision, and running work is
not evicted for a violation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import RulePolicy, eviction_code, level_code
from .parts import (
    WAIT,
    deepest_level,
    departure,
    instance_of,
    is_idle,
    lowest_level,
    remaining_tokens,
    slots_per_gpu,
)
from .placement import first_step, is_ready, step_for, too_small
from .rules import rule
from .view import array_part, part


class QlmKnobs(NamedTuple):
    level: float
    eviction: float


@array_part
def group_keys(view):  # type: ignore[no-untyped-def]
    """[Q] number of the group of each waiting request (that of its first member's slot), and its least slack."""
    slots = view.queue.shape[0]
    group = np.full(slots, -1)
    slack = np.full(slots, np.inf)
    for q in range(slots):
        if not is_ready(view, q):
            continue
        group[q] = q
        for other in range(q):
            same = view.queue[other].model == view.queue[q].model
            if group[other] == other and same and view.queue[other].slo_class == view.queue[q].slo_class:
                group[q] = other
        slack[group[q]] = min(slack[group[q]], view.queue[q].e2e_slack_s)
    return group, slack


@part
def group_seconds(view, group, head, g, k):  # type: ignore[no-untyped-def]
    """Prefill and decoding of a group on GPU g at level k: one by one, and as many side by side as there are seats."""
    prefill = 0.0
    tokens = 0.0
    longest = 0.0
    count = 0.0
    for q in range(group.shape[0]):
        if group[q] == head:
            prefill += view.pairs[q, g].prefill_s[k]
            tokens += remaining_tokens(view.queue[q])
            longest = max(longest, remaining_tokens(view.queue[q]))
            count += 1.0
    return prefill + max(longest, tokens / min(count, view.memory.seats)) * view.pairs[head, g].token_s[k]


@part
def level_there(view, q, g, how):  # type: ignore[no-untyped-def]
    """Level of the model of slot q on GPU g: that of its instance, else the deepest allowed; -1: none."""
    i = instance_of(view, view.queue[q].model, g)
    if i >= 0:
        k = int(view.instances[i].level)
        return k if view.pairs[q, g].fits[k] > 0.0 and view.instances[i].leaving == 0.0 else -1
    k = deepest_level(view, q, g)
    return k if k >= lowest_level(view, q, g, how) else -1


@part
def seconds_to_clear(view, g):  # type: ignore[no-untyped-def]
    """Seconds until the last busy instance of GPU g could be gone."""
    slots = slots_per_gpu(view)
    clear = 0.0
    for i in range(g * slots, (g + 1) * slots):
        if view.instances[i].present > 0.0 and not is_idle(view.instances[i]):
            clear = max(clear, departure(view.instances[i]))
    return clear


@rule
def qlm(view, knobs):  # type: ignore[no-untyped-def]
    group, slack = group_keys(view)
    gpus = view.gpus.shape[0]
    ahead = np.zeros(gpus)  # seconds of the groups already in a virtual queue
    last = np.full(gpus, -1.0)  # model of the last of them
    for _ in range(group.shape[0]):
        head = int(np.argmin(slack))
        if slack[head] == np.inf:
            break
        slack[head] = np.inf
        best = np.inf
        best_g = -1
        for g in range(gpus):
            k = level_there(view, head, g, knobs.level)
            if k < 0:
                continue
            swap = 0.0 if last[g] == view.queue[head].model else view.pairs[head, g].load_s[k]
            if last[g] < 0.0 and view.gpus[g].free_gb < view.pairs[head, g].gpu_need_gb[k]:
                swap += seconds_to_clear(view, g)
            done = ahead[g] + swap + group_seconds(view, group, head, g, k)
            if done < best:
                best = done
                best_g = g
        if best_g < 0:
            if too_small(view, head) >= 0:
                action, _ = step_for(view, head, knobs.level, knobs.eviction)
                if action > WAIT:
                    return action
            continue
        at_head = last[best_g] < 0.0
        loaded = instance_of(view, view.queue[head].model, best_g) >= 0
        if at_head or loaded:
            k = level_there(view, head, best_g, knobs.level)
            for q in range(group.shape[0]):
                if group[q] == head and view.pairs[q, best_g].fits[k] > 0.0:
                    action = first_step(view, q, best_g, k, knobs.eviction)
                    if action > WAIT:
                        return action
        ahead[best_g] = best
        last[best_g] = view.queue[head].model
    return WAIT


class Qlm(RulePolicy):
    """Groups of requests by model and class, a virtual queue per GPU.

    Parameters
    ----------
    level, eviction
        As for `Mect`.
    """

    rule = qlm

    def __init__(self, level: str = "deepest", eviction: str = "lru") -> None:
        self.knobs = QlmKnobs(level_code(level), eviction_code(eviction))
