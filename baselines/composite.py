"""The strongest hand-made rule: max-wait collation, GDSF eviction, MECT with offload, preemption k times over. Source: ours.

Put together from llama-swap's collation, FaasCache's eviction, list scheduling by expected completion and Shepherd's
test. Requests are served by weight over expected seconds (c-mu), each at its earliest expected completion over (GPU, level),
where a load that puts out models in use is charged for bringing them back, one beside other loads for sharing the disk, and a
place beside others for slowing them. One that has waited `max_wait_s` goes first
and reserves its GPU. One that would have to wait may displace running work that loses `factor` times less, and an instance is
put out for those it slows on its GPU if they gain `relief` times what it loses.
OFFLOAD lets in what an instance has no memory for; others wait for the layers to come back, or have it put out. Learned weights may correct each step
of this reckoning (adjust.py); there are none by default.

The defaults are near the best of about 100 random settings on 4 to 8 traces of ten scenarios, split=train, on an earlier state of the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from mmsched_env.sim.jit import records

from .adjust import (
    is_held_back,
    joins_later,
    keep_factor,
    order_factor,
    place_factor,
    preempt_factor,
    spill_factor,
    weights_record,
)
from .base import RulePolicy, eviction_code, level_code
from .displace import displace_for_layers, displace_instance, displace_request
from .parts import (
    INSTANCE,
    WAIT,
    instance_of,
    is_idle,
    lowest_level,
    remaining_tokens,
    room_when_idle_leave,
    room_when_left,
    service_seconds,
    slots_per_gpu,
    victim_on,
)
from .placement import completion_seconds, first_step, goes_past, is_ready, seconds_to_drain, too_small
from .resize import admit_by_resize, more_layers_first, worthwhile_resize
from .rules import rule
from .suspend import worthwhile_relief, worthwhile_restart
from .view import dispatch_index, part, preempt_index


class CompositeKnobs(NamedTuple):
    max_wait_s: float
    factor: float
    patience: float
    relief: float
    sharing: float
    return_price: float
    harm: float
    loading: float
    resize_gain: float
    admission: float
    regain: float
    level: float
    eviction: float
    weights: Any


@part
def price_of(view, i, busy_s, weights):  # type: ignore[no-untyped-def]
    """Seconds other requests are expected to lose if idle instance i is unloaded: its reload, by the chance that its model is
    asked for within `busy_s`."""
    row = view.instances[i]
    wanted = 1.0 - np.exp(-view.models[int(row.model)].arrivals_per_s * busy_s)
    return wanted * (row.unload_s + row.reload_s) * keep_factor(view, i, weights)


@part
def price_of_room(view, q, g, k, weights):  # type: ignore[no-untyped-def]
    """The same for the idle models that a load on GPU g at level k puts out."""
    need = view.pairs[q, g].gpu_need_gb[k]
    room, free = room_when_left(view, g)
    if room >= need and free > 0:
        return 0.0
    slots = slots_per_gpu(view)
    price = 0.0
    size = 0.0
    for i in range(g * slots, (g + 1) * slots):
        if is_idle(view.instances[i]):
            price += price_of(view, i, view.pairs[q, g].load_s[k] + service_seconds(view, q, g, k), weights)
            size += view.instances[i].gpu_gb
    return price * min(1.0, max(0.0, need - room) / size) if size > 0.0 else 0.0


@part
def in_the_way(view, q, g, k, knobs):  # type: ignore[no-untyped-def]
    """(instance, seconds): the idle model to be unloaded so that the request of slot q can join its model's instance on GPU g
    now, and its cost then; -1: there is none, or waiting for a request there to end costs less.

    Without it one idle model can keep the batch of a busy one at a request at a time, for want of memory for KV cache.
    """
    own = instance_of(view, view.queue[q].model, g)
    if own < 0 or view.mask[dispatch_index(view, q, g, k)] == 1 or view.pairs[q, g].fits[k] == 0.0:
        return -1, np.inf
    row = view.instances[own]
    if row.level != k or row.ready == 0.0 or row.draining > 0.0 or row.free_seats == 0.0 or row.num_seated == 0.0:
        return -1, np.inf
    need = view.pairs[q, g].gpu_need_gb[k]
    leaving, _ = room_when_left(view, g)
    room, _ = room_when_idle_leave(view, g)
    if leaving >= need or room < need:
        return -1, np.inf
    victim = victim_on(view, g, own, knobs.eviction)
    if victim < 0:
        return -1, np.inf
    service = service_seconds(view, q, g, k)
    price = knobs.return_price * price_of(view, victim, service, knobs.weights)
    seconds = view.instances[victim].unload_s + service + price
    return (victim, seconds) if seconds < row.next_finish_s + service else (-1, np.inf)


@part
def step_towards(view, q, g, k, knobs):  # type: ignore[no-untyped-def]
    """What to do now for the request of slot q to run on GPU g at level k; WAIT: nothing but wait."""
    victim, _ = in_the_way(view, q, g, k, knobs)
    return preempt_index(view, victim, INSTANCE) if victim >= 0 else first_step(view, q, g, k, knobs.eviction)


@part
def loads_slowed(view, g, own, seconds):  # type: ignore[no-untyped-def]
    """(seconds, weighted seconds): what a load of `seconds` into instance `own` (-1: a new one) on GPU g and the other loads
    of its host, which share the disk with it, take longer by each other at equal shares; the second for who waits for those."""
    slots = slots_per_gpu(view)
    mine = 0.0
    theirs = 0.0
    for i in range(view.instances.shape[0]):
        row = view.instances[i]
        if i != own and row.loading > 0.0 and view.gpus[i // slots].host == view.gpus[g].host:
            both = min(seconds, row.operation_left_s)
            mine += both
            theirs += row.weight_seated * both
    return mine, theirs


@part
def harm(view, q, g, k, knobs):  # type: ignore[no-untyped-def]
    """Weighted seconds that the requests on GPU g are expected to lose by the request of slot q served there at level k:
    those of its own instance by a larger batch and its prefill, those of others by one more that is busy, those that wait for loads of its host by one more load."""
    service = service_seconds(view, q, g, k)
    own = instance_of(view, view.queue[q].model, g)
    lost = 0.0
    alone = service  # seconds for which its instance is busy because of it
    if own >= 0 and view.instances[own].num_seated > 0.0:
        row = view.instances[own]
        pair = view.pairs[q, g]
        tokens = min(remaining_tokens(view.queue[q]), row.longest_left_tokens)
        lost += row.weight_seated * (pair.prefill_s[k] + tokens * max(0.0, pair.token_s[k] - row.step_s))
        alone = max(0.0, service - row.drain_s)
    slots = slots_per_gpu(view)
    if own < 0 and knobs.loading > 0.0:
        _, theirs = loads_slowed(view, g, own, view.pairs[q, g].load_s[k])
        lost += knobs.loading * theirs
    for i in range(g * slots, (g + 1) * slots):
        if i != own:
            lost += view.instances[i].weight_seated * min(alone, view.instances[i].drain_s)
    return lost


@part
def own_cost(view, q, g, k, knobs):  # type: ignore[no-untyped-def]
    """Expected seconds of the request of slot q on GPU g at level k, the price of the room it takes added, corrected."""
    _, by_unloading = in_the_way(view, q, g, k, knobs)
    seconds = min(completion_seconds(view, q, g, k), by_unloading)
    if seconds == np.inf:
        return seconds
    i = instance_of(view, view.queue[q].model, g)
    busy = view.gpus[g].num_busy
    if i >= 0 and view.instances[i].num_seated > 0.0:
        busy -= 1.0
    seconds += knobs.sharing * busy * service_seconds(view, q, g, k)
    load_s = view.pairs[q, g].load_s[k]
    if load_s > 0.0 and knobs.loading > 0.0:
        mine, _ = loads_slowed(view, g, i, load_s)
        seconds += knobs.loading * mine
    if i < 0:
        seconds += knobs.return_price * price_of_room(view, q, g, k, knobs.weights)
    return seconds * place_factor(view, q, g, k, knobs.weights)


@part
def least_cost(view, q, knobs):  # type: ignore[no-untyped-def]
    """(own cost, GPU, level) of the best place for the request; GPU -1: none.

    Where it need not wait, it goes where it does others least harm too. But it does not wait in order to spare others:
    if all did, GPUs would stand idle before a growing queue.
    """
    best = np.inf
    best_g = -1
    best_k = -1
    best_now = False
    least = np.inf
    kind = np.inf
    kind_g = -1
    kind_k = -1
    for g in range(view.gpus.shape[0]):
        resident = instance_of(view, view.queue[q].model, g) >= 0
        levels = view.pairs[q, g].fits.shape[0]
        lowest = 0 if resident else lowest_level(view, q, g, knobs.level)
        for k in range(0 if knobs.weights.shape[0] > 0 else lowest, levels):
            dearer = spill_factor(view, q, g, k, knobs.weights) if k < lowest else 1.0
            seconds = dearer * own_cost(view, q, g, k, knobs) if dearer < np.inf else np.inf
            if seconds == np.inf:
                continue
            now = step_towards(view, q, g, k, knobs) > WAIT
            if seconds < best:
                best = seconds
                best_g = g
                best_k = k
                best_now = now
            if now:
                cost = seconds + knobs.harm * harm(view, q, g, k, knobs) / view.queue[q].weight
                if cost < least:
                    least = cost
                    kind = seconds
                    kind_g = g
                    kind_k = k
    return (kind, kind_g, kind_k) if best_now else (best, best_g, best_k)


@part
def priority(view, q, g, k, seconds, knobs):  # type: ignore[no-untyped-def]
    """Where the request of slot q comes in the order, with its best place and expected seconds; the highest first."""
    if view.queue[q].age_s > knobs.max_wait_s:
        return 1e6 + view.queue[q].age_s
    waits = completion_seconds(view, q, g, k) > view.pairs[q, g].load_s[k] + service_seconds(view, q, g, k)
    return view.queue[q].weight / seconds * order_factor(view, q, g, k, seconds, waits, knobs.weights)


@part
def joins_now(view, q, g, k, knobs):  # type: ignore[no-untyped-def]
    """Does the request of slot q, if its place is beside others of its model, take it without waiting for them?"""
    i = instance_of(view, view.queue[q].model, g)
    if knobs.weights.shape[0] == 0 or i < 0 or view.instances[i].num_seated == 0.0:
        return True
    lost = harm(view, q, g, k, knobs)
    return not joins_later(view, q, i, service_seconds(view, q, g, k), lost, knobs.weights)


@rule
def composite(view, knobs):  # type: ignore[no-untyped-def]
    suspend = worthwhile_restart(view, knobs.patience, knobs.weights)
    if suspend == WAIT:
        suspend = worthwhile_relief(view, knobs.relief, knobs.patience, knobs.weights)
    if suspend > WAIT:
        return suspend
    slots = view.queue.shape[0]
    index = np.full(slots, np.inf)
    seconds = np.zeros(slots)
    gpu = np.full(slots, -1)
    level = np.zeros(slots, np.int64)
    for q in range(slots):
        if is_ready(view, q):
            seconds[q], gpu[q], level[q] = least_cost(view, q, knobs)
            if gpu[q] >= 0:
                index[q] = -priority(view, q, gpu[q], level[q], seconds[q], knobs)
    reserved = np.zeros(view.gpus.shape[0])
    for _ in range(slots):
        q = int(np.argmin(index))
        if index[q] == np.inf:
            break
        urgency = -index[q]
        index[q] = np.inf
        g = gpu[q]
        k = level[q]
        if not goes_past(view, q, g, k, reserved) or is_held_back(view, q, g, k, urgency, knobs.weights):
            continue
        if not joins_now(view, q, g, k, knobs):
            continue
        instead, more = more_layers_first(view, q, g, k, knobs.regain)
        if instead == WAIT:
            factor = knobs.factor * preempt_factor(view, q, knobs.weights)
            instead = displace_for_layers(view, q, g, more, factor, knobs.patience, knobs.weights)
        if instead > WAIT:
            return instead
        if instead == WAIT:
            continue
        action = step_towards(view, q, g, k, knobs)
        if action == WAIT and view.mask[dispatch_index(view, q, g, k)] == 0:
            factor = knobs.factor * preempt_factor(view, q, knobs.weights)
            action = displace_request(view, q, factor, knobs.patience, knobs.weights)
            if action == WAIT:
                wait_s = completion_seconds(view, q, g, k) - view.pairs[q, g].load_s[k] - service_seconds(view, q, g, k)
                action = displace_instance(view, q, g, k, wait_s, factor, knobs.patience, knobs.weights)
        if action > WAIT:
            return action
        if view.queue[q].age_s > knobs.max_wait_s:
            reserved[g] = max(reserved[g], seconds_to_drain(view, q, g, k))
    for q in range(slots):
        if is_ready(view, q) and gpu[q] < 0 and too_small(view, q) >= 0:
            action = admit_by_resize(view, q, 0.0, knobs.admission)
            if action > WAIT:
                return action
    return worthwhile_resize(view, knobs.resize_gain, knobs.eviction, knobs.weights)


class Composite(RulePolicy):
    """The rule to beat.

    Parameters
    ----------
    max_wait_s
        A request that has waited so long goes first and has its GPU drained for it.
    factor
        PREEMPT only if the gain is this many times the loss; large: never.
    patience
        As for `Preemptive`.
    relief
        An instance is put out for those it slows on its GPU if they gain this many times what it loses; large: never.
    sharing
        Share of its service seconds that every other busy instance of the GPU is taken to add (0: none, 1: equal shares).
    return_price
        What the expected reloads of models that are put out count, in seconds of the request's own.
    harm
        What the weighted seconds that requests beside it lose count; 0: a request looks after itself alone.
    loading
        Share of the seconds by which loads of a host would delay each other if they shared one disk, for the request and those
        that wait for the others; 0: every load is expected to have disk and links to itself.
    resize_gain, level, eviction
        As for `Mect`.
    admission
        A request that its model's instance has no memory for is let in by OFFLOAD once its wait has cost this many times what
        those there and those waiting lose by it: at once if there are none. (What it has waited stands for what it would still wait, of
        which nothing is known: as one buys skis when the rent has reached the price.)
    regain
        A request joins an instance that could have more layers on the GPU only if its service there takes less than this many
        times what it takes to wait for them and be served then; large: always.
    weights
        Learned weights by name (adjust.py); those not named are 0.

    Raises
    ------
    ConfigError
        An unknown level, order of eviction or weight.
    """

    rule = composite

    def __init__(
        self,
        max_wait_s: float = 600.0,
        factor: float = 3.0,
        patience: float = 2.0,
        relief: float = 1.5,
        sharing: float = 1.0,
        return_price: float = 0.5,
        harm: float = 0.5,
        loading: float = 0.5,
        resize_gain: float = 4.0,
        admission: float = 4.0,
        regain: float = 0.1,
        level: str = "whole",
        eviction: str = "gdsf",
        weights: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        numbers = (
            max_wait_s,
            factor,
            patience,
            relief,
            sharing,
            return_price,
            harm,
            loading,
            resize_gain,
            admission,
            regain,
        )
        codes = level_code(level), eviction_code(eviction)
        self.knobs = CompositeKnobs._make([*map(float, numbers), *codes, records(weights_record(weights))])
