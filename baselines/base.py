"""`RulePolicy`: a compiled rule as a `mmsched_env.policy.Policy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmsched_env.action import ActionLayout
from mmsched_env.core import Simulation
from mmsched_env.errors import unknown_name
from mmsched_env.observation import ObservationBuffer
from mmsched_env.sim.jit import by_address, records

from .memory import new_memory
from .parts import EVICTIONS, LEVELS
from .play import play_batch


class RulePolicy:
    """A `Policy` around a compiled rule. Subclasses set `rule` and may set `knobs` in their constructor."""

    rule: ClassVar[Any]
    knobs: Any = (0.0,)

    def reset(self, layout: ActionLayout, seed: int) -> None:
        """A new episode: nothing is remembered."""
        self._observation = ObservationBuffer.allocate(1, layout.dims)
        self._action = np.zeros(1, np.int64)
        self.memory = new_memory(layout.dims, 1, seed)
        self._address: Any = None

    def act(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> int:
        """The rule's action."""
        for block, values in self._observation.arrays.items():
            values[0] = observation[block]
        self.decide(self._observation.records, mask[None], self.memory, self._action)
        return int(self._action[0])

    def decide(self, observations: Any, masks: NDArray[Any], memories: Any, actions: NDArray[np.int64]) -> None:
        """Actions (N,) of a batch: observations as records (N,), masks [N, A], memories (N,)."""
        type(self).rule(observations, masks, records(memories), self.knobs, actions)

    def play(self, simulation: Simulation, limit: int) -> int:
        """Decide and step environment 0 to its end in compiled code, `limit` times at most; the number of decisions."""
        return int(self.play_batch(simulation, self.memory, limit, np.zeros(1))[0])

    def play_batch(
        self, simulation: Simulation, memory: Any, limit: int, rewards: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Play the first N environments, N = len(memory), each to the end of its episode but by `limit` decisions at
        most. Adds to `rewards` (N,) and returns the numbers of decisions (N,)."""
        seen, memories = simulation.current, records(memory)
        actions = np.zeros(simulation.num_envs, np.int64)
        decisions = np.zeros(len(memory), np.int64)
        if self._address is None:
            self._address = by_address(type(self).rule, (seen.records, seen.mask, memories, self.knobs, actions))
        world = simulation.step_arguments(actions)
        play_batch(self._address, simulation.step_address, limit, self.knobs, memories, rewards, decisions, *world)
        simulation.check_progress()
        return decisions


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
