"""Token lengths: log-normal, a mixture of log-normals, or a histogram."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import require, require_at_least
from .popularity import draw_by_share

FAMILIES = ("lognormal", "mixture", "histogram")


@dataclass(frozen=True)
class LengthConfig:
    """Lengths in whole tokens, clipped to ``[1, max]``, by one of three families.

    lognormal: ``median`` and ``sigma``. mixture: component i is log-normal of ``medians[i]`` and ``sigmas[i]`` and is
    drawn with weight ``weights[i]``. histogram: ``edges`` in tokens, rising; bin i, from ``edges[i]`` to
    ``edges[i + 1]``, is drawn with weight ``weights[i]`` and is even within.
    """

    median: float
    """tokens; half of the requests are longer (before clipping)"""
    sigma: float
    """standard deviation of the logarithm; 0 gives every request the median"""
    max: int
    """tokens; longer draws are clipped to it, so that a draw never shifts the next one"""
    family: str = "lognormal"
    weights: tuple[float, ...] = ()
    medians: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()

    def check(self, key: str) -> None:
        """Raise `ConfigError` for a value that cannot be used; `key` is where this stands in the configuration."""
        require_at_least(f"{key}.max", self.max, 1)
        require(self.family in FAMILIES, f"{key}.family", self.family, " or ".join(FAMILIES))
        require(1 <= self.median <= self.max, f"{key}.median", self.median, f"tokens in [1, {key}.max={self.max}]")
        require(0 <= self.sigma < math.inf, f"{key}.sigma", self.sigma, "a finite number >= 0")
        if self.family != "lognormal":
            ok = len(self.weights) >= 1 and all(0 <= x < math.inf for x in self.weights) and sum(self.weights) > 0
            require(ok, f"{key}.weights", self.weights, "numbers >= 0, not all 0")
        if self.family == "mixture":
            for name, low in (("medians", 1.0), ("sigmas", 0.0)):
                values = getattr(self, name)
                ok = len(values) == len(self.weights) and all(low <= x < math.inf for x in values)
                require(ok, f"{key}.{name}", values, f"{len(self.weights)} numbers >= {low:g}, as many as weights")
        if self.family == "histogram":
            ok = len(self.edges) == len(self.weights) + 1 and all(1 <= x < math.inf for x in self.edges)
            ok = ok and list(self.edges) == sorted(self.edges)
            require(
                ok, f"{key}.edges", self.edges, f"{len(self.weights) + 1} rising numbers >= 1, one more than weights"
            )

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.int32]:
        """[size] lengths in tokens."""
        return self._tokens(rng.standard_normal(size) if self.family == "lognormal" else rng.random((size, 2)))

    def reference(self, size: int = 1 << 16) -> NDArray[np.int32]:
        """[size] lengths that stand for the distribution: always the same, whatever the seed."""
        return self.draw(np.random.default_rng(0), size)

    def _tokens(self, draws: NDArray[np.float64]) -> NDArray[np.int32]:
        """[N] lengths from standard normal draws [N], or uniform ones [N, 2]: which part, and where in it."""
        with np.errstate(over="ignore"):
            if self.family == "lognormal":
                tokens = self.median * np.exp(self.sigma * draws)
            elif self.family == "mixture":
                part = draw_by_share(draws[:, 0], self.weights)
                tokens = np.array(self.medians)[part] * np.exp(
                    np.array(self.sigmas)[part] * normal_quantile(draws[:, 1])
                )
            else:
                part = draw_by_share(draws[:, 0], self.weights)
                low, high = np.array(self.edges)[part], np.array(self.edges)[part + 1]
                tokens = low + (high - low) * draws[:, 1]
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


@dataclass(frozen=True)
class ImageConfig(LengthConfig):
    """Tokens of a request's images together."""

    median: float = 1024.0
    sigma: float = 0.0
    max: int = 16384


def normal_quantile(share: NDArray[Any]) -> NDArray[np.float64]:
    """The standard normal's quantile function."""
    from statistics import NormalDist

    quantile = NormalDist().inv_cdf
    return np.array([quantile(min(max(p, 1e-300), 1 - 1e-16)) for p in share])
