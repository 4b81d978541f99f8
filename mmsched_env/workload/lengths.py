"""Token lengths: log-normal, by median and spread. Another distribution is one more class with the same `draw`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .checks import require, require_at_least


@dataclass(frozen=True)
class LengthConfig:
    """Log-normal lengths in tokens, rounded to whole tokens and clipped to ``[1, max]``."""

    median: float
    """tokens; half of the requests are longer (before clipping)"""
    sigma: float
    """standard deviation of the logarithm; 0 gives every request the median"""
    max: int
    """tokens; longer draws are clipped to it, so that a draw never shifts the next one"""

    def check(self, key: str) -> None:
        """Raise `ConfigError` for a value that cannot be used; `key` is where this stands in the configuration."""
        require_at_least(f"{key}.max", self.max, 1)
        require(1 <= self.median <= self.max, f"{key}.median", self.median, f"tokens in [1, {key}.max={self.max}]")
        require(0 <= self.sigma < math.inf, f"{key}.sigma", self.sigma, "a finite number >= 0")

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.int32]:
        """[size] lengths in tokens."""
        with np.errstate(over="ignore"):
            tokens = self.median * np.exp(self.sigma * rng.standard_normal(size))
        return np.clip(np.rint(tokens), 1, self.max).astype(np.int32)


@dataclass(frozen=True)
class PromptConfig(LengthConfig):
    """Prompt lengths; the median lies between a chat arena's (40) and Azure's 2023 chat service's (1020)."""

    median: float = 256.0
    sigma: float = 1.0
    max: int = 4096


@dataclass(frozen=True)
class OutputConfig(LengthConfig):
    """Output lengths; the median lies between Azure's 2023 chat service's (129) and a chat arena's (211)."""

    median: float = 160.0
    sigma: float = 0.8
    max: int = 1024
