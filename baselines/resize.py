"""OFFLOAD where it pays: to let a request in, and to give layers back to the GPU, before others are served or for those there."""

from __future__ import annotations

from .adjust import layers_factor
from .parts import (
    INSTANCE,
    WAIT,
    deepest_level,
    instance_of,
    room_when_idle_leave,
    room_when_left,
    service_seconds,
    slots_per_gpu,
    victim_on,
)
from .view import offload_index, part, preempt_index

NOW = -1
"""no action and no WAIT: the request is to be served"""


@part
def admission_cost(view, q, i, k):  # type: ignore[no-untyped-def]
    """Weighted seconds that those on instance i and those that wait for it lose while it is at level k for the request of slot q:
    two changes of level and the slower pace. Who comes later is not counted: they would come then, too, if it waited."""
    row = view.instances[i]
    pair = view.pairs[q, i // slots_per_gpu(view)]
    model = view.models[int(row.model)]
    stay = service_seconds(view, q, i // slots_per_gpu(view), k)
    slower = max(0.0, 1.0 - pair.token_s[int(row.level)] / pair.token_s[k])
    others = max(0.0, row.weight_seated + model.queued_weight - view.queue[q].weight)
    return others * (2.0 * row.resize_s[k] + slower * stay)


@part
def admit_by_resize(view, q, after_s, admission):  # type: ignore[no-untyped-def]
    """OFFLOAD of its model's instance to the deepest level that has memory for the request of slot q, once it has waited
    `after_s` and that has cost `admission` times what the others there will lose; WAIT: none."""
    if view.queue[q].age_s < after_s:
        return WAIT
    for g in range(view.gpus.shape[0]):
        i = instance_of(view, view.queue[q].model, g)
        if i < 0 or view.pairs[q, g].fits[int(view.instances[i].level)] > 0.0:
            continue
        k = deepest_level(view, q, g)
        waited = view.queue[q].weight * view.queue[q].age_s
        if k >= 0 and view.mask[offload_index(view, i, k)] == 1 and waited >= admission * admission_cost(view, q, i, k):
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
def more_layers_first(view, q, g, k, regain):  # type: ignore[no-untyped-def]
    """What to do rather than serve the request of slot q now at level k of its model's instance on GPU g, if that takes more than
    `regain` times what having more layers on the GPU first takes, and the level with them; NOW: serve it.

    The OFFLOAD that brings them; or WAIT, until those are done who need the memory. A request that makes the instance slow for
    longer has to answer for those that wait too.
    """
    i = instance_of(view, view.queue[q].model, g)
    if i < 0 or view.instances[i].ready == 0.0 or view.instances[i].draining > 0.0:
        return (NOW, k)
    row = view.instances[i]
    now_s = service_seconds(view, q, g, k)
    others = max(0.0, view.models[int(row.model)].queued_weight / view.queue[q].weight - 1.0)
    least = now_s + others * max(0.0, now_s - row.drain_s)
    best = NOW
    best_k = k
    room, _ = room_when_left(view, g)
    for more in range(k + 1, row.level_gb.shape[0]):
        if view.pairs[q, g].fits[more] == 0.0 or row.level_gb[more] == 0.0:
            continue
        seconds = row.resize_s[more] + service_seconds(view, q, g, more)
        action = offload_index(view, i, more)
        once_empty = row.num_seated > 0.0 and view.pairs[q, g].gpu_need_gb[more] <= room + row.gpu_gb + row.kv_gb
        if keeps_out(view, i, more) or (view.mask[action] == 0 and once_empty):
            action = WAIT
            seconds += row.drain_s
        elif view.mask[action] == 0:
            continue
        if regain * seconds < least:
            least = regain * seconds
            best = action
            best_k = more
    return (best, best_k)


@part
def worthwhile_resize(view, gain, eviction, weights):  # type: ignore[no-untyped-def]
    """The OFFLOAD whose saving for the instance's requests exceeds `gain` times its seconds by most, or the PREEMPT of
    an idle instance that is in its way (and whose reload is then part of the price); WAIT: none. Gain 0: never.

    `weights`: see adjust.py.
    """
    best = WAIT
    if gain == 0.0:
        return best
    most = 0.0
    for i in range(view.instances.shape[0]):
        row = view.instances[i]
        if row.num_running == 0.0 or row.ready == 0.0 or row.draining > 0.0:
            continue
        victim = victim_on(view, i // slots_per_gpu(view), i, eviction)
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
                away = view.instances[victim].unload_s + view.instances[victim].reload_s
                price += away * layers_factor(view, victim, weights)
            saved = row.longest_left_tokens * (row.step_s - row.level_step_s[k]) - gain * price
            if saved > most:
                best = action
                most = saved
    return best
