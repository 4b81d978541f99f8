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

from .adjust import NOTHING_LEARNED
from .base import RulePolicy, eviction_code, level_code
from .displace import displace_instance, displace_request
from .parts import WAIT, service_seconds
from .placement import best_option, first_step, is_ready
from .resize import admit_by_resize, worthwhile_resize
from .rules import rule


class PreemptiveKnobs(NamedTuple):
    factor: float
    patience: float
    resize_gain: float
    admit_after_s: float
    level: float
    eviction: float


@rule
def preemptive(view, knobs):  # type: ignore[no-untyped-def]
    index = np.zeros(view.queue.shape[0])
    for q in range(index.shape[0]):
        if is_ready(view, q):
            seconds, g, _ = best_option(view, q, knobs.level)
            index[q] = view.queue[q].weight / seconds if g >= 0 else 0.0
    for _ in range(index.shape[0]):
        q = int(np.argmax(index))
        if index[q] <= 0.0:
            break
        index[q] = 0.0
        seconds, g, k = best_option(view, q, knobs.level)
        action = first_step(view, q, g, k, knobs.eviction)
        if action == WAIT:
            action = displace_request(view, q, knobs.factor, knobs.patience, NOTHING_LEARNED)
        if action == WAIT:
            wait_s = seconds - view.pairs[q, g].load_s[k] - service_seconds(view, q, g, k)
            action = displace_instance(view, q, g, k, wait_s, knobs.factor, knobs.patience, NOTHING_LEARNED)
        if action > WAIT:
            return action
    for q in range(index.shape[0]):
        if is_ready(view, q):
            action = admit_by_resize(view, q, knobs.admit_after_s, 0.0)
            if action > WAIT:
                return action
    return worthwhile_resize(view, knobs.resize_gain, knobs.eviction, NOTHING_LEARNED)


class Preemptive(RulePolicy):
    """Weight over expected seconds, preempting where it pays.

    Parameters
    ----------
    factor
        Preempt only if the gain is this many times the loss (Shepherd's lambda); large: never.
    patience
        Times the seconds of bringing it back that an instance is left to run before it is preempted. Near 0 two requests may
        put each other out for ever.
    resize_gain, admit_after_s, level, eviction
        As for `Mect`.
    """

    rule = preemptive

    def __init__(
        self,
        factor: float = 3.0,
        patience: float = 2.0,
        resize_gain: float = 2.0,
        admit_after_s: float = 60.0,
        level: str = "deepest",
        eviction: str = "lru",
    ) -> None:
        codes = level_code(level), eviction_code(eviction)
        self.knobs = PreemptiveKnobs(float(factor), float(patience), float(resize_gain), float(admit_after_s), *codes)
