"""Pieces rules are put together from: where a model fits best, which instance to put out, how long until there is room."""

from __future__ import annotations

import numpy as np

from .view import dispatch_index, part, preempt_index

WAIT = 0
INSTANCE, REQUEST = 0, 1
"""scopes of PREEMPT"""
EVICTIONS = ("lru", "lfu", "gdsf", "keep_alive")
"""orders in which idle instances are unloaded to make room, see `keep_value`"""
LRU, LFU, GDSF, KEEP_ALIVE, BELADY = range(5)
LEVELS = ("whole", "deepest", "cheapest")
"""ways to choose the offload level of a load, see `lowest_level`"""
WHOLE, DEEPEST, CHEAPEST = range(3)


@part
def slots_per_gpu(view):  # type: ignore[no-untyped-def]
    return view.instances.shape[0] // view.gpus.shape[0]


@part
def deepest_level(view, q, g):  # type: ignore[no-untyped-def]
    """Highest level at which the request of slot q fits on GPU g with nothing else there; -1: none."""
    best = -1
    for k in range(view.pairs[q, g].fits.shape[0]):
        if view.pairs[q, g].fits[k] > 0.0:
            best = k
    return best


@part
def fits_whole_somewhere(view, q):  # type: ignore[no-untyped-def]
    """Is there a GPU that, empty, holds all layers of the model and the request?"""
    for g in range(view.gpus.shape[0]):
        fits = view.pairs[q, g].fits
        if fits[fits.shape[0] - 1] > 0.0:
            return True
    return False


@part
def lowest_level(view, q, g, how):  # type: ignore[no-untyped-def]
    """Lowest level at which the model of slot q may be loaded on GPU g; the number of levels: none.

    whole: all layers, on GPUs that hold them; a model no GPU holds whole spills as little as it can (Ollama). deepest:
    the highest level the empty GPU holds. cheapest: any; the one of the earliest expected completion is to be taken.
    """
    levels = view.pairs[q, g].fits.shape[0]
    if how == CHEAPEST:
        return 0
    deepest = deepest_level(view, q, g)
    if deepest < 0 or (how == WHOLE and deepest < levels - 1 and fits_whole_somewhere(view, q)):
        return levels
    return deepest


@part
def instance_of(view, model, g):  # type: ignore[no-untyped-def]
    """The model's instance on GPU g, in whatever state; -1: none."""
    slots = slots_per_gpu(view)
    for i in range(g * slots, (g + 1) * slots):
        if view.instances[i].present > 0.0 and view.instances[i].model == model:
            return i
    return -1


@part
def is_idle(row):  # type: ignore[no-untyped-def]
    """Loaded, serving nobody, and free to be unloaded."""
    return row.ready > 0.0 and row.num_seated == 0.0 and row.draining == 0.0 and row.saving == 0.0


@part
def keep_value(view, i, eviction):  # type: ignore[no-untyped-def]
    """What keeping the idle instance i is worth: that of the least value is unloaded first (equal: lowest index).

    lru: least recently used (llama.cpp's router, Ray Serve, ModelMesh). lfu: fewest requests since it was loaded, of
    these the least recently used. gdsf: greedy-dual-size-frequency (FaasCache, ASPLOS 2021), uses * reload seconds / GB
    over a clock of the GPU that ages what is not used. keep_alive: Ollama's order; as all models have the same
    keep-alive here, that of their names. belady: that whose model is asked for latest; needs the future.
    """
    row = view.instances[i]
    if eviction == LFU:
        return row.uses - 1e-9 * row.idle_s
    if eviction == GDSF:
        return view.memory.priority[i]
    if eviction == KEEP_ALIVE:
        return row.model
    if eviction == BELADY:
        return -view.memory.next_use_s[int(row.model)]
    return -row.idle_s


@part
def victim_on(view, g, spare, eviction):  # type: ignore[no-untyped-def]
    """Idle instance of GPU g that is to be unloaded first, other than `spare`; -1: none."""
    slots = slots_per_gpu(view)
    victim = -1
    least = np.inf
    for i in range(g * slots, (g + 1) * slots):
        if i != spare and is_idle(view.instances[i]) and view.mask[preempt_index(view, i, INSTANCE)] == 1:
            value = keep_value(view, i, eviction)
            if victim < 0 or value < least:
                victim = i
                least = value
    return victim


PATIENCE = 2.0
"""times the seconds of bringing an instance back that it is left to run"""
HURRIED = 10.0
"""times in a row that a model may be put out sooner than brought back"""


@part
def has_run(view, i, patience=PATIENCE):  # type: ignore[no-untyped-def]
    """Has instance i had its requests for `patience` times the seconds that bringing it back takes?

    Else none is taken off, or two requests that each come first by some rule could put each other out for ever. A rule of
    little patience is held to a patience of 1, loading not counted, where a model has been put out `HURRIED` times in a row before that.
    """
    row = view.instances[i]
    if view.memory.run[i] == 1 and view.memory.hurried[int(row.model)] >= HURRIED:
        return False
    return view.whole[0].time_s - view.memory.used_s[i] >= patience * (row.unload_s + row.reload_s)


@part
def may_be_preempted(view, i, patience=PATIENCE):  # type: ignore[no-untyped-def]
    """Is instance i busy, and has it run for long enough?"""
    busy = view.instances[i].num_seated > 0.0 and view.mask[preempt_index(view, i, INSTANCE)] == 1
    return busy and has_run(view, i, patience)


