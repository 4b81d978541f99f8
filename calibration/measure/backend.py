"""What an engine must offer to be measured."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mmsched_env.errors import MmschedError

from .points import Point, Preset


class ServerDied(MmschedError):
    """The engine ended, or does not answer any more, while it was measured."""


@dataclass(frozen=True)
class Figure:
    """One sample."""

    seconds: float
    """of the operation; decode: of one step of the whole batch; footprint: 0"""
    size_bytes: int = 0
    """moved, saved or held"""


class Instance(Protocol):
    """A model that is loaded."""

    def measure(self, point: Point) -> Figure:
        """Any point of `serving_points`. Raises ServerDied."""
        ...

    def unload(self) -> Figure:
        """Free it; nothing of it may be used afterwards."""
        ...


class Backend(Protocol):
    """One engine on one device."""

    @property
    def engine(self) -> str:
        """as the schema's column: llama.cpp CPU"""
        ...

    @property
    def version(self) -> str: ...

    @property
    def gpu(self) -> str:
        """as its vendor calls it, without the vendor; `schema.CPU_ONLY` without one"""
        ...

    @property
    def gpu_mem_bytes(self) -> int | None: ...

    @property
    def operations(self) -> Collection[str]:
        """of `points.SERVING`: what it can measure"""
        ...

    @property
    def pids(self) -> Sequence[int]:
        """processes that do the work, besides this one"""
        ...

    def prepare(self, model: str) -> int:
        """Make sure the model can be loaded. Returns the bytes of its weights. Raises ConfigError."""
        ...

    def loads(self, model: str, preset: Preset) -> Iterable[Point]:
        """The loads to measure; the model stays loaded for `serving_points` after the last one of each residency."""
        ...

    def load(self, point: Point) -> tuple[Figure, Instance]:
        """Load a model as the point says. Raises ServerDied."""
        ...

    def copies(self, preset: Preset) -> Iterable[Point]:
        """Copies between host and device to measure, without any model."""
        ...

    def copy(self, point: Point) -> Figure:
        """One of them."""
        ...

    def close(self) -> None:
        """End every process, remove every temporary file. May be called twice."""
        ...
