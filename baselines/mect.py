"""Minimum expected completion time over (request, GPU, level). Source: list scheduling on unequal machines (MCT/min-min).

For every waiting request, oldest first, the completion time of every GPU and offload level is estimated: seconds until
there is room or a seat, load, prefill, decoding at that level. The request takes its best option if that can be had
now, unloads idle models if those stand in its way, and else goes on waiting for it, so that no request is put on a
slow place when waiting is expected to be faster.

OFFLOAD is used both ways: a request that its model's instance has no memory for at its present level, even alone, is
let in by moving layers to the CPU once it has waited `admit_after_s`; an instance with layers on the CPU gets them back
once the predicted saving for its requests exceeds `resize_gain` times the seconds that takes.
"""

from __future__ import annotations

from typing import NamedTuple

from .adjust import NOTHING_LEARNED
from .base import RulePolicy, eviction_code, level_code
from .parts import WAIT
from .placement import best_option, first_step, is_ready
from .resize import admit_by_resize, worthwhile_resize
from .rules import rule


class MectKnobs(NamedTuple):
    resize_gain: float
    admit_after_s: float
    level: float
    eviction: float


@rule
def mect(view, knobs):  # type: ignore[no-untyped-def]
    for q in range(view.queue.shape[0]):
        if not is_ready(view, q):
            continue
        _, g, k = best_option(view, q, knobs.level)
        if g >= 0:
            action = first_step(view, q, g, k, knobs.eviction)
            if action > WAIT:
                return action
        action = admit_by_resize(view, q, knobs.admit_after_s, 0.0)
        if action > WAIT:
            return action
    return worthwhile_resize(view, knobs.resize_gain, knobs.eviction, NOTHING_LEARNED)


class Mect(RulePolicy):
    """Minimum expected completion time.

    Parameters
    ----------
    resize_gain
        OFFLOAD only if it saves more than this many times the seconds it costs; 0: never.
    admit_after_s
        A request its model's instance can never hold waits this long before the instance is made to (OFFLOAD); inf:
        for ever.
    level
        At which levels a model may be loaded: whole, deepest or cheapest (see `lowest_level`).
    eviction
        Which idle instances make room first: lru, lfu, gdsf or keep_alive (see `keep_value`).

    Raises
    ------
    ConfigError
        An unknown level or eviction.
    """

    rule = mect

    def __init__(
        self,
        resize_gain: float = 2.0,
        admit_after_s: float = 60.0,
        level: str = "deepest",
        eviction: str = "lru",
    ) -> None:
        self.knobs = MectKnobs(float(resize_gain), float(admit_after_s), level_code(level), eviction_code(eviction))