@part
def room_when_idle_leave(view, g):  # type: ignore[no-untyped-def]
    """(GB, slots) of GPU g if every idle or leaving instance were gone."""
    slots = slots_per_gpu(view)
    room = view.gpus[g].free_gb
    free = view.gpus[g].free_slots
    for i in range(g * slots, (g + 1) * slots):
        row = view.instances[i]
        if row.leaving > 0.0 or is_idle(row):
            room += row.gpu_gb + row.kv_gb
            free += 1
    return room, free


@part
def room_when_left(view, g):  # type: ignore[no-untyped-def]
    """(GB, slots) of GPU g once the instances that are being unloaded are gone."""
    slots = slots_per_gpu(view)
    room = view.gpus[g].free_gb
    free = view.gpus[g].free_slots
    for i in range(g * slots, (g + 1) * slots):
        if view.instances[i].leaving > 0.0:
            room += view.instances[i].gpu_gb + view.instances[i].kv_gb
            free += 1
    return room, free


@part
def seconds_until_room(view, q, g, k):  # type: ignore[no-untyped-def]
    """Seconds until GPU g has room to load the request's model at level k: idle instances are put out least recently
    used first, then the busy ones in the order in which they will drain; inf if even that is not enough."""
    slots = slots_per_gpu(view)
    need = view.pairs[q, g].gpu_need_gb[k]
    room = view.gpus[g].free_gb
    free = view.gpus[g].free_slots
    if room >= need and free > 0:
        return 0.0
    waited = 0.0
    last = -1.0
    for _ in range(slots):  # one more instance gone each round, the soonest of those not yet counted
        soonest = np.inf
        gone = -1
        for i in range(g * slots, (g + 1) * slots):
            row = view.instances[i]
            if row.present == 0.0:
                continue
            until = departure(row) + 1e-6 * (i + 1)  # distinct, so that none is counted twice
            if until > last and until < soonest:
                soonest = until
                gone = i
        if gone < 0:
            break
        last = soonest
        waited = soonest
        room += view.instances[gone].gpu_gb + view.instances[gone].kv_gb
        free += 1
        if room >= need and free > 0:
            return waited
    return np.inf


@part
def departure(row):  # type: ignore[no-untyped-def]
    """Seconds until an instance could be gone without preempting anything."""
    if row.leaving > 0.0:
        return row.operation_left_s
    if row.ready > 0.0 and row.num_seated == 0.0:
        return row.unload_s
    return row.operation_left_s + row.drain_s + row.unload_s


@part
def make_room(view, q, g, k, eviction):  # type: ignore[no-untyped-def]
    """First step towards loading the request's model on GPU g at level k by unloading idle instances.

    Returns the PREEMPT action, WAIT if enough is leaving already, or -1 if idle instances alone do not make room.
    """
    need = view.pairs[q, g].gpu_need_gb[k]
    room, free = room_when_left(view, g)
    if room >= need and free > 0:
        return WAIT
    room, free = room_when_idle_leave(view, g)
    if room < need or free <= 0:
        return -1
    victim = victim_on(view, g, -1, eviction)
    return preempt_index(view, victim, INSTANCE) if victim >= 0 else WAIT


@part
def remaining_tokens(row):  # type: ignore[no-untyped-def]
    """Output tokens the request of a queue slot still needs, as predicted."""
    return max(1.0, row.predicted_tokens - row.generated_tokens)


@part
def service_seconds(view, q, g, k):  # type: ignore[no-untyped-def]
    """Prefill and decoding of the request of slot q on GPU g at level k."""
    pair = view.pairs[q, g]
    return pair.prefill_s[k] + remaining_tokens(view.queue[q]) * pair.token_s[k]


@part
def best_join(view, q):  # type: ignore[no-untyped-def]
    """The legal DISPATCH of slot q to an instance of its model with the fewest requests; -1: none."""
    best = -1
    fewest = np.inf
    for g in range(view.gpus.shape[0]):
        i = instance_of(view, view.queue[q].model, g)
        if i < 0:
            continue
        action = dispatch_index(view, q, g, int(view.instances[i].level))
        if view.mask[action] == 1 and view.instances[i].num_seated < fewest:
            best = action
            fewest = view.instances[i].num_seated
    return best


@part
def way_out(view):  # type: ignore[no-untyped-def]
    """An action for when a rule would wait but nothing is under way that could end the wait: unload the idle instance
    used longest ago (RAM on the host may be what is short), else whatever is legal."""
    victim = -1
    for g in range(view.gpus.shape[0]):
        i = victim_on(view, g, -1, LRU)
        if i >= 0 and (victim < 0 or view.instances[i].idle_s > view.instances[victim].idle_s):
            victim = i
    if victim >= 0:
        return preempt_index(view, victim, INSTANCE)
    return np.argmax(view.mask)


@part
def backlog_seconds(view, g):  # type: ignore[no-untyped-def]
    """Predicted seconds of work on GPU g, instance by instance."""
    slots = slots_per_gpu(view)
    load = 0.0
    for i in range(g * slots, (g + 1) * slots):
        load += view.instances[i].drain_s + view.instances[i].operation_left_s
    return load
