"""Earliest deadline first and least laxity. Source: Liu and Layland 1973, Dertouzos 1974; for LLMs: Prism's local queue.

The deadline is that of the first token until it is out, then that of the last. Laxity is the time to it less what the
request still needs for it, loading included. With `defer`, those that can no longer meet it come after all that can.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import RulePolicy, eviction_code, level_code
from .parts import instance_of, service_seconds
from .placement import is_ready, serve_in_order
from .rules import rule
from .view import part

FAR = 1e6
"""seconds; behind every deadline that can be met"""


class EdfKnobs(NamedTuple):
    laxity: float
    defer: float
    level: float
    eviction: float


@part
def needed_seconds(view, q):  # type: ignore[no-untyped-def]
    """Least seconds to what the deadline of slot q asks for: its first token, or all if that is out."""
    best = np.inf
    for g in range(view.gpus.shape[0]):
        i = instance_of(view, view.queue[q].model, g)
        for k in range(view.pairs[q, g].fits.shape[0]):
            if view.pairs[q, g].fits[k] == 0.0 or (i >= 0 and view.instances[i].level != k):
                continue
            seconds = view.pairs[q, g].prefill_s[k]
            if view.queue[q].generated_tokens > 0.0:
                seconds = service_seconds(view, q, g, k)
            best = min(best, view.pairs[q, g].load_s[k] + seconds)
    return best


@rule
def edf(view, knobs):  # type: ignore[no-untyped-def]
    index = np.full(view.queue.shape[0], np.inf)
    for q in range(index.shape[0]):
        if not is_ready(view, q):
            continue
        row = view.queue[q]
        slack = row.e2e_slack_s if row.generated_tokens > 0.0 else row.ttft_slack_s
        need = needed_seconds(view, q)
        index[q] = slack - need if knobs.laxity > 0.0 else slack
        if knobs.defer > 0.0 and slack < need:
            index[q] = FAR + row.e2e_slack_s
    return serve_in_order(view, index, knobs.level, knobs.eviction)


class Edf(RulePolicy):
    """Most urgent request first.

    Parameters
    ----------
    laxity
        Order by laxity; false: by deadline alone.
    defer
        Requests that cannot meet their deadline come last.
    level, eviction
        As for `Mect`.
    """

    rule = edf

    def __init__(self, laxity: bool = False, defer: bool = True, level: str = "deepest", eviction: str = "lru") -> None:
        self.knobs = EdfKnobs(float(laxity), float(defer), level_code(level), eviction_code(eviction))
