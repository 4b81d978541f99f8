"""What every scheduler is to the evaluation: rules and learned agents alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from .action import ActionLayout

if TYPE_CHECKING:
    from .core import Simulation


@runtime_checkable
class Policy(Protocol):
    """Decides for one environment at a time, from the observation alone."""

    def reset(self, layout: ActionLayout, seed: int) -> None:
        """A new episode begins. `seed` drives whatever is random in the policy."""
        ...

    def act(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> int:
        """Index of the action to take; `mask` (A,) has 1 where an action is legal."""
        ...


@runtime_checkable
class SimulationPolicy(Policy, Protocol):
    """A policy that simulates what its actions would lead to, in copies of the simulation it decides for.

    A planner redraws in its copies what is hidden (`mmsched_env.imagine`). One that keeps the truth is no policy but a
    bound, and says so.
    """

    is_bound: bool
    """uses true output lengths or future arrivals: marked wherever it is listed"""

    def attach(self, simulation: Simulation) -> None:
        """Decide for environment 0 of `simulation` from now on; called after `reset`, before the first `act`."""
        ...


@runtime_checkable
class CompiledPolicy(Policy, Protocol):
    """A policy that can run on by itself, in compiled code."""

    def play(self, simulation: Simulation, limit: int) -> int:
        """Decide and step environment 0 of `simulation` until its episode ends, `limit` times at most.

        The decisions are those `act` would take. Returns how many they were; `simulation.outcomes` has the last step's.
        """
        ...
