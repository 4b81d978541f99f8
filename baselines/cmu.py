"""The c-mu index per model with hysteresis, and preemption k times over. Source: Cox and Smith 1961; Shepherd, NSDI 2023.

A model's index is the sum of the weights of its waiting requests over the seconds to serve them as one batch, its load
included where it is absent. The model of the largest index goes first, in it the oldest request; a loaded model's
index counts `hysteresis` times, so that models do not change places for little. Where the first has to wait for a
GPU, running work there is preempted if the waiting index is `factor` times its own: weight over the seconds to drain,
the newcomer's seconds over those to unload and reload it added to them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import RulePolicy, eviction_code, level_code
from .parts import INSTANCE, WAIT, instance_of, may_be_preempted, remaining_tokens, room_when_left, slots_per_gpu
from .placement import best_option, is_ready, serve_in_order
from .rules import rule
from .view import part, preempt_index


class CmuKnobs(NamedTuple):
    hysteresis: float
    factor: float
    patience: float
    level: float
    eviction: float


@part
def batch_seconds(view, q, g, k):  # type: ignore[no-untyped-def]
    """Load, prefills one by one and decoding side by side of all shown requests of the model of slot q."""
    pair = view.pairs[q, g]
    prefill = 0.0
    longest = 0.0
    for other in range(view.queue.shape[0]):
        if view.queue[other].present > 0.0 and view.queue[other].model == view.queue[q].model:
            prefill += view.pairs[other, g].prefill_s[k]
            longest = max(longest, remaining_tokens(view.queue[other]))
    return pair.load_s[k] + prefill + longest * pair.token_s[k]


@part
def model_index(view, q, hysteresis, level):  # type: ignore[no-untyped-def]
    """(index, GPU, level) of the model of slot q at the best place of that request; GPU -1: none."""
    _, g, k = best_option(view, q, level)
    if g < 0:
        return 0.0, g, k
    index = view.models[int(view.queue[q].model)].queued_weight / batch_seconds(view, q, g, k)
    return index * (hysteresis if instance_of(view, view.queue[q].model, g) >= 0 else 1.0), g, k


@part
def preempt_lesser(view, q, index, g, k, factor, patience):  # type: ignore[no-untyped-def]
    """The PREEMPT of an instance of GPU g whose own index is `factor` times less; WAIT: there is none."""
    if instance_of(view, view.queue[q].model, g) >= 0:
        return WAIT
    room, _ = room_when_left(view, g)
    slots = slots_per_gpu(view)
    for i in range(g * slots, (g + 1) * slots):
        row = view.instances[i]
        action = preempt_index(view, i, INSTANCE)
        if not may_be_preempted(view, i, patience):
            continue
        enough = room + row.gpu_gb + row.kv_gb >= view.pairs[q, g].gpu_need_gb[k]
        own = row.weight_seated / max(row.drain_s, 1e-3)
        newcomer = index / (1.0 + index * (row.unload_s + row.reload_s) / max(view.queue[q].weight, 1e-6))
        if enough and newcomer > factor * own:
            return action
    return WAIT


@rule
def cmu(view, knobs):  # type: ignore[no-untyped-def]
    order = np.full(view.queue.shape[0], np.inf)
    for q in range(order.shape[0]):
        if is_ready(view, q):
            index, _, _ = model_index(view, q, knobs.hysteresis, knobs.level)
            order[q] = -index * (1.0 - 1e-6 * q)  # within a model the oldest first
    action = serve_in_order(view, order.copy(), knobs.level, knobs.eviction)
    first = int(np.argmin(order))
    if action == WAIT and order[first] < 0.0:
        index, g, k = model_index(view, first, 1.0, knobs.level)
        return preempt_lesser(view, first, index, g, k, knobs.factor, knobs.patience)
    return action


class Cmu(RulePolicy):
    """Weight served per second first, by model.

    Parameters
    ----------
    hysteresis
        What the index of a loaded model counts; 1: models change places at the slightest advantage.
    factor
        Preempt only if the waiting index is this many times that of the running work; large: never.
    patience
        As for `Preemptive`.
    level, eviction
        As for `Mect`.
    """

    rule = cmu

    def __init__(
        self,
        hysteresis: float = 2.0,
        factor: float = 4.0,
        patience: float = 2.0,
        level: str = "deepest",
        eviction: str = "lru",
    ) -> None:
        codes = level_code(level), eviction_code(eviction)
        self.knobs = CmuKnobs(float(hysteresis), float(factor), float(patience), *codes)
