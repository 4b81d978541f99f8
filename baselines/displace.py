"""PREEMPT of running work where it pays: what the waiting request gains against what the work put off loses."""

from __future__ import annotations

from .adjust import patience_factor, victim_factor, wait_factor
from .parts import (
    INSTANCE,
    REQUEST,
    WAIT,
    has_run,
    instance_of,
    may_be_preempted,
    room_when_left,
    service_seconds,
    slots_per_gpu,
)
from .view import part, preempt_index


@part
def displace_request(view, q, factor, patience, weights):  # type: ignore[no-untyped-def]
    """Preempt the longest request of a full instance of the same model for the request of slot q; WAIT: not worth it.

    `patience`: see `has_run`; `weights`: see adjust.py.
    """
    patience *= patience_factor(view, q, weights)
    for g in range(view.gpus.shape[0]):
        i = instance_of(view, view.queue[q].model, g)
        if i < 0 or view.instances[i].free_seats > 0.0:
            continue
        row = view.instances[i]
        action = preempt_index(view, i, REQUEST)
        if view.mask[action] == 0 or row.weight_seated == 0.0 or not has_run(view, i, patience):
            continue
        saved = view.queue[q].weight * row.next_finish_s
        service = service_seconds(view, q, g, int(row.level))
        if saved > factor * row.longest_weight * service:
            return action
    return WAIT


@part
def displace_instance(view, q, g, k, wait_s, factor, patience, weights):  # type: ignore[no-untyped-def]
    """Preempt an instance of GPU g to load the model of slot q at level k; WAIT: none is worth it.

    `patience`: see `has_run`; `weights`: see adjust.py.
    """
    if instance_of(view, view.queue[q].model, g) >= 0:
        return WAIT
    slots = slots_per_gpu(view)
    need = view.pairs[q, g].gpu_need_gb[k]
    room, _ = room_when_left(view, g)
    patience *= patience_factor(view, q, weights)
    best = WAIT
    most = 0.0
    for i in range(g * slots, (g + 1) * slots):
        row = view.instances[i]
        action = preempt_index(view, i, INSTANCE)
        if not may_be_preempted(view, i, patience):
            continue
        if room + row.gpu_gb + row.kv_gb < need:
            continue
        busy_s = view.pairs[q, g].load_s[k] + service_seconds(view, q, g, k)
        gain = view.queue[q].weight * (wait_s * wait_factor(view, i, weights) - row.unload_s)
        loss = row.weight_seated * (row.unload_s + busy_s + row.reload_s)
        if gain > factor * victim_factor(view, i, weights) * loss and gain - loss > most:
            best = action
            most = gain - loss
    return best


@part
def displace_for_layers(view, q, g, k, factor, patience, weights):  # type: ignore[no-untyped-def]
    """Preempt the instance of the model of slot q on GPU g, whose requests keep layers off the GPU, for those that wait for
    level k to come back; WAIT: not worth it.

    `patience`: see `has_run`; `weights`: see adjust.py.
    """
    i = instance_of(view, view.queue[q].model, g)
    patience *= patience_factor(view, q, weights)
    if not may_be_preempted(view, i, patience):
        return WAIT
    row = view.instances[i]
    again_s = row.unload_s + row.reload_s
    model = view.models[int(row.model)]
    gain = model.queued_weight * (row.drain_s - again_s)
    others_s = model.queued * service_seconds(view, q, g, k)
    loss = row.weight_seated * (2.0 * again_s + others_s)
    return preempt_index(view, i, INSTANCE) if gain > factor * victim_factor(view, i, weights) * loss else WAIT
