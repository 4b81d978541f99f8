"""What rules are written in: the observation by field name, and action indices. Plain loops, compiled by Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mmsched_env.sim.jit import compiled


class View(NamedTuple):
    """One environment's observation by field name: record arrays, see `mmsched_env.observation.TABLE`.

    How many rows there are is part of their types, so that handing them over costs little.
    """

    queue: Any  # (Q,)
    instances: Any  # (I,)
    gpus: Any  # (G,)
    models: Any  # (M,)
    pairs: Any  # (Q, G), fields (K,)
    whole: Any  # (1,)
    mask: Any  # (A,) int8
    memory: Any  # (), see memory.py


def part(function: Callable[..., Any]) -> Any:
    """Compile a piece that rules share, and that makes no arrays."""
    return compiled(function, inlined=True)


def array_part(function: Callable[..., Any]) -> Any:
    """Compile a piece that makes or returns arrays."""
    return compiled(function, makes_arrays=True)


@part
def dispatch_index(view, q, g, k):  # type: ignore[no-untyped-def]
    return 1 + (q * view.pairs.shape[1] + g) * view.pairs[q, g].load_s.shape[0] + k


@part
def preempt_index(view, i, scope):  # type: ignore[no-untyped-def]
    levels = view.instances[i].level_step_s.shape[0]
    return 1 + view.pairs.shape[0] * view.pairs.shape[1] * levels + 2 * i + scope


@part
def offload_index(view, i, k):  # type: ignore[no-untyped-def]
    return preempt_index(view, view.instances.shape[0], 0) + i * view.instances[i].level_step_s.shape[0] + k
