"""Learned corrections of the composite rule's reckoning: factors exp(sum of weight * feature), 1 where nothing was learned.

`mmsched evolve` (baselines/evolve.py) finds the weights. Features are logarithms, shifted so that usual situations lie near
0: a factor is a product of powers of what it is made of. Requests that wait are counted for each GPU, those for a model and its
rate for each of its copies, so that weights learned on one cluster mean the same on a larger one. A rule without learned
weights passes an empty array.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import ConfigError, unknown_name

from .parts import instance_of, service_seconds, slots_per_gpu
from .view import part

WEIGHTS = {
    # a request's place in the order
    "order_load": "its model has to be loaded",
    "order_load_others": "the same, times others that wait for the model",
    "order_others": "the model is there, times others that wait for it",
    "order_load_s": "seconds of the load",
    "order_service_s": "its service seconds",
    "order_age_s": "seconds since its arrival",
    "order_saved": "it was preempted and its KV cache kept",
    "order_load_rate": "a load, times how often the model is asked for",
    "order_load_queue": "a load, times how many requests wait",
    "order_expected_s": "its expected seconds, waiting and prices included",
    "order_class": "its class weight",
    "order_load_copies": "a load though the model is on another GPU",
    "order_wait": "it would have to wait there",
    # the cost of a place (GPU, level)
    "place_spill": "share of the levels below the whole model on the GPU",
    "place_load_s": "seconds of the load",
    "place_load_copies": "a load though the model is on another GPU",
    "place_load_others": "a load, times others that wait for the model",
    "place_busy": "busy instances of the GPU",
    "place_spill_queue": "spill, times how many requests wait",
    "place_seated": "requests of the model there",
    "place_load_rate": "a load, times how often the model is asked for",
    "place_service_s": "service seconds there",
    # how soon a model is loaded with fewer layers on the GPU than the rule would have
    "spill": "always; e**5 for a weight of 1",
    "spill_share": "share of the levels below the whole model on the GPU",
    "spill_service_s": "service seconds there",
    "spill_queue": "how many requests wait",
    "spill_others": "others that wait for the model",
    "spill_rate": "how often the model is asked for",
    # how much more than its loss a preemption has to gain
    "preempt": "always",
    "preempt_others": "others that wait for the model of the request that gains",
    "preempt_queue": "how many requests wait",
    "preempt_again": "times the request was preempted itself",
    "preempt_age_s": "seconds since its arrival",
    "victim_queued": "requests that wait for the instance's model",
    "victim_seated": "its requests",
    "victim_copies": "its model is on another GPU too",
    "victim_drain_s": "seconds until it is empty by itself",
    # how much longer than its requests take it would be waited for, others joining them
    "victim_wait": "always",
    "victim_wait_rate": "how often its model is asked for",
    "victim_wait_seated": "its requests",
    # how long it is left to run before that
    "victim_patience": "always",
    "victim_patience_others": "others that wait for the model of the request that gains",
    "victim_patience_queue": "how many requests wait",
    # the price of putting out an idle model
    "keep": "always",
    "keep_queued": "it is waited for",
    "keep_rate": "how often it is asked for",
    "keep_copies": "it is on another GPU too",
    "keep_idle_s": "seconds since its last use",
    "keep_reload_s": "seconds to load it again",
    # the same where it makes room for more layers of a busy one
    "layers": "always",
    "layers_rate": "how often it is asked for",
    # how soon a load is not worth while now, others being served
    "hold": "always; e**5 for a weight of 1",
    "hold_queue": "how many requests wait",
    "hold_others": "others that wait for the model",
    "hold_rate": "how often it is asked for",
    # how soon a request waits rather than join others whom it would slow down
    "join": "always; e**5 for a weight of 1",
    "join_queue": "how many requests wait",
    "join_away": "requests that wait for models that are not loaded",
    "join_rate": "how often its model is asked for",
    "join_prefill_s": "seconds of its prefill",
    # how soon an instance with layers on the CPU is put out, with its requests, to be loaded with all of them again
    "restart": "always; e**5 for a weight of 1",
    "restart_queue": "how many requests wait",
    "restart_seated": "its requests",
    # how much more those beside an instance have to gain for it to be put out
    "relieve": "always",
    "relieve_queue": "how many requests wait",
    "relieve_seated": "its requests",
    "relieve_drain_s": "seconds until it is empty by itself",
}
"""name -> what the weight is multiplied by: the first part says which factor, the rest the feature"""

UNITS = 8
"""hidden units of a small network that adds to a request's place in the order what no sum of features says"""
UNIT = (
    "bias",
    "order_load",
    "order_load_others",
    "order_others",
    "order_load_s",
    "order_service_s",
    "order_age_s",
    "order_load_rate",
    "order_load_queue",
    "order_expected_s",
    "output",
)
"""numbers of a unit: weights of the features named so above, here others and queue with or without a load, and its output's"""
NETWORK = "order_units"
NAMES = (*WEIGHTS, NETWORK)
_DTYPE = np.dtype([*((name, "f8") for name in WEIGHTS), (NETWORK, "f8", (UNITS, len(UNIT)))])
LIMIT = 6.0
"""no factor is above e**6 or below e**-6"""
UNJOINED = 3.0
"""logarithm of what others lose over what the request itself takes from which learned weights lower the bar above which it waits"""
UNSPILLED = 4.0
"""logarithm of what fewer layers on the GPU than the rule would have cost, over the seconds there, before learned weights lower it"""
UNSUSPENDED = 4.0
"""logarithm of what putting out a running instance saves over what it takes"""
UNHELD = -7.0
"""logarithm of weight over expected seconds from which learned weights raise the bar below which a load is held back"""


