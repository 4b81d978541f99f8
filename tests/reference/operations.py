"""R20-R28, R31: loads, unloads, resizes, saves and restores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .clock import RESTORE, STAGE, Clock
from .costs import prefill_alone_s
from .memory import Memory
from .parts import BOUND, READY, RESIZING, SAVING, UNLOADING, Instance, Operation, Request, Settings, Stage
from .sharing import Resource, Waits


class Operations:
    """The half of the simulator that acts on instances."""

    t: Any
    settings: Settings
    clock: Clock
    memory: Memory
    instances: dict[int, Instance]
    waits: Waits
    disks: list[Resource]
    links_in: list[Resource]
    links_out: list[Resource]
    decision: bool
    # from the other half
    log: Callable[..., None]
    begin_to_wait: Callable[[Request], None]
    empty_slot: Callable[[int], int | None]
    host_of: Callable[[int], int]

    # -- actions

    def do_preempt(self, index: int, scope: str) -> None:
        i = self.instances[index]
        what = self.unload if scope == "instance" else self.preempt_longest
        self.now_or_pending(i, partial(what, i))

    def do_offload(self, index: int, level: int) -> None:
        """R27: memory is taken at the decision. Reading: disk bytes (R10) are counted when the reload itself begins."""
        i = self.instances[index]
        self.memory.hold(i, level)
        self.now_or_pending(i, partial(self.resize, i))

    def now_or_pending(self, i: Instance, carry_out: Callable[[], None]) -> None:
        """R20."""
        if i.iteration is None:
            carry_out()
        else:
            i.pending = carry_out

    # -- taking requests off (R21-R23)

    def unload(self, i: Instance) -> None:
        """R21."""
        saving = [request for request in i.requests if self.take_off(request, i)]
        i.phase = UNLOADING
        self.log("unload_start", None, i)
        unload = Stage(self.t.unload_s[i.model][i.gpu][i.level])
        self.start_operation(i, [self.save_stage(i, saving), unload], partial(self.end_unload, i), saving)

    def end_unload(self, i: Instance) -> None:
        """R31: at the latest now the share is known (for a load that did not fail it has been for long)."""
        self.log("unload_end", None, i)
        del self.instances[i.index]
        self.memory.learn(i)
        self.decision = True

    def preempt_longest(self, i: Instance) -> None:
        """R22."""
        if not i.joined:
            return
        longest = max(i.joined, key=lambda r: (r.predicted - r.generated, -r.index))
        if self.take_off(longest, i):
            self.start_operation(i, [self.save_stage(i, [longest])], lambda: None, [longest])

    def take_off(self, request: Request, i: Instance) -> bool:
        """R23. True if its KV is to be saved; it then keeps its seat until the stage save ends."""
        context = request.context_on_instance
        # Reading: one that joined but had no chunk yet counts too; there is no KV to save, so it just leaves.
        counts = request.joined or context > 0
        request.num_preemptions += counts
        if context and self.keeps_kv(context, i):
            request.state = SAVING
            request.saved_tokens, request.saved_host = context, i.host
            request.saved_bytes = self.swap_need(context, i)
            self.log("preempt", request, i, context)
            return True
        self.log("preempt", request, i, request.saved_tokens)
        self.leave_seat(request)
        if not request.saved_tokens:
            request.start_over()
        # Reading of R3: whatever puts a request back into the queue is a decision point, KV dropped or not.
        self.decision = True
        self.begin_to_wait(request)
        return False

    def swap_need(self, context: int, i: Instance) -> int:
        return int(context * (self.t.kv_gpu_bytes[i.model][i.level] + self.t.kv_cpu_bytes[i.model][i.level]))

    def keeps_kv(self, context: int, i: Instance) -> bool:
        m, g, k = i.model, i.gpu, i.level
        size = context * self.t.kv_gpu_bytes[m][k]
        there_and_back = 2 * self.t.save_s[g] + size / self.t.kv_out_cap[g] + size / self.t.kv_in_cap[g]
        again = prefill_alone_s(self.t, m, g, k, context, self.settings.ubatch_tokens)
        wanted = {"swap": True, "recompute": False, "cheaper": there_and_back <= again}[self.settings.preempt_mode]
        return wanted and self.swap_need(context, i) <= self.memory.swap_free(i.host)

    def leave_seat(self, request: Request) -> None:
        i = request.instance
        i.seats[i.seats.index(request)] = None
        request.instance = None

    # -- restores (R24)

    def start_restore(self, i: Instance) -> None:
        if i.phase != READY or i.pending is not None or i.restoring is not None:
            return
        saved = [request for request in i.requests if request.state == BOUND and request.saved_tokens]
        if not saved:
            return
        i.restoring = min(saved, key=lambda request: request.index)
        self.log("restore_start", i.restoring, i)
        self.waits.start(self.clock, self.t.save_s[i.gpu], i.gpu, RESTORE, i.index, partial(self.move_restored, i))

    def move_restored(self, i: Instance) -> None:
        """The fixed time is over."""
        size = i.restoring.saved_tokens * self.t.kv_gpu_bytes[i.model][i.level]
        if size == 0:
            self.end_restore(i)
            return
        end = partial(self.end_restore, i)
        self.links_in[i.gpu].start(self.clock, size, self.t.kv_in_cap[i.gpu], i.gpu, RESTORE, i.index, end)

    def end_restore(self, i: Instance) -> None:
        request, i.restoring = i.restoring, None
        request.free_saved()
        self.log("restore_end", request, i)
        self.decision = True

    # -- operations and their stages (R25)

    def start_operation(
        self, i: Instance, stages: list[Stage], at_end: Callable[[], None], saving: list[Request] | None = None
    ) -> None:
        i.operation = Operation([s for s in stages if s.seconds or s.size], at_end, saving or [])
        if i.operation.stages:
            self.start_stage(i)
        else:  # nothing to do: over at the next instant (R2)
            self.clock.set(self.clock.now, STAGE, i.index, partial(self.end_operation, i))

    def start_stage(self, i: Instance) -> None:
        stage = i.operation.stages[0]
        if stage.seconds:
            self.waits.start(self.clock, stage.seconds, i.gpu, STAGE, i.index, partial(self.move_stage, i))
        else:
            self.move_stage(i)

    def move_stage(self, i: Instance) -> None:
        """The fixed time is over."""
        stage = i.operation.stages[0]
        if stage.size == 0:
            self.end_stage(i)
        else:
            end = partial(self.end_stage, i)
            stage.resource.start(self.clock, stage.size, stage.cap, i.gpu, STAGE, i.index, end)

    def end_stage(self, i: Instance) -> None:
        operation = i.operation
        stage = operation.stages.pop(0)
        stage.at_end()
        if i.operation is not operation:  # the load has failed, its unload has begun (R31)
            return
        if operation.stages:
            self.start_stage(i)
        else:
            self.end_operation(i)

    def end_operation(self, i: Instance) -> None:
        operation, i.operation = i.operation, None
        operation.at_end()

    def save_stage(self, i: Instance, saving: list[Request]) -> Stage:
        tokens = sum(request.saved_tokens for request in saving)
        return self.stage_out(
            i, len(saving), tokens * self.t.kv_gpu_bytes[i.model][i.level], partial(self.end_save, i, saving)
        )

    def end_save(self, i: Instance, saving: list[Request]) -> None:
        for request in saving:
            self.log("save_end", request, i)
            self.leave_seat(request)
            self.begin_to_wait(request)
            self.decision = True

    def stage_out(self, i: Instance, requests: int, size: int, at_end: Callable[[], None] = lambda: None) -> Stage:
        """Save or move out: KV or weights leave the GPU."""
        seconds = requests * self.t.save_s[i.gpu]
        return Stage(seconds, size, self.links_out[i.gpu], self.t.kv_out_cap[i.gpu], at_end)

    def stage_in(self, i: Instance, requests: int, size: int) -> Stage:
        """Restore: KV or weights come to the GPU."""
        seconds = requests * self.t.save_s[i.gpu]
        return Stage(seconds, size, self.links_in[i.gpu], self.t.kv_in_cap[i.gpu])

    # -- loads and resizes (R10, R13, R25, R27, R28)

    def start_load(self, model: int, gpu: int, level: int) -> Instance:
        index, host = self.empty_slot(gpu), self.host_of(gpu)
        assert index is not None
        i = self.instances[index] = Instance(index, gpu, host, model, level, self.settings.batch)
        self.log("load_start", None, i)
        stages = self.load_stages(i, level)
        assert stages[0].seconds > 0  # as tables must have it: a stage that is skipped (R25) would allocate nothing
        stages[0].at_end = partial(self.allocate, i)
        self.start_operation(i, stages, partial(self.end_load, i))
        return i

    def load_stages(self, i: Instance, level: int) -> list[Stage]:
        m, g, h = i.model, i.gpu, i.host
        to_read = self.memory.begin_load(h, m, self.clock.now)
        return [
            Stage(self.t.init_s[m][g]),
            Stage(0.0, to_read, self.disks[h], self.t.disk_cap[m][g], partial(self.end_disk, h, m)),
            Stage(0.0, self.t.gpu_weight_bytes[m][level], self.links_in[g], self.t.link_in_cap[m][g]),
        ]

    def allocate(self, i: Instance) -> None:
        """R31: init has ended. Reading: the init stage of a reload allocates nothing new; its share is long known."""
        if self.memory.can_allocate(i):
            self.memory.learn(i)
        else:
            true = self.memory.footprint(i.gpu, i.model, i.level, self.memory.hidden)
            self.log("load_failed", None, i, true)
            self.decision = True
            self.unload(i)

    def end_disk(self, h: int, m: int) -> None:
        self.memory.valid[h][m] = self.memory.cached[h][m]

    def end_load(self, i: Instance) -> None:
        i.phase = READY
        self.log("load_end", None, i)
        self.decision = True

    def resize(self, i: Instance) -> None:
        i.phase = RESIZING
        self.log("resize_start", None, i, i.new_level)
        stages = self.reload_stages(i) if self.settings.resize_mode == "reload" else self.move_stages(i)
        self.start_operation(i, stages, partial(self.end_resize, i))

    def reload_stages(self, i: Instance) -> list[Stage]:
        kv, old, new = self.t.kv_gpu_bytes[i.model], i.level, i.new_level
        requests = sum(request.context_on_instance > 0 for request in i.requests)
        save = self.stage_out(i, requests, i.context * kv[old])
        unload = Stage(self.t.unload_s[i.model][i.gpu][old])
        return [save, unload, *self.load_stages(i, new), self.stage_in(i, requests, i.context * kv[new])]

    def move_stages(self, i: Instance) -> list[Stage]:
        """R28."""
        kv, weights = self.t.kv_gpu_bytes[i.model], self.t.gpu_weight_bytes[i.model]
        growth = weights[i.new_level] - weights[i.level] + i.context * (kv[i.new_level] - kv[i.level])
        return [self.stage_in(i, 0, growth) if growth > 0 else self.stage_out(i, 0, -growth)]

    def end_resize(self, i: Instance) -> None:
        i.level, i.phase = i.new_level, READY
        i.held_gpu = i.held_kv = i.held_swap = 0
        if self.settings.resize_mode == "move":
            # Reading of R28: the bytes this instance pins; those of one still being moved have not come yet.
            valid, m = self.memory.valid[i.host], i.model
            valid[m] = max(valid[m], self.t.cpu_weight_bytes[m][i.level])
        self.log("resize_end", None, i)
        self.decision = True
