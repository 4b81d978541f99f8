"""The flat action index: WAIT, then DISPATCH (queue slot, GPU, level), PREEMPT (instance, scope), OFFLOAD (instance, level)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from .sim.state import NUM_SCOPES, SCOPE_INSTANCE, SCOPE_REQUEST, Dims

WAIT = 0


class Kind(IntEnum):
    WAIT = 0
    DISPATCH = 1
    PREEMPT = 2
    OFFLOAD = 3


@dataclass(frozen=True)
class Action:
    """An action taken apart; fields that do not belong to its kind are -1."""

    kind: Kind
    queue_slot: int = -1
    gpu: int = -1
    slot: int = -1
    level: int = -1
    scope: int = -1

    def __str__(self) -> str:
        if self.kind == Kind.WAIT:
            return "WAIT"
        if self.kind == Kind.DISPATCH:
            return f"DISPATCH queue slot {self.queue_slot} to GPU {self.gpu} at level {self.level}"
        if self.kind == Kind.PREEMPT:
            what = "instance" if self.scope == SCOPE_INSTANCE else "longest request of instance"
            return f"PREEMPT {what} {self.slot} on GPU {self.gpu}"
        return f"OFFLOAD instance {self.slot} on GPU {self.gpu} to level {self.level}"


@dataclass(frozen=True)
class ActionLayout:
    """Index arithmetic for one configuration's padded sizes."""

    dims: Dims

    @property
    def preempt_at(self) -> int:
        return 1 + self.dims.Q * self.dims.G * self.dims.K

    @property
    def offload_at(self) -> int:
        return self.preempt_at + self.dims.I * NUM_SCOPES

    @property
    def size(self) -> int:
        return self.dims.A

    def dispatch(self, queue_slot: int, gpu: int, level: int) -> int:
        return 1 + (queue_slot * self.dims.G + gpu) * self.dims.K + level

    def preempt(self, instance: int, whole_instance: bool = True) -> int:
        return self.preempt_at + instance * NUM_SCOPES + (SCOPE_INSTANCE if whole_instance else SCOPE_REQUEST)

    def offload(self, instance: int, level: int) -> int:
        return self.offload_at + instance * self.dims.K + level

    def decode(self, index: int) -> Action:
        """Take an index apart.

        Raises
        ------
        IndexError
            The index is outside ``Discrete(size)``.
        """
        d = self.dims
        if not 0 <= index < d.A:
            raise IndexError(f"action {index} is outside 0..{d.A - 1}")
        if index == WAIT:
            return Action(Kind.WAIT)
        if index < self.preempt_at:
            rest, level = divmod(index - 1, d.K)
            queue_slot, gpu = divmod(rest, d.G)
            return Action(Kind.DISPATCH, queue_slot=queue_slot, gpu=gpu, level=level)
        if index < self.offload_at:
            instance, scope = divmod(index - self.preempt_at, NUM_SCOPES)
            return Action(Kind.PREEMPT, gpu=instance // d.S, slot=instance % d.S, scope=scope)
        instance, level = divmod(index - self.offload_at, d.K)
        return Action(Kind.OFFLOAD, gpu=instance // d.S, slot=instance % d.S, level=level)