def weights_record(weights: Mapping[str, Any]) -> NDArray[np.void]:
    """What rules take: a record of all weights, those not given 0; nothing given: none, (0,).

    Parameters
    ----------
    weights
        By the names of `WEIGHTS`, numbers; by that of `NETWORK`, rows of `UNIT`, `UNITS` of them.

    Raises
    ------
    ConfigError
        No such weight, or one that is no finite number.
    """
    record = np.zeros(1, _DTYPE)
    for name, value in weights.items():
        if name not in NAMES:
            raise unknown_name("learned weight", str(name), NAMES)
        try:
            record[name][0] = value
        except (TypeError, ValueError):
            raise ConfigError(f"learned weight {name} is {value!r}; accepted: {_accepted(name)}") from None
        if not np.isfinite(record[name]).all() or np.shape(value) != record[name][0].shape:
            raise ConfigError(f"learned weight {name} is {value!r}; accepted: {_accepted(name)}")
    return record[: bool(weights)]


def _accepted(name: str) -> str:
    return f"{UNITS} lists of {len(UNIT)} finite numbers" if name == NETWORK else "a finite number"


NOTHING_LEARNED = weights_record({})


@part
def log1p(x):  # type: ignore[no-untyped-def]
    """Logarithm of 1 + x; the library's own, exact for the smallest x, takes several times as long."""
    return np.log(1.0 + x)


@part
def factor(exponent):  # type: ignore[no-untyped-def]
    return np.exp(max(-LIMIT, min(LIMIT, exponent)))


@part
def copies_of(model):  # type: ignore[no-untyped-def]
    return max(1.0, model.num_instances)


@part
def others_waiting(view, q):  # type: ignore[no-untyped-def]
    """Weight of the requests that wait for the model of slot q beside it, for each copy, logarithmic."""
    model = view.models[int(view.queue[q].model)]
    return log1p(max(0.0, model.queued_weight / view.queue[q].weight - 1.0) / copies_of(model))


@part
def queue_size(view):  # type: ignore[no-untyped-def]
    """Requests that wait, for each GPU, logarithmic."""
    return log1p(view.whole[0].queue_length / view.memory.gpus) - 2.0


@part
def asked_for(model):  # type: ignore[no-untyped-def]
    """Requests a minute for each copy, logarithmic."""
    return log1p(60.0 * model.arrivals_per_s / copies_of(model)) - 1.0


