"""Shortest job first by predicted length. Source: learning to rank (NeurIPS 2024); on Ollama: Clairvoyant, arXiv 2606.07248.

A request's size is its prefill and decoding as predicted, and the time to load its model where that is absent: the
least of it over GPUs and levels. Ageing bounds starvation: every second of age counts `ageing` seconds less.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .base import RulePolicy, eviction_code, level_code
from .placement import is_ready, serve_in_order, unshared_seconds
from .rules import rule
from .view import array_part


class SjfKnobs(NamedTuple):
    ageing: float
    level: float
    eviction: float


@array_part
def sizes(view, ageing):  # type: ignore[no-untyped-def]
    """[Q] seconds of each waiting request, less what its age counts; inf where none can be dispatched."""
    out = np.full(view.queue.shape[0], np.inf)
    for q in range(out.shape[0]):
        if is_ready(view, q):
            out[q] = unshared_seconds(view, q) - ageing * view.queue[q].age_s
    return out


@rule
def sjf(view, knobs):  # type: ignore[no-untyped-def]
    return serve_in_order(view, sizes(view, knobs.ageing), knobs.level, knobs.eviction)


class Sjf(RulePolicy):
    """Shortest predicted request first, loading included.

    Parameters
    ----------
    ageing
        Seconds of size that a second of age is worth; 0: none, long requests may starve.
    level, eviction
        As for `Mect`.
    """

    rule = sjf

    def __init__(self, ageing: float = 0.1, level: str = "deepest", eviction: str = "lru") -> None:
        self.knobs = SjfKnobs(float(ageing), level_code(level), eviction_code(eviction))
