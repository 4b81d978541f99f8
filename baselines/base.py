"""`RulePolicy`: a compiled rule as a `mmsched_env.policy.Policy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmsched_env.action import ActionLayout
from mmsched_env.observation import BLOCKS, block_dtype, block_shape
from mmsched_env.sim.jit import records

from .parts import way_out
from .rules import View


class RulePolicy:
    """A `Policy` around a compiled rule. Subclasses set `rule` and may set `knobs` in their constructor."""

    rule: ClassVar[Any]
    knobs: Any = (0.0,)

    def reset(self, layout: ActionLayout, seed: int) -> None:
        """A new episode; rules have no state and no randomness."""
        d = layout.dims
        self._dtypes = {block: block_dtype(block, d) for block in BLOCKS}
        self._shapes = {block: block_shape(block, d) for block in BLOCKS}

    def act(self, observation: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> int:
        """The rule's action."""
        blocks = [np.ascontiguousarray(observation[b]).view(self._dtypes[b]).reshape(self._shapes[b]) for b in BLOCKS]
        view = View._make([*(records(block) for block in blocks), mask])
        action = int(type(self).rule(view, self.knobs))
        return action if mask[action] else int(way_out(view))