@part
def order_factor(view, q, g, k, expected_s, waits, weights):  # type: ignore[no-untyped-def]
    """By how much sooner the request of slot q is to be served, at GPU g and level k."""
    if weights.shape[0] == 0:
        return 1.0
    w = weights[0]
    row = view.queue[q]
    model = view.models[int(row.model)]
    load = 1.0 if view.pairs[q, g].load_s[k] > 0.0 else 0.0
    others = others_waiting(view, q)
    size = queue_size(view)
    load_s = load * (log1p(view.pairs[q, g].load_s[k]) - 1.0)
    service_s = np.log(service_seconds(view, q, g, k)) - 2.0
    age_s = log1p(row.age_s) - 2.0
    rate = load * asked_for(model)
    expected = np.log(expected_s) - 2.0
    u = w.order_load * load + w.order_load_others * load * others + w.order_others * (1.0 - load) * others
    u += w.order_load_s * load_s + w.order_service_s * service_s + w.order_age_s * age_s
    u += w.order_load_rate * rate + w.order_load_queue * load * size + w.order_expected_s * expected
    u += w.order_saved * (row.saved_tokens > 0.0) + w.order_class * np.log(row.weight)
    u += w.order_load_copies * load * (model.num_instances > 0.0) + w.order_wait * waits
    for h in range(UNITS):
        n = w.order_units[h]
        z = n[0] + n[1] * load + n[2] * load * others + n[3] * others + n[4] * load_s + n[5] * service_s
        z += n[6] * age_s + n[7] * rate + n[8] * size + n[9] * expected
        u += n[10] * np.tanh(z)
    return factor(u)


@part
def place_factor(view, q, g, k, weights):  # type: ignore[no-untyped-def]
    """By how much dearer GPU g at level k is for the request of slot q."""
    if weights.shape[0] == 0:
        return 1.0
    w = weights[0]
    model = view.models[int(view.queue[q].model)]
    load_s = view.pairs[q, g].load_s[k]
    spill = 1.0 - k / max(1.0, view.pairs[q, g].load_s.shape[0] - 1.0)
    u = w.place_spill * spill + w.place_spill_queue * spill * queue_size(view)
    u += w.place_busy * log1p(view.gpus[g].num_busy)
    u += w.place_service_s * (np.log(service_seconds(view, q, g, k)) - 2.0)
    i = instance_of(view, view.queue[q].model, g)
    if i >= 0:
        u += w.place_seated * log1p(view.instances[i].num_seated)
    if load_s > 0.0:
        u += w.place_load_s * (log1p(load_s) - 1.0) + w.place_load_copies * (model.num_instances > 0.0)
        u += w.place_load_others * others_waiting(view, q) + w.place_load_rate * asked_for(model)
    return factor(u)


@part
def spill_factor(view, q, g, k, weights):  # type: ignore[no-untyped-def]
    """By how much dearer level k of GPU g is for the request of slot q, below those at which the rule loads; inf: not to be had."""
    if weights.shape[0] == 0:
        return np.inf
    w = weights[0]
    pair = view.pairs[q, g]
    if pair.fits[k] == 0.0:
        return np.inf
    u = (
        5.0 * w.spill
        + w.spill_share * (1.0 - k / max(1.0, pair.load_s.shape[0] - 1.0))
        + w.spill_queue * queue_size(view)
    )
    u += w.spill_others * others_waiting(view, q) + w.spill_rate * asked_for(view.models[int(view.queue[q].model)])
    u += w.spill_service_s * (np.log(service_seconds(view, q, g, k)) - 2.0)
    return factor(UNSPILLED - u) if u > 0.0 else np.inf


@part
def preempt_factor(view, q, weights):  # type: ignore[no-untyped-def]
    """By how much more a preemption for the request of slot q has to gain."""
    if weights.shape[0] == 0:
        return 1.0
    w = weights[0]
    row = view.queue[q]
    u = w.preempt + w.preempt_others * others_waiting(view, q) + w.preempt_queue * queue_size(view)
    return factor(u + w.preempt_again * min(row.num_preemptions, 3.0) + w.preempt_age_s * (log1p(row.age_s) - 2.0))


@part
def victim_factor(view, i, weights):  # type: ignore[no-untyped-def]
    """By how much more one of instance i has to gain."""
    if weights.shape[0] == 0:
        return 1.0
    w = weights[0]
    row = view.instances[i]
    model = view.models[int(row.model)]
    u = w.victim_queued * log1p(model.queued_weight / copies_of(model)) + w.victim_seated * log1p(row.num_seated)
    return factor(u + w.victim_copies * (model.num_instances > 1.0) + w.victim_drain_s * (log1p(row.drain_s) - 2.0))


