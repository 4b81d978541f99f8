"""Skip-join multi-level feedback queue. Source: FastServe, Wu et al., NSDI 2026 (arXiv 2305.05920).

Output lengths are taken as unknown. A request enters the queue whose quantum covers its prefill (skipping those above);
what it has attained demotes it; waiting `starvation_s` promotes it to the top. The highest queue goes first, in it the
oldest. Running work that has used up the quantum of the waiting request's queue is preempted for it, its KV cache saved.
Adapted: quanta are of seconds, since the environment asks for decisions at events, not tokens; entering counts the load of an
absent model too; what is preempted is an instance, or of a full instance of the same model the request of the largest
predicted remainder, as that is what PREEMPT offers; the time since an instance last got a request is what
each of its requests has attained at least.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import RulePolicy, eviction_code, level_code
from .parts import INSTANCE, REQUEST, WAIT, instance_of, may_be_preempted, room_when_left, slots_per_gpu
from .placement import best_option, is_ready, serve_in_order
from .rules import rule
from .view import part, preempt_index

QUEUES = 8
"""levels; the last has no quantum"""


class MlfqKnobs(NamedTuple):
    quantum_s: float
    starvation_s: float
    level: float
    eviction: float


@part
def queue_of(seconds, quantum_s):  # type: ignore[no-untyped-def]
    """The highest queue whose quantum covers so many seconds; quanta double from queue to queue."""
    for level in range(QUEUES - 1):
        if seconds <= quantum_s * 2.0**level:
            return level
    return QUEUES - 1


@part
def attained_or_first(view, q):  # type: ignore[no-untyped-def]
    """Seconds to the next token of the request of slot q at its quickest place, and of the tokens it has got there."""
    best = np.inf
    for g in range(view.gpus.shape[0]):
        i = instance_of(view, view.queue[q].model, g)
        pair = view.pairs[q, g]
        for k in range(pair.fits.shape[0]):
            if pair.fits[k] > 0.0 and (i < 0 or view.instances[i].level == k):
                seconds = pair.load_s[k] + pair.prefill_s[k] + view.queue[q].generated_tokens * pair.token_s[k]
                best = min(best, seconds)
    return best


@part
def preempt_demoted(view, q, level_of_q, knobs):  # type: ignore[no-untyped-def]
    """The PREEMPT of work in a lower queue than the request of slot q; WAIT: there is none."""
    now = view.whole[0].time_s
    _, g, k = best_option(view, q, knobs.level)
    if g < 0:
        return WAIT
    same = instance_of(view, view.queue[q].model, g)
    if same >= 0:
        attained = now - view.memory.used_s[same]
        action = preempt_index(view, same, REQUEST)
        lower = queue_of(attained, knobs.quantum_s) > level_of_q
        return action if lower and view.instances[same].free_seats == 0.0 and view.mask[action] == 1 else WAIT
    room, _ = room_when_left(view, g)
    slots = slots_per_gpu(view)
    for i in range(g * slots, (g + 1) * slots):
        row = view.instances[i]
        action = preempt_index(view, i, INSTANCE)
        if not may_be_preempted(view, i):
            continue
        enough = room + row.gpu_gb + row.kv_gb >= view.pairs[q, g].gpu_need_gb[k]
        if enough and queue_of(now - view.memory.used_s[i], knobs.quantum_s) > level_of_q:
            return action
    return WAIT


@rule
def mlfq(view, knobs):  # type: ignore[no-untyped-def]
    index = np.full(view.queue.shape[0], np.inf)
    for q in range(index.shape[0]):
        if is_ready(view, q):
            level = queue_of(attained_or_first(view, q), knobs.quantum_s)
            index[q] = 0 if view.queue[q].age_s > knobs.starvation_s else level
            index[q] += 1e-3 * q
    action = serve_in_order(view, index.copy(), knobs.level, knobs.eviction)
    first = int(np.argmin(index))
    if action == WAIT and index[first] < np.inf:
        return preempt_demoted(view, first, int(index[first]), knobs)
    return action


class Mlfq(RulePolicy):
    """Least attained service first, without predictions.

    Parameters
    ----------
    quantum_s
        Quantum of the highest queue; each further one has twice that of the one before.
    starvation_s
        Age at which a request is served as if it had just come to the highest queue; inf: never.
    level, eviction
        As for `Mect`.
    """

    rule = mlfq

    def __init__(
        self,
        quantum_s: float = 4.0,
        starvation_s: float = 120.0,
        level: str = "deepest",
        eviction: str = "lru",
    ) -> None:
        self.knobs = MlfqKnobs(float(quantum_s), float(starvation_s), level_code(level), eviction_code(eviction))
