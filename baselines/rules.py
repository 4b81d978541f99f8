"""`rule`: compiles a function ``(view, knobs) -> action index`` together with a loop over environments.

A rule sees one environment's observation and mask (view.py) and what it remembers of earlier ones (memory.py), nothing
else. Numba compiles it once and caches it on disk.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmsched_env.sim.jit import entry_point

from .memory import remember
from .parts import way_out
from .view import View, array_part

FOLDER = Path(__file__).parent


def _decide_batch(observations, masks, memories, knobs, actions):  # type: ignore[no-untyped-def]
    for e in range(actions.shape[0]):
        seen = observations[e]
        blocks = seen.queue, seen.instances, seen.gpus, seen.models, seen.pairs, seen.globals
        one = View(*blocks, masks[e], memories[e])
        remember(one)
        action = decide(one, knobs)  # type: ignore[name-defined] # noqa: F821  (`rule` puts it in)
        actions[e] = action if one.mask[action] == 1 else way_out(one)


def rule(function: Callable[..., Any]) -> Any:
    """Compile a rule ``(view, knobs) -> action`` into ``(observations, masks, memories, knobs, actions)`` over a batch.

    `knobs` is a NamedTuple of numbers. Where a rule would wait though that is illegal, it takes `way_out`.
    """
    # Numba names cache files by source file, name and line and cannot cache closures over compiled functions:
    # so each rule has a copy of the loop that goes by the rule's own name and place.
    code, own = _decide_batch.__code__, function.__code__
    code = code.replace(co_filename=own.co_filename, co_name=own.co_name, co_firstlineno=own.co_firstlineno)
    loop = types.FunctionType(code, globals() | {"decide": array_part(function)}, function.__name__)
    loop.__module__, loop.__qualname__ = function.__module__, function.__qualname__
    return entry_point(loop, sources_of(Path(own.co_filename)))


def sources_of(path: Path) -> tuple[Path, ...]:
    """The files of this folder that `path` imports, directly or not, itself and this one included."""
    found: set[Path] = set()
    to_read = [path, Path(__file__)]
    while to_read:
        found.add(file := to_read.pop())
        names = re.findall(r"^from \.(\w+) import", file.read_text(), re.MULTILINE)
        to_read += [other for name in names if (other := FOLDER / f"{name}.py") not in found]
    return tuple(sorted(found))
