"""What the simulator is made of: tables, settings, requests, instances, iterations, operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from mmsched_env.costmodel.tables import CostTables
from mmsched_env.workload.trace import RequestTrace

from .clock import Alarm
from .costs import Parts
from .sharing import Resource, Transfer

# R11
FUTURE, WAITING, SAVING, BOUND, PREFILL, DECODE, DONE, DROPPED = (
    "future",
    "waiting",
    "saving",
    "bound",
    "prefill",
    "decode",
    "done",
    "dropped",
)
LOADING, READY, UNLOADING, RESIZING = "loading", "ready", "unloading", "resizing"

Action = tuple[str | int, ...]
"""("wait",), ("dispatch", queue slot, gpu, level), ("preempt", instance, "instance" | "request"), ("offload", instance, level)"""
WAIT: Action = ("wait",)


@dataclass(frozen=True)
class Settings:
    """The parts of the configuration that dynamics.md names."""

    gpu_hosts: tuple[int, ...]
    kv_swap_fraction: float = 0.25
    queue: int = 16  # Q
    slots: int = 3  # S
    batch: int = 16  # seats of an instance
    prefill_mode: str = "mixed"
    ubatch_tokens: int = 512
    preempt_mode: str = "swap"
    resize_mode: str = "reload"
    allow_preempt: bool = True
    allow_offload: bool = True
    drop_after: float = float("inf")
    drop_penalty: float = 2.0
    max_time_s: float = float("inf")
    max_steps: int = 1_000_000
    flow_time: float = 1.0
    slo_miss: float = 0.0
    slowdown: float = 0.0


@dataclass(frozen=True)
class Yardsticks:
    """Per request, from the cost model: targets of R29 and R30 and the E2E of the request alone. Given, not computed."""

    slo_ttft_s: float
    slo_e2e_s: float
    predicted_slo_e2e_s: float
    unloaded_s: float


@dataclass(eq=False)
class Request:
    index: int
    arrival_s: float
    model: int
    prompt: int
    image: int
    max_tokens: int
    output: int
    predicted: float
    weight: float
    yardsticks: Yardsticks
    state: str = FUTURE
    instance: Instance | None = None  # whose seat it has
    generated: int = 0
    prefilled: int = 0
    target: int = 0
    encoded: bool = False
    saved_tokens: int = 0  # context tokens of saved KV
    saved_bytes: int = 0  # swap taken
    saved_host: int | None = None
    drop_alarm: Alarm | None = None
    dispatch_s: float = -1.0
    first_token_s: float = -1.0
    finish_s: float = -1.0
    num_preemptions: int = 0

    def __post_init__(self) -> None:
        self.start_over()

    @property
    def reserved(self) -> int:
        """R7: T, context tokens it holds memory for while on a seat."""
        return self.prompt + self.image + self.max_tokens

    @property
    def context(self) -> int:
        """R12."""
        return self.prefilled if self.prefilled < self.target else self.prompt + self.image + self.generated

    @property
    def joined(self) -> bool:
        return self.state in (PREFILL, DECODE)

    @property
    def context_on_instance(self) -> int:
        """R23: context tokens whose KV is on its instance, not in swap."""
        return self.context if self.state in (BOUND, PREFILL, DECODE) and not self.saved_tokens else 0

    def start_over(self) -> None:
        """R12, R13: as if never prefilled; output tokens made so far become part of what is to be prefilled."""
        self.prefilled = 0
        self.encoded = False
        self.target = self.prompt + self.image + self.generated

    def free_saved(self) -> None:
        self.saved_tokens, self.saved_bytes, self.saved_host = 0, 0, None


@dataclass(eq=False)
class Iteration:
    kind: str  # "decode", "chunk", "encode"
    parts: Parts
    decoding: list[Request]  # those that get a token at its end
    prefilling: Request | None
    tokens: int  # prompt tokens of a chunk
    done: float = 0.0  # fraction done at `since`
    since: float = 0.0
    seconds: float = 0.0  # of the whole iteration, at the shares in force
    shares: tuple[float, float] | None = None
    alarm: Alarm | None = None


@dataclass(eq=False)
class Stage:
    """R25: a fixed time, then bytes over a shared resource."""

    seconds: float
    size: int = 0
    resource: Resource | None = None
    cap: float = 0.0
    at_end: Callable[[], None] = lambda: None


@dataclass(eq=False)
class Operation:
    stages: list[Stage]  # those not ended
    at_end: Callable[[], None]
    saving: list[Request] = field(default_factory=list)  # requests whose KV its stage save moves to swap
    transfer: Transfer | None = None


@dataclass(eq=False)
class Instance:
    index: int
    gpu: int
    host: int
    model: int
    level: int
    batch: int
    phase: str = LOADING
    new_level: int = -1  # of a resize; the level itself if there is none
    held_gpu: int = 0  # bytes held for a resize, beyond those at the old level
    held_kv: int = 0
    held_swap: int = 0
    pending: Callable[[], None] | None = None  # R20
    seats: list[Request | None] = field(default_factory=list)
    iteration: Iteration | None = None
    operation: Operation | None = None
    restoring: Request | None = None

    def __post_init__(self) -> None:
        self.new_level = self.level
        self.seats = [None] * self.batch

    @property
    def requests(self) -> list[Request]:
        """By seat."""
        return [request for request in self.seats if request is not None]

    @property
    def joined(self) -> list[Request]:
        return [request for request in self.requests if request.joined]

    @property
    def under_way(self) -> int:
        """R19: operations and KV restores under way; a save of one request (R22) and a restore can be at once."""
        return (self.operation is not None) + (self.restoring is not None)

    @property
    def reserved(self) -> int:
        return sum(request.reserved for request in self.requests)

    @property
    def context(self) -> int:
        return sum(request.context_on_instance for request in self.requests)


def plain_tables(tables: CostTables) -> Any:
    """The same names as nested lists of Python numbers."""
    fields = dataclasses.fields(tables)
    return SimpleNamespace(**{f.name: getattr(tables, f.name).tolist() for f in fields})


def requests_of(trace: RequestTrace, yardsticks: Iterable[Yardsticks]) -> list[Request]:
    names = (
        "arrival_s",
        "model",
        "prompt_tokens",
        "image_tokens",
        "max_tokens",
        "output_tokens",
        "predicted_tokens",
        "weight",
    )
    rows = zip(*(getattr(trace, name).tolist() for name in names), strict=True)
    return [Request(index, *row, yardsticks=y) for index, (row, y) in enumerate(zip(rows, yardsticks, strict=True))]
