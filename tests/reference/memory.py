"""R7-R10, R27, R31: bytes on GPUs and hosts, always counted anew from the instances and requests there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .parts import Instance, Request, Settings


class Memory:
    """The weight cache (R10) and the known shares (R31) are state; all else is a sum over `instances` and `requests`.

    `hidden[g][m]` is the share x of R31.
    """

    def __init__(
        self,
        tables: Any,
        settings: Settings,
        instances: dict[int, Instance],
        requests: list[Request],
        hidden: Sequence[Sequence[float]],
    ) -> None:
        self.t = tables
        self.settings = settings
        self.instances = instances
        self.requests = requests
        hosts, models = len(tables.host_bytes), len(tables.num_units)
        self.swap_bytes = [int(settings.kv_swap_fraction * size) for size in tables.host_bytes]  # R9
        self.main_bytes = [size - swap for size, swap in zip(tables.host_bytes, self.swap_bytes, strict=True)]
        self.cached = [[0] * models for _ in range(hosts)]
        self.valid = [[0] * models for _ in range(hosts)]
        self.last_use = [[0.0] * models for _ in range(hosts)]
        self.hidden = hidden
        self.known = [[0.0] * models for _ in hidden]

    # -- what one instance holds

    def gpu_bytes(self, i: Instance) -> int:
        """R8, the KV of its requests, and what a resize holds beyond that."""
        return self.gpu_bytes_at(i, i.level) + i.held_gpu

    def gpu_bytes_at(self, i: Instance, k: int) -> int:
        kv = i.reserved * self.t.kv_gpu_bytes[i.model][k]
        return int(self.footprint(i.gpu, i.model, k, self.known) + kv)

    def footprint(self, g: int, m: int, k: int, shares: Sequence[Sequence[float]]) -> int:
        """R8, R31: by the known shares what is held and needed, by the hidden ones what it really takes."""
        estimate = self.t.gpu_weight_bytes[m][k] + self.t.buffer_bytes[m]
        return int(estimate + math.floor(estimate * shares[g][m]))

    def cpu_kv_bytes(self, i: Instance) -> int:
        return self.cpu_kv_bytes_at(i, i.level) + i.held_kv

    def cpu_kv_bytes_at(self, i: Instance, k: int) -> int:
        return int(i.reserved * self.t.kv_cpu_bytes[i.model][k])

    def cpu_weight_bytes(self, i: Instance) -> int:
        """R27: the larger of old and new."""
        return max(self.t.cpu_weight_bytes[i.model][k] for k in (i.level, i.new_level))

    def hold(self, i: Instance, k: int) -> None:
        """R27. Reading: counted once, at the decision; a request that finishes later frees its KV at the old level only."""
        i.new_level = k
        i.held_gpu = max(0, self.gpu_bytes_at(i, k) - self.gpu_bytes_at(i, i.level))
        i.held_kv = max(0, self.cpu_kv_bytes_at(i, k) - self.cpu_kv_bytes_at(i, i.level))
        i.held_swap = self.reload_swap(i)
        self.settle(i.host, last=i.model)

    def can_allocate(self, i: Instance) -> bool:
        """R31: its true footprint fits in place of the one it holds."""
        held = self.footprint(i.gpu, i.model, i.level, self.known)
        true = self.footprint(i.gpu, i.model, i.level, self.hidden)
        return bool(self.gpu_used(i.gpu) - held + true <= self.t.gpu_bytes[i.gpu])

    def learn(self, i: Instance) -> None:
        """R31: from now on the share is known; an instance that is there holds the true footprint."""
        self.known[i.gpu][i.model] = self.hidden[i.gpu][i.model]

    def reload_swap(self, i: Instance) -> int:
        reload = self.settings.resize_mode == "reload"
        return i.reserved * self.t.kv_gpu_bytes[i.model][i.level] if reload else 0

    # -- what GPUs and hosts hold

    def gpu_used(self, g: int) -> int:
        return sum(self.gpu_bytes(i) for i in self.instances.values() if i.gpu == g)

    def host_kv(self, h: int) -> int:
        return sum(self.cpu_kv_bytes(i) for i in self.instances.values() if i.host == h)

    def pinned(self, h: int, m: int) -> int:
        """R9: the largest over the model's instances on the host's GPUs."""
        ours = (i for i in self.instances.values() if i.host == h and i.model == m)
        return max((self.cpu_weight_bytes(i) for i in ours), default=0)

    def pinned_all(self, h: int) -> int:
        return sum(self.pinned(h, m) for m in range(len(self.cached[h])))

    def swap_used(self, h: int) -> int:
        saved = sum(r.saved_bytes for r in self.requests if r.saved_host == h)
        return saved + sum(i.held_swap for i in self.instances.values() if i.host == h)

    def swap_free(self, h: int) -> int:
        return self.swap_bytes[h] - self.swap_used(h)

    # -- R10

    def touch(self, h: int, m: int, now: float) -> None:
        self.last_use[h][m] = now

    def settle(self, h: int, last: int | None = None) -> None:
        """Hold the pinned bytes, then evict until cached bytes and CPU-side KV fit; model `last` comes last."""
        models = range(len(self.cached[h]))
        pinned = [self.pinned(h, m) for m in models]
        for m in models:
            self.cached[h][m] = max(self.cached[h][m], pinned[m])
        over = sum(self.cached[h]) + self.host_kv(h) - self.main_bytes[h]
        for m in sorted(models, key=lambda m: (m == last, self.last_use[h][m], m)):
            freed = max(0, min(over, self.cached[h][m] - pinned[m]))
            over -= freed
            self.cached[h][m] -= freed
            self.valid[h][m] = min(self.valid[h][m], self.cached[h][m])

    def begin_load(self, h: int, m: int, now: float) -> int:
        """A load or reload of model m starts. Returns the bytes to read from disk."""
        to_read = self.t.file_bytes[m] - self.valid[h][m]
        others = self.pinned_all(h) - self.pinned(h, m)
        room = self.main_bytes[h] - self.host_kv(h) - others
        self.cached[h][m] = max(self.cached[h][m], min(self.t.file_bytes[m], room))
        self.touch(h, m, now)
        self.settle(h, last=m)
        return int(to_read)
