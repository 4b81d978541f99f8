"""Where a request would be served soonest, the first step towards it, and serving requests in a given order."""

from __future__ import annotations

import numpy as np

from .parts import (
    INSTANCE,
    WAIT,
    departure,
    instance_of,
    is_idle,
    lowest_level,
    make_room,
    seconds_until_room,
    service_seconds,
)
from .view import array_part, dispatch_index, part, preempt_index


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
            wait = row.next_finish_s
    return wait + view.pairs[q, g].load_s[k] + service_seconds(view, q, g, k)


@part
def best_option(view, q, level):  # type: ignore[no-untyped-def]
    """(seconds, GPU, level) of the request's earliest expected completion; GPU -1: none. `level`: see `lowest_level`."""
    best = np.inf
    best_g = -1
    best_k = -1
    for g in range(view.gpus.shape[0]):
        resident = instance_of(view, view.queue[q].model, g) >= 0
        levels = view.pairs[q, g].fits.shape[0]
        for k in range(0 if resident else lowest_level(view, q, g, level), levels):
            seconds = completion_seconds(view, q, g, k)
            if seconds < best:
                best = seconds
                best_g = g
                best_k = k
    return best, best_g, best_k


@part
def first_step(view, q, g, k, eviction):  # type: ignore[no-untyped-def]
    """What to do now for the request of slot q to run on GPU g at level k; WAIT: nothing but wait."""
    action = dispatch_index(view, q, g, k)
    if view.mask[action] == 1:
        return action
    if instance_of(view, view.queue[q].model, g) >= 0:
        return WAIT
    return max(WAIT, make_room(view, q, g, k, eviction))


@part
def too_small(view, q):  # type: ignore[no-untyped-def]
    """The first instance to drain of those that keep the request out: of its model, with no memory for it at their
    level even when it is alone; -1: none, or there is another way to serve it."""
    best = -1
    soonest = np.inf
    for g in range(view.gpus.shape[0]):
        i = instance_of(view, view.queue[q].model, g)
        if i < 0:
            if lowest_level(view, q, g, 1) < view.pairs[q, g].fits.shape[0]:
                return -1
            continue
        row = view.instances[i]
        if view.pairs[q, g].fits[int(row.level)] > 0.0 or row.leaving > 0.0:
            return -1
        if departure(row) < soonest:
            best = i
            soonest = departure(row)
    return best


@part
def step_for(view, q, level, eviction):  # type: ignore[no-untyped-def]
    """(action, GPU) for the request of slot q at its best option. WAIT: it has to wait for that GPU; GPU -1: for none.

    Engines that find a loaded model's context too short for a request load the model again: so an instance that keeps
    it out (`too_small`) is unloaded once it is idle.
    """
    _, g, k = best_option(view, q, level)
    if g >= 0:
        return first_step(view, q, g, k, eviction), g
    i = too_small(view, q)
    if i < 0:
        return WAIT, -1
    unload = preempt_index(view, i, INSTANCE)
    action = unload if is_idle(view.instances[i]) and view.mask[unload] == 1 else WAIT
    return action, i // (view.instances.shape[0] // view.gpus.shape[0])


@part
def seconds_to_drain(view, q, g, k):  # type: ignore[no-untyped-def]
    """Seconds until enough has left GPU g for the request of slot q to load its model there at level k; 0: it has its
    place there already and waits for a seat."""
    if instance_of(view, view.queue[q].model, g) >= 0:
        return 0.0
    return max(1e-3, seconds_until_room(view, q, g, k))


@part
def goes_past(view, q, g, k, reserved):  # type: ignore[no-untyped-def]
    """May the request of slot q go to GPU g, which is `reserved` [G] for another in so many seconds? Only where its model
    is loaded and it is done by then (backfilling, Lifka 1995), or the GPU would never drain."""
    if reserved[g] == 0.0:
        return True
    resident = instance_of(view, view.queue[q].model, g) >= 0
    return resident and view.pairs[q, g].load_s[k] + service_seconds(view, q, g, k) <= reserved[g]


@array_part
def serve_in_order(view, index, level, eviction):  # type: ignore[no-untyped-def]
    """First step for the waiting requests in order of rising `index` [Q] (inf: not at all), each at its best option.

    One that has to wait for a GPU to drain reserves it, see `goes_past`.
    """
    reserved = np.zeros(view.gpus.shape[0])
    for _ in range(index.shape[0]):
        q = int(np.argmin(index))
        if index[q] == np.inf:
            break
        index[q] = np.inf
        _, g, k = best_option(view, q, level)
        if g >= 0 and not goes_past(view, q, g, k, reserved):
            continue
        action, too_small_on = step_for(view, q, level, eviction)
        if action > WAIT:
            return action
        if g >= 0:
            reserved[g] = max(reserved[g], seconds_to_drain(view, q, g, k))
        elif too_small_on >= 0:
            reserved[too_small_on] = max(reserved[too_small_on], 1e-3)
    return WAIT


@part
def is_ready(view, q):  # type: ignore[no-untyped-def]
    """Does slot q hold a request that can be dispatched?"""
    return view.queue[q].present > 0.0 and view.queue[q].ready > 0.0


@part
def unshared_seconds(view, q):  # type: ignore[no-untyped-def]
    """Least load and service seconds of the request of slot q over GPUs and levels, waiting not counted."""
    best = np.inf
    for g in range(view.gpus.shape[0]):
        resident = instance_of(view, view.queue[q].model, g)
        for k in range(view.pairs[q, g].fits.shape[0]):
            if view.pairs[q, g].fits[k] == 0.0 or (resident >= 0 and view.instances[resident].level != k):
                continue
            best = min(best, view.pairs[q, g].load_s[k] + service_seconds(view, q, g, k))
    return best
