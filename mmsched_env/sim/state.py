"""Layout of the simulator's records. One table per record: field | shape | dtype | unit or meaning.

Shape letters: Q queue slots, G GPUs, H hosts, M models, S slots per GPU, I = G*S instances, B seats per instance,
K offload levels, U = 2*I transfer units (one for the instance's own operation, one for a request's KV restore),
T stages of an operation, D depth knots, R = H + 2*G shared resources (disks, links in, links out), W reward terms, A actions.
Sizes are the configured maxima, so every environment of one configuration shares one compiled kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..config import LimitsConfig
from ..costmodel.tables import NUM_KNOTS

# -- request phases
FUTURE, QUEUED, SAVING, BOUND, RESTORING, PREFILL, DECODE, DONE, DROPPED = range(9)
# -- instance phases
EMPTY, LOADING, READY, EVICTING, RESIZING = range(5)
# -- action waiting for the end of the running iteration (the instance is draining)
NO_PENDING, PENDING_PREEMPT, PENDING_PREEMPT_REQUEST, PENDING_RESIZE = range(4)
# -- kind of the running iteration
NO_ITERATION, DECODING, CHUNK, ENCODE = range(4)
# -- operation of an instance, and the stages every operation runs through in this order
NO_OP, OP_LOAD, OP_EVICT, OP_SAVE_REQUEST, OP_RESIZE = range(5)
STAGE_SAVE, STAGE_UNLOAD, STAGE_INIT, STAGE_DISK, STAGE_WEIGHTS, STAGE_RESTORE, STAGE_MOVE_OUT = range(7)
NUM_STAGES = 7
# -- transfer unit
UNIT_IDLE, UNIT_DELAY, UNIT_MOVING = range(3)
# -- modes, in the order of config.PREFILL_MODES, PREEMPT_MODES, RESIZE_MODES
MIXED, PREFILL_FIRST = range(2)
SWAP, RECOMPUTE, CHEAPER = range(3)
RELOAD, MOVE = range(2)
# -- scopes of PREEMPT
SCOPE_INSTANCE, SCOPE_REQUEST = range(2)
NUM_SCOPES = 2
# -- reward terms, in the order of reward.TERMS
TERM_FLOW_TIME, TERM_SLO_MISS, TERM_SLOWDOWN = range(3)
NUM_TERMS = 3
# -- events closer than this are one instant
SAME_INSTANT_S = 1e-9

CACHE_LINE = 64
"""bytes"""

Field = tuple[str, str, str, str]


@dataclass(frozen=True)
class Dims:
    """Padded sizes of one configuration, by their letters."""

    Q: int
    G: int
    H: int
    M: int
    S: int
    B: int
    K: int

    @property
    def I(self) -> int:  # noqa: E743
        return self.G * self.S

    @property
    def A(self) -> int:
        """Number of actions: WAIT, then DISPATCH, PREEMPT and OFFLOAD (layout in action.py)."""
        return 1 + self.Q * self.G * self.K + self.I * NUM_SCOPES + self.I * self.K

    def sizes(self) -> dict[str, int]:
        own = {letter: getattr(self, letter) for letter in "QGHMSBKIA"}
        return own | {"U": 2 * self.I, "T": NUM_STAGES, "D": NUM_KNOTS, "R": self.H + 2 * self.G, "W": NUM_TERMS}

    @classmethod
    def of(cls, limits: LimitsConfig) -> Dims:
        return cls(
            Q=limits.queue,
            G=limits.gpus,
            H=limits.hosts,
            M=limits.models,
            S=limits.slots,
            B=limits.batch,
            K=len(limits.levels),
        )


REQUEST: tuple[Field, ...] = (
    # read at every turn: 64 bytes
    ("phase", "", "i1", "FUTURE .. DROPPED"),
    ("encoded", "", "i1", "1: image encoder has run"),
    ("level", "", "i1", "level at the last dispatch; -1 before"),
    ("slo_class", "", "i1", "index"),
    ("saved_host", "", "i1", "host holding the saved KV; -1: none"),
    ("saved_level", "", "i1", "level of its instance when KV was saved last"),
    ("instance", "", "i2", "last instance; -1 before"),
    ("model", "", "i4", "index"),
    ("prompt_tokens", "", "i4", "text tokens of the prompt"),
    ("image_tokens", "", "i4", "tokens"),
    ("max_tokens", "", "i4", "what KV is reserved for"),
    ("output_tokens", "", "i4", "true length, hidden from policies"),
    ("generated", "", "i4", "output tokens produced"),
    ("prefill_left", "", "i4", "context tokens still to be prefilled; 0: decoding, or not arrived"),
    ("previous", "", "i4", "queue link, towards the head"),
    ("next", "", "i4", "queue link, towards the tail"),
    ("saved_tokens", "", "i4", "context tokens of saved KV; 0: none"),
    ("predicted_tokens", "", "f8", "predicted output length"),
    ("weight", "", "f8", "class weight"),
    # what is shown of it while it waits
    ("arrival_s", "", "f8", "s"),
    ("predicted_slo_ttft_s", "", "f8", "s, the target for TTFT as policies see it: from the predicted length"),
    ("predicted_slo_e2e_s", "", "f8", "s, the same for E2E"),
    ("predicted_unloaded_s", "", "f8", "s, `unloaded_s` for the predicted length"),
    ("first_token_s", "", "f8", "s; -1 before"),
    ("num_preemptions", "", "i4", "count"),
    ("tenant", "", "i4", "index"),
    # targets, hidden where they follow from the true length, and what happened to it
    ("slo_ttft_s", "", "f8", "s, target for TTFT"),
    ("slo_e2e_s", "", "f8", "s, target for E2E"),
    ("unloaded_s", "", "f8", "s, E2E alone on the best GPU with the model loaded"),
    ("dispatch_s", "", "f8", "s, first dispatch; -1 before"),
    ("finish_s", "", "f8", "s; -1 before"),
    ("charged_until_s", "", "f8", "s, if dropped: flow time is charged as if it had stayed until then; -1 else"),
    ("bound_s", "", "f8", "s, last dispatch"),
    ("load_s", "", "f8", "s spent bound to an instance that was loading"),
)

STATE: tuple[Field, ...] = (
    ("now", "", "f8", "s, the clock"),
    ("weight_in_system", "", "f8", "sum of weights of arrived, unfinished requests"),
    ("terms", "W", "f8", "reward terms of the present step"),
    ("num_steps", "", "i8", "steps since reset"),
    ("num_requests", "", "i4", "length of the trace"),
    ("num_arrived", "", "i4", "also the index of the next arrival"),
    ("num_done", "", "i4", "finished requests"),
    ("num_dropped", "", "i4", "dropped requests"),
    ("num_in_system", "", "i4", "arrived, neither finished nor dropped"),
    ("log_length", "", "i4", "rows of the event log in use"),
    ("logging", "", "i4", "1: keep the event log"),
    ("decision", "", "i4", "1: the present instant is a decision point"),
    # queue: linked list in arrival order through REQUEST.previous/next
    ("queue_head", "", "i4", "request; -1: empty"),
    ("queue_tail", "", "i4", "request; -1: empty"),
    ("queue_length", "", "i4", "requests waiting, all of them"),
    ("window", "Q", "i4", "the Q oldest waiting requests; -1: none"),
    ("model_queued", "M", "i4", "waiting requests per model, all of them"),
    ("model_queued_weight", "M", "f8", "their weights"),
    ("model_arrivals", "M", "f8", "arrivals, decayed with time constant RATE_WINDOW_S"),
    ("arrivals_s", "", "f8", "s, when model_arrivals was last decayed"),
    # memory
    ("gpu_used", "G", "i8", "bytes"),
    ("host_kv", "H", "i8", "bytes of CPU-side KV"),
    ("host_pinned", "H", "i8", "bytes of weights in use by CPU units, sum of pinned"),
    ("host_swap", "H", "i8", "bytes of saved KV"),
    ("pinned", "H,M", "i8", "bytes of weights in use by CPU units"),
    ("cached", "H,M", "i8", "bytes of RAM held for the model's weights, pinned ones included"),
    ("cache_valid", "H,M", "i8", "bytes of them already read from disk"),
    ("cache_used_s", "H,M", "f8", "s, last use"),
    (
        "footprint_extra",
        "G,M",
        "f8",
        "what the model is known to take on the GPU beyond the estimate, as a share of it",
    ),
    ("footprint_hidden", "G,M", "f8", "what it really takes beyond: known once a load has come to allocate"),
    # instances
    ("inst_at", "G,M", "i4", "instance of the model on the GPU; -1: none"),
    ("inst_model", "I", "i4", "index; -1: empty"),
    ("inst_phase", "I", "i4", "EMPTY .. RESIZING"),
    ("inst_level", "I", "i4", "offload level"),
    ("inst_new_level", "I", "i4", "target of a resize"),
    ("inst_pending", "I", "i4", "action that waits for the end of the iteration"),
    ("inst_hold_gpu", "I", "i8", "bytes held on the GPU for a resize, beyond the old level's"),
    ("inst_hold_kv", "I", "i8", "bytes of CPU-side KV held for a resize"),
    ("inst_hold_swap", "I", "i8", "bytes of host RAM held for KV during a reload"),
    ("inst_cpu_weights", "I", "i8", "bytes of weights pinned for the instance"),
    ("inst_used_s", "I", "f8", "s, last dispatch or completion"),
    ("inst_uses", "I", "i4", "requests dispatched since it was loaded"),
    ("seat", "I,B", "i4", "request; -1: free"),
    ("num_seated", "I", "i4", "taken seats"),
    ("num_running", "I", "i4", "of them in prefill or decoding"),
    ("reserved_tokens", "I", "i8", "context tokens KV memory is reserved for"),
    # running iterations: iteration j of the segment takes const + share_gpu (gpu + j gpu_slope) + share_cpu (...)
    ("it_kind", "I", "i4", "NO_ITERATION .. ENCODE"),
    ("it_request", "I", "i4", "request in prefill or encoding; -1"),
    ("it_tokens", "I", "i4", "prompt tokens of the chunk"),
    ("it_before", "I", "i4", "iterations finished in earlier segments of this plan"),
    ("it_count", "I", "i4", "iterations of this segment until the plan changes"),
    ("it_start", "I", "f8", "s, virtual start of the segment's first iteration"),
    ("it_end", "I", "f8", "s, end of the segment; inf: none"),
    ("it_const", "I", "f8", "s"),
    ("it_gpu", "I", "f8", "s"),
    ("it_gpu_slope", "I", "f8", "s per iteration"),
    ("it_cpu", "I", "f8", "s"),
    ("it_cpu_slope", "I", "f8", "s per iteration"),
    ("it_share_gpu", "I", "f8", "how many times as long the GPU part takes, in force; 0: not counted yet"),
    ("it_share_cpu", "I", "f8", "how many times as long the CPU part takes, in force"),
    ("inst_busy", "I", "i4", "1: was iterating when last looked at (for the log)"),
    ("stirred", "G", "i1", "1: something on it has begun, ended or come to end at another time since next_event"),
    ("gpu_next", "G", "f8", "s, when something on it ends next, unless it is stirred; inf: never"),
    ("gpu_busy", "G", "i4", "instances whose iteration uses the GPU"),
    ("gpu_on_cpu", "G", "i4", "instances whose iteration uses the CPU of its host"),
    ("cpu_busy", "H", "i4", "instances whose iteration uses the host CPU"),
    ("gpu_iterating", "G", "i4", "instances that run an iteration"),
    ("host_iterating", "H", "i4", "GPUs on which an iteration runs"),
    ("gpu_operations", "G", "i4", "operations and KV restores under way"),
    ("host_stirred", "H", "i1", "scratch: 1: some GPU of it is; 0 between uses"),
    # operations and transfers; unit i is instance i's operation, unit I + i its restore
    ("op", "I", "i4", "NO_OP .. OP_RESIZE"),
    ("op_stage", "I", "i4", "running stage"),
    ("op_rest_s", "I", "f8", "s, the stages after the running one, with disk and links to themselves"),
    ("stage_s", "I,T", "f8", "s, fixed part of each stage"),
    ("stage_bytes", "I,T", "i8", "bytes each stage moves"),
    ("restore_request", "I", "i4", "request whose KV is being restored; -1"),
    ("unit_phase", "U", "i4", "UNIT_IDLE .. UNIT_MOVING"),
    ("unit_resource", "U", "i4", "shared resource; -1: none"),
    ("unit_bytes", "U", "i8", "bytes to move after the delay"),
    ("unit_cap", "U", "f8", "bytes/s it can use alone"),
    ("unit_left", "U", "f8", "bytes left at unit_since"),
    ("unit_rate", "U", "f8", "bytes/s in force"),
    ("unit_slow", "U", "f8", "how many times as long it takes because of what the GPU does beside it, in force"),
    ("unit_since", "U", "f8", "s"),
    ("unit_end", "U", "f8", "s, end of delay or transfer; inf: none"),
    ("resource_dirty", "R", "i1", "1: its shares must be computed again"),
    ("crossing", "U", "i4", "scratch: the units that cross a resource"),
    # counters for reports
    ("gpu_busy_s", "G", "f8", "s with at least one iteration that uses the GPU"),
    ("num_loads", "", "i4", "count"),
    ("num_failed_loads", "", "i4", "loads given up because the true footprint did not fit"),
    ("num_unloads", "", "i4", "count"),
    ("num_preempted", "", "i4", "requests preempted, count"),
    ("num_resizes", "", "i4", "count"),
    # legality of every action at the present instant
    ("mask", "A", "i1", "1: legal"),
    ("mask_rows", "", "i4", "window slots whose DISPATCH actions it was last written for; 0 from there on"),
    ("started", "", "i4", "0: a fresh record, its first decision point is still to be found"),
    # what the observation written last holds (encoder.py)
    ("encoded", "", "i4", "0: nothing of this episode"),
    (
        "encoded_window",
        "Q",
        "i4",
        "request in each of its queue slots; -1: none, -2: one that has left the queue since",
    ),
    ("ran", "", "i4", "1: time or events have gone on since"),
    ("seated_context", "I", "i8", "context tokens of the instance's requests, those to be prefilled counted"),
    ("row_from", "Q", "i4", "scratch: the slot a request's rows are in, -1: they are to be written; 0 between uses"),
    ("stale", "G,M", "i1", "what has changed since about the model on the GPU: 0, STALE_INSTANCE, STALE (memory.py)"),
)

PARAMS: tuple[Field, ...] = (
    ("num_gpus", "", "i4", "in use"),
    ("num_models", "", "i4", "in use"),
    ("num_hosts", "", "i4", "in use"),
    ("prefill_mode", "", "i4", "MIXED, PREFILL_FIRST"),
    ("preempt_mode", "", "i4", "SWAP, RECOMPUTE, CHEAPER"),
    ("resize_mode", "", "i4", "RELOAD, MOVE"),
    ("allow_preempt", "", "i4", "0: PREEMPT only unloads idle instances"),
    ("allow_offload", "", "i4", "0: no OFFLOAD"),
    ("ubatch_tokens", "", "i4", "tokens of a prefill chunk"),
    ("max_steps", "", "i8", "truncation"),
    ("max_time_s", "", "f8", "s, truncation"),
    ("drop_after", "", "f8", "E2E targets after which a waiting request is dropped; inf: never"),
    ("drop_penalty", "", "f8", "E2E targets a dropped request is charged for"),
    ("reward_weights", "W", "f8", "per term"),
    ("level_value", "K", "f8", "share of units on the GPU"),
    ("level_valid", "M,K", "i4", "0: rounds to the same number of units as a lower level"),
    ("host_main_bytes", "H", "i8", "RAM for weights and CPU-side KV"),
    ("host_swap_bytes", "H", "i8", "RAM for saved KV"),
    # cost arrays: see costmodel.tables.CostTables, same names
    ("num_units", "M", "i8", ""),
    ("units_on_gpu", "M,K", "i8", ""),
    ("gpu_weight_bytes", "M,K", "i8", "bytes"),
    ("cpu_weight_bytes", "M,K", "i8", "bytes"),
    ("file_bytes", "M", "i8", "bytes"),
    ("buffer_bytes", "M", "i8", "bytes"),
    ("kv_gpu_bytes", "M,K", "i8", "bytes per token"),
    ("kv_cpu_bytes", "M,K", "i8", "bytes per token"),
    ("iter_const", "M,G,K", "f8", "s"),
    ("gpu_base", "M,G,K", "f8", "s"),
    ("gpu_head", "M,G,K", "f8", "s"),
    ("gpu_kv", "M,G,K", "f8", "s per token"),
    ("cpu_base", "M,G,K", "f8", "s"),
    ("cpu_head", "M,G,K", "f8", "s"),
    ("cpu_kv", "M,G,K", "f8", "s per token"),
    ("batch_gpu", "M,G,B", "f8", "ratio"),
    ("batch_cpu", "M,G,B", "f8", "ratio"),
    ("depth_knot", "M,G,D", "f8", "tokens"),
    ("depth_gpu", "M,G,D", "f8", "ratio"),
    ("depth_cpu", "M,G,D", "f8", "ratio"),
    ("prefill_gpu", "M,G,K", "f8", "s per token"),
    ("prefill_gpu_stream", "M,G,K", "f8", "s per token"),
    ("prefill_cpu", "M,G,K", "f8", "s per token"),
    ("stream_s", "M,G,K", "f8", "s"),
    ("gpu_attn", "M,G,K", "f8", "s per token^2"),
    ("cpu_attn", "M,G,K", "f8", "s per token^2"),
    ("encode_s", "M,G", "f8", "s per image token"),
    ("init_s", "M,G", "f8", "s"),
    ("unload_s", "M,G,K", "f8", "s"),
    ("save_s", "G", "f8", "s"),
    ("disk_cap", "M,G", "f8", "bytes/s"),
    ("link_in_cap", "M,G", "f8", "bytes/s"),
    ("kv_in_cap", "G", "f8", "bytes/s"),
    ("kv_out_cap", "G", "f8", "bytes/s"),
    ("gpu_bytes", "G", "i8", "bytes"),
    ("host_bytes", "H", "i8", "bytes"),
    ("link_in_rate", "G", "f8", "bytes/s"),
    ("link_out_rate", "G", "f8", "bytes/s"),
    ("disk_rate", "H", "f8", "bytes/s"),
    ("operation_share", "G", "f8", "busy instances that an operation counts for"),
    ("interference", "H", "f8", "share by which each further busy GPU slows iterations"),
    ("gpu_host", "G", "i8", "index"),
    ("stream_min_tokens", "G", "i8", "tokens"),
)


def record_dtype(fields: tuple[Field, ...], dims: Dims) -> np.dtype[np.void]:
    """Aligned structured dtype of a field table at the given sizes."""
    sizes = dims.sizes()
    spec = [
        (name, kind, tuple(sizes[letter] for letter in shape.split(",") if letter)) for name, shape, kind, _ in fields
    ]
    return np.dtype(spec, align=True)


def zeros(fields: tuple[Field, ...], dims: Dims, *shape: int) -> NDArray[np.void]:
    """Zeroed records from the beginning of a cache line; a `recarray`, so that the kernel also runs with
    NUMBA_DISABLE_JIT=1."""
    dtype = record_dtype(fields, dims)
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + CACHE_LINE, np.uint8)
    begin = -raw.ctypes.data % CACHE_LINE
    return raw[begin : begin + size].view(dtype).reshape(shape).view(np.recarray)
