"""Service classes: interactive and batch requests, their weights and SLOs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import require_positive, require_share
from .source import stream
from .trace import SLO_SCALES


@dataclass(frozen=True)
class ClassConfig:
    """Share, weight and SLO multiple of the two classes."""

    interactive_share: float = 0.7
    """share of requests that are interactive; the rest is batch"""
    interactive_weight: float = 1.0
    batch_weight: float = 0.25
    """what a second of waiting costs, beside an interactive request's"""
    interactive_slo_scale: float = SLO_SCALES["interactive"]
    """SLO targets = this multiple of the request's own unloaded latency"""
    batch_slo_scale: float = SLO_SCALES["batch"]

    def check(self, key: str) -> None:
        """Raise `ConfigError` for a value that cannot be used; `key` is where this stands in the configuration."""
        require_share(f"{key}.interactive_share", self.interactive_share)
        for name in ("interactive_weight", "batch_weight", "interactive_slo_scale", "batch_slo_scale"):
            require_positive(f"{key}.{name}", getattr(self, name))

    def draw(self, seed: int, size: int) -> dict[str, Any]:
        """Columns ``slo_class``, ``weight``, ``slo_scale`` of `size` requests (stream "classes")."""
        batch = stream(seed, "classes").random(size) >= self.interactive_share
        return {"slo_class": batch.astype(np.int32), **self.values(batch)}

    def values(self, slo_class: NDArray[Any]) -> dict[str, Any]:
        """Columns ``weight`` and ``slo_scale`` of requests of known class: 0 is interactive, any other batch."""
        batch = slo_class != 0
        return {
            "weight": np.where(batch, self.batch_weight, self.interactive_weight),
            "slo_scale": np.where(batch, self.batch_slo_scale, self.interactive_slo_scale),
        }
