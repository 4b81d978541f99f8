"""What rules are written in: the observation by field name, action indices, and compilation.

A rule is a compiled function ``(view, knobs) -> action index``, plain loops over named records. It sees the observation
and the mask, nothing else. Numba compiles it once and caches it on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numba

from mmsched_env.sim.jit import entry_point

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.py")))


class View(NamedTuple):
    """One environment's observation by field name: record arrays, see `mmsched_env.observation.TABLE`."""

    queue: Any  # (Q,)
    instances: Any  # (I,)
    gpus: Any  # (G,)
    models: Any  # (M,)
    pairs: Any  # (Q, G), fields (K,)
    whole: Any  # (1,)
    mask: Any  # (A,) int8


def rule(function: Callable[..., Any]) -> Any:
    """Compile a rule ``(view, knobs) -> action``; `knobs` is a NamedTuple of numbers."""
    return entry_point(function, SOURCES)


def part(function: Callable[..., Any]) -> Any:
    """Compile a piece that rules share."""
    return numba.njit(error_model="numpy")(function)


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
