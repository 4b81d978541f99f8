"""R4, R13, R20-R22, R27: the actions that are legal at the present instant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .parts import LOADING, READY, WAIT, WAITING, Action, Instance, Request

if TYPE_CHECKING:
    from .simulator import Reference


def legal_actions(s: Reference) -> list[Action]:
    actions = [*_dispatches(s), *_preempts(s), *_offloads(s)]
    if not actions or _something_ahead(s):
        actions.insert(0, WAIT)
    return actions


def _something_ahead(s: Reference) -> bool:
    """R4. A request can be dropped if it waits and dropping is on."""
    to_come = any(request.state == "future" for request in s.requests)
    working = any(i.requests or i.operation for i in s.instances.values())
    droppable = s.settings.drop_after < float("inf") and any(request.state == WAITING for request in s.requests)
    return to_come or working or droppable


def _dispatches(s: Reference) -> Iterator[Action]:
    """R13."""
    used = [s.memory.gpu_used(g) for g in s.gpus]
    hosts = range(len(s.t.host_bytes))
    main_free = [s.memory.main_bytes[h] - s.memory.pinned_all(h) - s.memory.host_kv(h) for h in hosts]
    for q, request in enumerate(s.window()):
        if request.state != WAITING:
            continue
        for g in s.gpus:
            host_free, gpu_free = main_free[s.host_of(g)], s.t.gpu_bytes[g] - used[g]
            for k in _levels(s, request, g):
                if _fits(s, request, g, k, gpu_free, host_free):
                    yield ("dispatch", q, g, k)


def _levels(s: Reference, request: Request, g: int) -> list[int]:
    """Levels at which the request could run on GPU g, memory aside."""
    instance = s.instance_of(request.model, g)
    if instance is None:
        return own_levels(s, request.model) if s.empty_slot(g) is not None else []
    return [instance.level] if _takes_requests(instance) else []


def _takes_requests(i: Instance) -> bool:
    saving = i.operation is not None and bool(i.operation.saving)
    return i.phase in (LOADING, READY) and i.pending is None and not saving and None in i.seats


def _fits(s: Reference, request: Request, g: int, k: int, gpu_free: int, host_free: int) -> bool:
    m, h = request.model, s.host_of(g)
    gpu_need = request.reserved * s.t.kv_gpu_bytes[m][k]
    host_need = request.reserved * s.t.kv_cpu_bytes[m][k]
    if s.instance_of(m, g) is None:
        gpu_need += s.memory.footprint(g, m, k, s.memory.known)
        host_need += max(0, s.t.cpu_weight_bytes[m][k] - s.memory.pinned(h, m))
    return bool(gpu_need <= gpu_free and host_need <= host_free)


def own_levels(s: Reference, m: int) -> list[int]:
    """Levels of a model that do not round to the same number of units as a lower one."""
    units = s.t.units_on_gpu[m]
    return [k for k in range(len(units)) if units[k] not in units[:k]]


def _free_to_act(i: Instance) -> bool:
    """R20."""
    return i.phase == READY and i.pending is None and i.operation is None and i.restoring is None


def _preempts(s: Reference) -> Iterator[Action]:
    for i in s.in_order():
        if not _free_to_act(i):
            continue
        if s.settings.allow_preempt or not i.requests:  # R21
            yield ("preempt", i.index, "instance")
        if s.settings.allow_preempt and i.joined:  # R22; reading: allow_preempt is for both scopes
            yield ("preempt", i.index, "request")


def _offloads(s: Reference) -> Iterator[Action]:
    """R27."""
    if not s.settings.allow_offload:
        return
    for i in s.in_order():
        for k in own_levels(s, i.model) if _free_to_act(i) else ():
            if k != i.level and _resize_fits(s, i, k):
                yield ("offload", i.index, k)


def _resize_fits(s: Reference, i: Instance, k: int) -> bool:
    """The larger of old and new bytes must fit."""
    memory, h = s.memory, i.host
    gpu = max(0, memory.gpu_bytes_at(i, k) - memory.gpu_bytes(i))
    kv = max(0, memory.cpu_kv_bytes_at(i, k) - memory.cpu_kv_bytes(i))
    pins = max(0, s.t.cpu_weight_bytes[i.model][k] - memory.pinned(h, i.model))
    on_gpu = memory.gpu_used(i.gpu) + gpu <= s.t.gpu_bytes[i.gpu]
    on_host = memory.pinned_all(h) + memory.host_kv(h) + pins + kv <= memory.main_bytes[h]
    return bool(on_gpu and on_host and memory.reload_swap(i) <= memory.swap_free(h))
