"""PREEMPT of running work that nobody waits for the place of: to load it anew with more layers, or to spare those beside it."""

from __future__ import annotations

from .adjust import is_restarted, relief_factor
from .parts import INSTANCE, WAIT, has_run, room_when_idle_leave, slots_per_gpu
from .view import part, preempt_index


@part
def may_be_suspended(view, i, patience):  # type: ignore[no-untyped-def]
    """Does instance i run, and has it run for long enough?"""
    runs = view.instances[i].num_running > 0.0 and view.mask[preempt_index(view, i, INSTANCE)] == 1
    return runs and has_run(view, i, patience)


@part
def worthwhile_restart(view, patience, weights):  # type: ignore[no-untyped-def]
    """The PREEMPT of an instance with layers on the CPU that its GPU, without its requests, would hold more of, if learned
    weights (adjust.py) say that it pays; WAIT: none. `patience`: see `has_run`."""
    if weights.shape[0] == 0:
        return WAIT
    for i in range(view.instances.shape[0]):
        row = view.instances[i]
        if not may_be_suspended(view, i, patience):
            continue
        g = i // slots_per_gpu(view)
        room, _ = room_when_idle_leave(view, g)
        for k in range(row.level_gb.shape[0] - 1, int(row.level), -1):
            if row.level_gb[k] > 0.0 and row.level_gb[k] - row.kv_gb <= room + row.gpu_gb:
                saved_s = row.longest_left_tokens * (row.step_s - row.level_step_s[k])
                if saved_s > 0.0 and is_restarted(view, i, saved_s / (row.unload_s + row.reload_s), weights):
                    return preempt_index(view, i, INSTANCE)
                break
    return WAIT


@part
def worthwhile_relief(view, relief, patience, weights):  # type: ignore[no-untyped-def]
    """The PREEMPT of an instance that slows others on its GPU, if the weighted seconds that they gain are more than `relief`
    times those that it loses, of the one by which they gain the most for it; WAIT: none. `patience`: see `has_run`."""
    best = WAIT
    most = 0.0
    slots = slots_per_gpu(view)
    for i in range(view.instances.shape[0]):
        if not may_be_suspended(view, i, patience):
            continue
        row = view.instances[i]
        gained = 0.0
        longest = 0.0
        g = i // slots
        for j in range(g * slots, (g + 1) * slots):
            if j != i and view.instances[j].num_running > 0.0:
                beside_s = min(row.drain_s, view.instances[j].drain_s)
                gained += view.instances[j].weight_seated * beside_s
                longest = max(longest, beside_s)
        if gained == 0.0:
            continue
        ratio = gained / (row.weight_seated * (row.unload_s + row.reload_s + longest))
        if ratio > most and ratio > relief * relief_factor(view, i, weights):
            best = preempt_index(view, i, INSTANCE)
            most = ratio
    return best
