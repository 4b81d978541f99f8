"""Class priority with preemption only where it pays k times over. Source: the preemption test of Shepherd (NSDI 2023).

Requests are served by weight over expected seconds, highest first (the c-mu index), each at its MECT option. One that
would have to wait may take the place of running work on its best GPU if its weight times the seconds it saves exceeds
`factor` times the weighted seconds the victim loses: the longest request of its model's full instance (PREEMPT,
scope request), or a whole instance that leaves enough room (scope instance). Shepherd compares batches by value; here
the value is weighted latency, and the cost of putting the victim back is known from the estimates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import RulePolicy
from .mect import admit_by_resize, best_option, first_step, worthwhile_resize
from .parts import INSTANCE, REQUEST, WAIT, instance_of, room_when_left, service_seconds, slots_per_gpu
from .rules import part, preempt_index, rule


class PreemptiveKnobs(NamedTuple):
    factor: float
    resize_gain: float
    deepest_only: float
    admit_after_s: float


@part
def displace_request(view, q, factor):  # type: ignore[no-untyped-def]
    """Preempt the longest request of a full instance of the same model for the request of slot q; WAIT: not worth it."""
    for g in range(view.gpus.shape[0]):
        i = instance_of(view, view.queue[q].model, g)
        if i < 0 or view.instances[i].free_seats > 0.0:
            continue
        row = view.instances[i]
        action = preempt_index(view, i, REQUEST)
        if view.mask[action] == 0 or row.weight_seated == 0.0:
            continue
        saved = view.queue[q].weight * row.next_finish_s
        service = service_seconds(view, q, g, int(row.level))
        if saved > factor * row.longest_weight * service:
            return action
    return WAIT


@part
def displace_instance(view, q, g, k, wait_s, factor):  # type: ignore[no-untyped-def]
    """Preempt an instance of GPU g to load the model of slot q at level k; WAIT: none is worth it."""
    if instance_of(view, view.queue[q].model, g) >= 0:
        return WAIT
    slots = slots_per_gpu(view)
    need = view.pairs[q, g].gpu_need_gb[k]
    room, _ = room_when_left(view, g)
    best = WAIT
    most = 0.0
    for i in range(g * slots, (g + 1) * slots):
        row = view.instances[i]
        action = preempt_index(view, i, INSTANCE)
        if view.mask[action] == 0 or row.num_seated == 0.0:
            continue
        if room + row.gpu_gb + row.kv_gb < need:
            continue
        busy_s = view.pairs[q, g].load_s[k] + service_seconds(view, q, g, k)
        gain = view.queue[q].weight * (wait_s - row.unload_s)
        loss = row.weight_seated * (row.unload_s + busy_s + row.reload_s)
        if gain > factor * loss and gain - loss > most:
            best = action
            most = gain - loss
    return best


@rule
def preemptive(view, knobs):  # type: ignore[no-untyped-def]
    index = np.zeros(view.queue.shape[0])
    for q in range(index.shape[0]):
        if view.queue[q].ready > 0.0:
            seconds, g, _ = best_option(view, q, knobs.deepest_only)
            index[q] = view.queue[q].weight / seconds if g >= 0 else 0.0
    for _ in range(index.shape[0]):
        q = int(np.argmax(index))
        if index[q] <= 0.0:
            break
        index[q] = 0.0
        seconds, g, k = best_option(view, q, knobs.deepest_only)
        action = first_step(view, q, g, k)
        if action == WAIT:
            action = displace_request(view, q, knobs.factor)
        if action == WAIT:
            wait_s = seconds - view.pairs[q, g].load_s[k] - service_seconds(view, q, g, k)
            action = displace_instance(view, q, g, k, wait_s, knobs.factor)
        if action > WAIT:
            return action
    for q in range(index.shape[0]):
        if view.queue[q].ready > 0.0:
            action = admit_by_resize(view, q, knobs.admit_after_s)
            if action > WAIT:
                return action
    return worthwhile_resize(view, knobs.resize_gain) if knobs.resize_gain > 0.0 else WAIT


class Preemptive(RulePolicy):
    """Weight over expected seconds, preempting where it pays.

    Parameters
    ----------
    factor
        Preempt only if the gain is this many times the loss (Shepherd's lambda); large: never.
    resize_gain, deepest_only, admit_after_s
        As for `Mect`.
    """

    rule = preemptive

    def __init__(
        self,
        factor: float = 3.0,
        resize_gain: float = 2.0,
        deepest_only: bool = True,
        admit_after_s: float = 60.0,
    ) -> None:
        self.knobs = PreemptiveKnobs(float(factor), float(resize_gain), float(deepest_only), float(admit_after_s))
