"""What the scheduler is told about the length of an answer that has not been written yet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import ConfigError

from .checks import require
from .lengths import normal_quantile
from .source import stream

KINDS = ("noisy", "oracle", "class_mean", "none")
LARGEST_SIGMA = 20.0
REFERENCE_SIZE = 4096
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class PredictionConfig:
    """How ``predicted_tokens`` comes about. The error belongs to the request: no decision changes it.

    noisy: the true length times a log-normal error of median 1, clipped to ``[1, max_tokens]``. oracle: the true
    length. class_mean: the mean output length of the request's class over the trace. none: ``max_tokens``.
    """

    kind: str = "noisy"
    sigma: float = 0.5
    """standard deviation of the error's logarithm, for ``noisy``; 0.5: two of three predictions within a factor 1.65"""
    rank_correlation: float | None = None
    """for ``noisy``: Spearman's rank correlation of predicted with true lengths; sigma is then chosen to give it"""

    def check(self, key: str) -> None:
        """Raise `ConfigError` for a value that cannot be used; `key` is where this stands in the configuration."""
        require(self.kind in KINDS, f"{key}.kind", self.kind, " or ".join(KINDS))
        require(0 <= self.sigma < math.inf, f"{key}.sigma", self.sigma, "a finite number >= 0")
        rho = self.rank_correlation
        require(rho is None or 0 < rho <= 1, f"{key}.rank_correlation", rho, "none, or a number in (0, 1]")
        ok = rho is None or self.kind == "noisy"
        require(ok, f"{key}.rank_correlation", rho, f"none with kind={self.kind}; use kind=noisy")

    def predict(
        self,
        seed: int,
        output_tokens: NDArray[np.integer[Any]],
        max_tokens: NDArray[np.integer[Any]],
        slo_class: NDArray[np.integer[Any]],
        reference: NDArray[np.integer[Any]] | None = None,
    ) -> NDArray[np.float64]:
        """[N] predicted output lengths in tokens, from [N] columns of the trace (stream "prediction").

        `reference` is a sample of the lengths' distribution, from which a stated rank correlation is reached; by default
        the trace itself.

        Raises
        ------
        ConfigError
            The rank correlation cannot be reached.
        """
        output = output_tokens.astype(np.float64)
        if self.kind == "oracle":
            return output
        if self.kind == "none":
            return max_tokens.astype(np.float64)
        if self.kind == "class_mean":
            requests = np.maximum(np.bincount(slo_class), 1)
            output = (np.bincount(slo_class, output) / requests)[slo_class]
        else:
            sigma = self.sigma
            if self.rank_correlation is not None:
                lengths = output if reference is None else reference.astype(np.float64)
                sigma = sigma_for(self.rank_correlation, lengths, float(max_tokens.max()))
            with np.errstate(over="ignore"):
                output = output * np.exp(sigma * stream(seed, "prediction").standard_normal(len(output)))
        return np.clip(output, 1, max_tokens)


def sigma_for(rank_correlation: float, lengths: NDArray[np.float64], limit: float) -> float:
    """Spread of the error at which noisy predictions of `lengths` have this rank correlation, by bisection.

    Raises
    ------
    ConfigError
        No spread gives a correlation so low or so high: lengths all alike, or clipped to `limit`.
    """
    place = np.arange(REFERENCE_SIZE)
    sample = np.sort(lengths)[((place + 0.5) / REFERENCE_SIZE * len(lengths)).astype(np.int64)]
    error = normal_quantile((place * GOLDEN_RATIO + 0.5) % 1.0)  # evenly spread over the plane, unlike random pairs

    def reached(sigma: float) -> float:
        with np.errstate(over="ignore"):
            return spearman(sample, np.clip(sample * np.exp(sigma * error), 1, limit))

    low, high = 0.0, LARGEST_SIGMA
    least, most = reached(high), reached(low)
    if not least <= rank_correlation <= most + 1e-12:
        raise ConfigError(
            f"workload.prediction.rank_correlation is {rank_correlation!r}; accepted: {least:.3f} to {most:.3f} "
            "for these output lengths"
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) > rank_correlation else (low, middle)
    return low


def spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank; 0 if one of the two does not vary."""
    a, b = _ranks(x), _ranks(y)
    spread = a.std() * b.std()
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 0 else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[group]
    return ranks
