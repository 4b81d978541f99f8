"""The Ollama rule. Source: ollama/ollama, server/sched.go, at commit fb307609.

One pending request at a time, in order of arrival, and it blocks the rest: if its model is loaded it goes in (up to
`parallel` at a time); else the model is loaded if it fits whole into what is free, on the GPU with the most free memory;
where nothing is loaded a model may spill to the CPU. Else a model is unloaded, of the idle ones that whose
keep-alive is shortest, all alike here, so that of the first name (here: index); if none is idle all wait. Idle models are
unloaded after `keep_alive_s`. At most `max_loaded` models a GPU. Adapted: Ollama splits over several GPUs what no single
one holds, which the environment does not; such a model spills on an empty GPU of those that hold most of it.
"""

from __future__ import annotations

from typing import NamedTuple

from .base import RulePolicy
from .parts import INSTANCE, LRU, WAIT, WHOLE, deepest_level, instance_of, is_idle, slots_per_gpu
from .placement import is_ready, step_for, too_small
from .rules import rule
from .view import dispatch_index, part, preempt_index


class OllamaKnobs(NamedTuple):
    keep_alive_s: float
    parallel: float
    max_loaded: float


@part
def num_loaded(view, g):  # type: ignore[no-untyped-def]
    return slots_per_gpu(view) - view.gpus[g].free_slots


@part
def wanted_level(view, q):  # type: ignore[no-untyped-def]
    """The deepest level at which any GPU could hold the model of slot q: all of it, or else as little spills as can be."""
    wanted = -1
    for g in range(view.gpus.shape[0]):
        wanted = max(wanted, deepest_level(view, q, g))
    return wanted


@part
def load_now(view, q, max_loaded):  # type: ignore[no-untyped-def]
    """DISPATCH that loads the model of slot q whole, or on an empty GPU as deep as it fits; WAIT: nowhere."""
    best = WAIT
    most_free = -1.0
    k = wanted_level(view, q)
    for g in range(view.gpus.shape[0]):
        spills = k < view.pairs[q, g].fits.shape[0] - 1
        if deepest_level(view, q, g) < k or num_loaded(view, g) >= (1.0 if spills else max_loaded):
            continue
        action = dispatch_index(view, q, g, k)
        if view.mask[action] == 1 and view.gpus[g].free_gb > most_free:
            best = action
            most_free = view.gpus[g].free_gb
    return best


@part
def first_by_name(view, q):  # type: ignore[no-untyped-def]
    """Idle instance to unload for the request of slot q: the lowest model index, on GPUs that could hold it; -1: none."""
    victim = -1
    for i in range(view.instances.shape[0]):
        row = view.instances[i]
        if not is_idle(row) or view.mask[preempt_index(view, i, INSTANCE)] == 0:
            continue
        useful = deepest_level(view, q, i // slots_per_gpu(view)) == wanted_level(view, q)
        if useful and (victim < 0 or row.model < view.instances[victim].model):
            victim = i
    return victim


@rule
def ollama(view, knobs):  # type: ignore[no-untyped-def]
    leaving = False
    for i in range(view.instances.shape[0]):
        row = view.instances[i]
        leaving = leaving or row.leaving > 0.0
        if is_idle(row) and row.idle_s >= knobs.keep_alive_s and view.mask[preempt_index(view, i, INSTANCE)] == 1:
            return preempt_index(view, i, INSTANCE)
    if not is_ready(view, 0):
        return WAIT
    if too_small(view, 0) >= 0:
        action, _ = step_for(view, 0, WHOLE, LRU)
        return action
    loaded = False
    for g in range(view.gpus.shape[0]):
        i = instance_of(view, view.queue[0].model, g)
        if i < 0:
            continue
        loaded = loaded or view.instances[i].leaving == 0.0
        action = dispatch_index(view, 0, g, int(view.instances[i].level))
        if view.instances[i].num_seated < knobs.parallel and view.mask[action] == 1:
            return action
    if loaded:
        return WAIT
    action = load_now(view, 0, knobs.max_loaded)
    if action > WAIT or leaving:
        return action
    victim = first_by_name(view, 0)
    return preempt_index(view, victim, INSTANCE) if victim >= 0 else WAIT


class Ollama(RulePolicy):
    """Ollama's scheduler.

    Parameters
    ----------
    keep_alive_s
        An idle model is unloaded after so many seconds (OLLAMA_KEEP_ALIVE, 5 minutes).
    parallel
        Requests served by a model at a time (OLLAMA_NUM_PARALLEL).
    max_loaded
        Models on a GPU at most (OLLAMA_MAX_LOADED_MODELS, 3 times the number of GPUs for all of them).
    """

    rule = ollama

    def __init__(self, keep_alive_s: float = 300.0, parallel: int = 4, max_loaded: int = 3) -> None:
        self.knobs = OllamaKnobs(float(keep_alive_s), float(parallel), float(max_loaded))