@part
def wait_factor(view, i, weights):  # type: ignore[no-untyped-def]
    """By how much longer than its requests take instance i would be waited for."""
    if weights.shape[0] == 0:
        return 1.0
    w = weights[0]
    row = view.instances[i]
    u = w.victim_wait + w.victim_wait_rate * asked_for(view.models[int(row.model)])
    return factor(u + w.victim_wait_seated * log1p(row.num_seated))


@part
def patience_factor(view, q, weights):  # type: ignore[no-untyped-def]
    """By how much longer an instance is left to run before it is put off for the request of slot q."""
    if weights.shape[0] == 0:
        return 1.0
    w = weights[0]
    u = w.victim_patience + w.victim_patience_others * others_waiting(view, q)
    return factor(u + w.victim_patience_queue * queue_size(view))


@part
def keep_factor(view, i, weights):  # type: ignore[no-untyped-def]
    """By how much dearer it is to put out idle instance i."""
    if weights.shape[0] == 0:
        return 1.0
    w = weights[0]
    row = view.instances[i]
    model = view.models[int(row.model)]
    u = w.keep + w.keep_queued * (model.queued > 0.0) + w.keep_rate * asked_for(model)
    u += w.keep_copies * (model.num_instances > 1.0) + w.keep_idle_s * (log1p(row.idle_s) - 2.0)
    return factor(u + w.keep_reload_s * (log1p(row.reload_s) - 1.0))


@part
def layers_factor(view, i, weights):  # type: ignore[no-untyped-def]
    """By how much dearer it is to put out idle instance i for more layers of a busy one."""
    if weights.shape[0] == 0:
        return 1.0
    w = weights[0]
    return factor(w.layers + w.layers_rate * asked_for(view.models[int(view.instances[i].model)]))


@part
def is_held_back(view, q, g, k, priority, weights):  # type: ignore[no-untyped-def]
    """Is a load for the request of slot q, of this weight over expected seconds, to wait while others are served?"""
    if weights.shape[0] == 0 or view.pairs[q, g].load_s[k] == 0.0:
        return False
    if view.whole[0].num_in_system == view.whole[0].queue_length:
        return False
    w = weights[0]
    u = 5.0 * w.hold + 2.0 * w.hold_queue * queue_size(view) + w.hold_others * others_waiting(view, q)
    u += 2.0 * w.hold_rate * asked_for(view.models[int(view.queue[q].model)])
    return u > 0.0 and np.log(priority) < UNHELD + u


@part
def joins_later(view, q, i, service_s, lost, weights):  # type: ignore[no-untyped-def]
    """Is the request of slot q, which takes `service_s`, to wait rather than join those on instance i, who would lose `lost`
    weighted seconds?"""
    w = weights[0]
    row = view.queue[q]
    away = 0.0
    for m in range(view.models.shape[0]):
        if view.models[m].num_instances == 0.0:
            away += view.models[m].queued_weight
    u = 5.0 * w.join + 2.0 * w.join_queue * queue_size(view) + w.join_away * log1p(away / row.weight)
    u += 2.0 * w.join_rate * asked_for(view.models[int(row.model)])
    pair = view.pairs[q, i // slots_per_gpu(view)]
    u += w.join_prefill_s * log1p(pair.prefill_s[int(view.instances[i].level)])
    return u > 0.0 and np.log((lost + 1e-6) / (row.weight * service_s)) > UNJOINED - u


@part
def is_restarted(view, i, ratio, weights):  # type: ignore[no-untyped-def]
    """Is instance i to be put out and loaded again, which saves `ratio` times what it takes?"""
    w = weights[0]
    u = 5.0 * w.restart + 2.0 * w.restart_queue * queue_size(view)
    u += w.restart_seated * log1p(view.instances[i].num_seated)
    return u > 0.0 and np.log(ratio) > UNSUSPENDED - u


@part
def relief_factor(view, i, weights):  # type: ignore[no-untyped-def]
    """By how much more those beside instance i have to gain for it to be put out."""
    if weights.shape[0] == 0:
        return 1.0
    w = weights[0]
    row = view.instances[i]
    u = w.relieve + w.relieve_queue * queue_size(view) + w.relieve_seated * log1p(row.num_seated)
    return factor(u + w.relieve_drain_s * (log1p(row.drain_s) - 2.0))
