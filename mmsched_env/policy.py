"""What every scheduler is to the evaluation: rules and learned agents alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from .action import ActionLayout


@runtime_checkable
class Policy(Protocol):
    """Decides for one environment at a time, from the observation alone."""

    def reset(self, layout: ActionLayout, seed: int) -> None:
        """A new episode begins. `seed` drives whatever is random in the policy."""
        ...

    def act(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> int:
        """Index of the action to take; `mask` (A,) has 1 where an action is legal."""
        ...
