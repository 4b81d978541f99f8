"""What the scheduler is told about the length of an answer that has not been written yet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import require
from .source import stream

KINDS = ("noisy", "oracle", "class_mean", "none")


@dataclass(frozen=True)
class PredictionConfig:
    """How ``predicted_tokens`` comes about.

    noisy: the true length times a log-normal error of median 1, clipped to ``[1, max_tokens]``. oracle: the true
    length. class_mean: the mean output length of the request's class over the trace. none: ``max_tokens``.
    """

    kind: str = "noisy"
    sigma: float = 0.5
    """standard deviation of the error's logarithm, for ``noisy``; 0.5: two of three predictions within a factor 1.65"""

    def check(self, key: str) -> None:
        """Raise `ConfigError` for a value that cannot be used; `key` is where this stands in the configuration."""
        require(self.kind in KINDS, f"{key}.kind", self.kind, " or ".join(KINDS))
        require(0 <= self.sigma < math.inf, f"{key}.sigma", self.sigma, "a finite number >= 0")

    def predict(
        self,
        seed: int,
        output_tokens: NDArray[np.integer[Any]],
        max_tokens: NDArray[np.integer[Any]],
        slo_class: NDArray[np.integer[Any]],
    ) -> NDArray[np.float64]:
        """[N] predicted output lengths in tokens, from [N] columns of the trace (stream "prediction")."""
        output = output_tokens.astype(np.float64)
        if self.kind == "oracle":
            return output
        if self.kind == "none":
            return max_tokens.astype(np.float64)
        if self.kind == "class_mean":
            requests = np.maximum(np.bincount(slo_class), 1)
            output = (np.bincount(slo_class, output) / requests)[slo_class]
        else:
            with np.errstate(over="ignore"):
                output = output * np.exp(self.sigma * stream(seed, "prediction").standard_normal(len(output)))
        return np.clip(output, 1, max_tokens)
