"""Minimum expected completion time over (request, GPU, level). Source: list scheduling on unequal machines (MCT/min-min).

For every waiting request, oldest first, the completion time of every GPU and offload level is estimated: seconds until
there is room or a seat, load, prefill, decoding at that level. The request takes its best option if that can be had
now, unloads idle models if those stand in its way, and else goes on waiting for it, so that no request is put on a
slow place when waiting is expected to be faster.

OFFLOAD is used both ways: a request that its model's instance has no memory for at its present level, even alone, is
let in by moving layers to the CPU once it has waited `admit_after_s`; an instance with layers on the CPU gets them back
once the predicted saving for its requests exceeds `resize_gain` times the seconds that takes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import RulePolicy
from .parts import (
    INSTANCE,
    WAIT,
    deepest_level,
    instance_of,
    least_recently_used,
    make_room,
    room_when_idle_leave,
    seconds_until_room,
    service_seconds,
    slots_per_gpu,
)
from .rules import dispatch_index, offload_index, part, preempt_index, rule


class MectKnobs(NamedTuple):
    resize_gain: float
    deepest_only: float
    admit_after_s: float


@part
def completion_seconds(view, q, g, k):  # type: ignore[no-untyped-def]
    """Expected seconds until the request of slot q is done if it goes to GPU g at level k; inf if it cannot."""
    if view.pairs[q, g].fits[k] == 0.0:
        return np.inf
    wait = 0.0
    if view.mask[dispatch_index(view, q, g, k)] == 0:
        i = instance_of(view, view.queue[q].model, g)
        if i < 0:
            wait = seconds_until_room(view, q, g, k)
        else:
            row = view.instances[i]
            if row.level != k or row.leaving > 0.0:
                return np.inf
            wait = row.operation_left_s + row.next_finish_s
    return wait + view.pairs[q, g].load_s[k] + service_seconds(view, q, g, k)


@part
def best_option(view, q, deepest_only):  # type: ignore[no-untyped-def]
    """(seconds, GPU, level) of the request's earliest expected completion; GPU -1: none.

    With `deepest_only` a model is loaded on a GPU at its deepest level there or not at all.
    """
    best = np.inf
    best_g = -1
    best_k = -1
    for g in range(view.gpus.shape[0]):
        resident = instance_of(view, view.queue[q].model, g) >= 0
        lowest = deepest_level(view, q, g) if deepest_only > 0.0 and not resident else 0
        for k in range(max(0, lowest), view.pairs[q, g].fits.shape[0]):
            seconds = completion_seconds(view, q, g, k)
            if seconds < best:
                best = seconds
                best_g = g
                best_k = k
    return best, best_g, best_k


@part
def first_step(view, q, g, k):  # type: ignore[no-untyped-def]
    """What to do now for the request of slot q to run on GPU g at level k; WAIT: nothing but wait."""
    action = dispatch_index(view, q, g, k)
    if view.mask[action] == 1:
        return action
    if instance_of(view, view.queue[q].model, g) >= 0:
        return WAIT
    return max(WAIT, make_room(view, q, g, k))


@part
def admit_by_resize(view, q, after_s):  # type: ignore[no-untyped-def]
    """OFFLOAD of its model's instance to the deepest level that has memory for the request of slot q; WAIT: none."""
    if view.queue[q].age_s < after_s:
        return WAIT
    for g in range(view.gpus.shape[0]):
        i = instance_of(view, view.queue[q].model, g)
        if i < 0 or view.pairs[q, g].fits[int(view.instances[i].level)] > 0.0:
            continue
        k = deepest_level(view, q, g)
        if k >= 0 and view.mask[offload_index(view, i, k)] == 1:
            return offload_index(view, i, k)
    return WAIT


@part
def keeps_out(view, i, k):  # type: ignore[no-untyped-def]
    """Would instance i at level k have no memory for a waiting request of its model that it has memory for now?"""
    row = view.instances[i]
    for q in range(view.queue.shape[0]):
        if view.queue[q].present > 0.0 and view.queue[q].model == row.model:
            fits = view.pairs[q, i // slots_per_gpu(view)].fits
            if fits[int(row.level)] > 0.0 and fits[k] == 0.0:
                return True
    return False


@part
def worthwhile_resize(view, gain):  # type: ignore[no-untyped-def]
    """The OFFLOAD whose saving for the instance's requests exceeds `gain` times its seconds by most, or the PREEMPT of
    an idle instance that is in its way (and whose reload is then part of the price); WAIT: none."""
    best = WAIT
    most = 0.0
    for i in range(view.instances.shape[0]):
        row = view.instances[i]
        if row.num_running == 0.0 or row.ready == 0.0 or row.draining > 0.0:
            continue
        victim = least_recently_used(view, i // slots_per_gpu(view), i)
        for k in range(row.level_step_s.shape[0]):
            if k == row.level or row.level_gb[k] == 0.0 or keeps_out(view, i, k):
                continue
            action = offload_index(view, i, k)
            price = row.resize_s[k]
            if view.mask[action] == 0:
                if victim < 0 or row.level_gb[k] < row.gpu_gb + row.kv_gb:
                    continue
                room, _ = room_when_idle_leave(view, i // slots_per_gpu(view))
                if row.level_gb[k] - row.gpu_gb - row.kv_gb > room:
                    continue
                action = preempt_index(view, victim, INSTANCE)
                price += view.instances[victim].unload_s + view.instances[victim].reload_s
            saved = row.longest_left_tokens * (row.step_s - row.level_step_s[k]) - gain * price
            if saved > most:
                best = action
                most = saved
    return best


@rule
def mect(view, knobs):  # type: ignore[no-untyped-def]
    for q in range(view.queue.shape[0]):
        if view.queue[q].present == 0.0:
            break
        if view.queue[q].ready == 0.0:
            continue
        _, g, k = best_option(view, q, knobs.deepest_only)
        if g >= 0:
            action = first_step(view, q, g, k)
            if action > WAIT:
                return action
        action = admit_by_resize(view, q, knobs.admit_after_s)
        if action > WAIT:
            return action
    return worthwhile_resize(view, knobs.resize_gain) if knobs.resize_gain > 0.0 else WAIT


class Mect(RulePolicy):
    """Minimum expected completion time.

    Parameters
    ----------
    resize_gain
        OFFLOAD only if it saves more than this many times the seconds it costs; 0: never.
    deepest_only
        Load a model only at the deepest level its GPU could hold: never squeeze it in beside another.
    admit_after_s
        A request its model's instance can never hold waits this long before the instance is made to (OFFLOAD); inf:
        for ever.
    """

    rule = mect

    def __init__(self, resize_gain: float = 2.0, deepest_only: bool = True, admit_after_s: float = 60.0) -> None:
        self.knobs = MectKnobs(float(resize_gain), float(deepest_only), float(admit_after_s))
