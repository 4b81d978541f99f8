"""`RulePolicy`: a compiled rule as a `mmsched_env.policy.Policy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmsched_env.action import ActionLayout
from mmsched_env.core import Simulation
from mmsched_env.errors import unknown_name
from mmsched_env.observation import BLOCKS, block_dtype, block_shape
from mmsched_env.sim.jit import by_address, records

from .memory import new_memory
from .parts import EVICTIONS, LEVELS
from .play import play_batch
from .view import View


class RulePolicy:
    """A `Policy` around a compiled rule. Subclasses set `rule` and may set `knobs` in their constructor."""

    rule: ClassVar[Any]
    knobs: Any = (0.0,)

    def reset(self, layout: ActionLayout, seed: int) -> None:
        """A new episode: nothing is remembered."""
        d = layout.dims
        self._dtypes = {block: block_dtype(block, d) for block in BLOCKS}
        self._shapes = {block: (1, *block_shape(block, d)) for block in BLOCKS}
        self._action = np.zeros(1, np.int64)
        self.memory = new_memory(d, 1, seed)
        self._address: Any = None

    def act(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> int:
        """The rule's action."""
        blocks = [np.ascontiguousarray(observation[b]).view(self._dtypes[b]).reshape(self._shapes[b]) for b in BLOCKS]
        self.decide(blocks, mask[None], self.memory, self._action)
        return int(self._action[0])

    def decide(self, blocks: list[Any], mask: NDArray[Any], memory: Any, actions: NDArray[np.int64]) -> None:
        """Actions (N,) of a batch: records of every observation block [N, rows...], masks [N, A], memories (N,)."""
        type(self).rule(_view(blocks, mask, memory), self.knobs, actions)

    def play(self, simulation: Simulation, limit: int) -> int:
        """Decide and step environment 0 to its end in compiled code, `limit` times at most; the number of decisions."""
        return int(self.play_batch(simulation, self.memory, limit, np.zeros(1))[0])

    def play_batch(
        self, simulation: Simulation, memory: Any, limit: int, rewards: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Play the first N environments, N = len(memory), each to the end of its episode but by `limit` decisions at
        most. Adds to `rewards` (N,) and returns the numbers of decisions (N,)."""
        current = simulation.current
        view = _view([current.records[block] for block in BLOCKS], current.mask, memory)
        actions = np.zeros(simulation.num_envs, np.int64)
        decisions = np.zeros(len(memory), np.int64)
        if self._address is None:
            self._address = by_address(type(self).rule, (view, self.knobs, actions))
        world = simulation.step_arguments(actions)
        play_batch(self._address, simulation.step_address, limit, self.knobs, view, rewards, decisions, *world)
        simulation.check_progress()
        return decisions


def _view(blocks: list[Any], mask: NDArray[Any], memory: Any) -> View:
    return View._make([*(records(block) for block in blocks), mask, records(memory)])


def eviction_code(name: str) -> float:
    """Number of an eviction order, for knobs.

    Raises
    ------
    ConfigError
        No such order.
    """
    return _code("eviction", name, EVICTIONS)


def level_code(name: str) -> float:
    """Number of a way to choose the offload level, for knobs.

    Raises
    ------
    ConfigError
        No such way.
    """
    return _code("level", name, LEVELS)


def _code(kind: str, name: str, accepted: tuple[str, ...]) -> float:
    if name not in accepted:
        raise unknown_name(kind, str(name), accepted)
    return float(accepted.index(name))
