"""One regression for all laws: a time is a sum of terms, each an amount of work times the exponential of a sum of
parameters.

Logarithms keep every coefficient positive, make every residual relative, and let a device be "what its data sheet says,
times what is usual, times what is its own". What is its own has a prior of zero with a stated spread, so that a device
nobody measured is predicted by leaving it out, and one that was measured once is pulled towards the others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from threadpoolctl import threadpool_limits

FloatArray = NDArray[np.float64]

NOISE = 0.03
"""relative residual that counts as usual: published repeats differ by 1-3 %; larger ones lose weight (soft L1)"""

Key = Hashable
Factors = tuple[tuple[Key, float], ...]
"""parameters and their multiples, whose sum is the logarithm of a coefficient"""


@dataclass(frozen=True)
class Term:
    """``amount * exp(offset + sum of parameters)`` seconds."""

    amount: float
    factors: Factors
    offset: float = 0.0


@dataclass(frozen=True)
class Prior:
    """Where a parameter is without data, and how far it may usually go."""

    mean: float
    spread: float


@dataclass(frozen=True)
class Line:
    """One measured time in seconds as a sum of terms."""

    seconds: float
    terms: tuple[Term, ...]


Priors = Callable[[Key], Prior]


@dataclass(frozen=True)
class Fit:
    """Parameters, how sharply the data determine them, and the residual spread."""

    keys: tuple[Key, ...]
    values: FloatArray
    slopes: FloatArray
    """weighted derivatives of all residuals, priors included, by parameter"""
    residual: float
    """median absolute relative residual, scaled to a standard deviation"""
    priors: Priors

    def log(self, factors: Factors) -> tuple[float, float]:
        """Sum of the parameters and its standard error; a parameter without data is at its prior."""
        total, gradient, variance = 0.0, np.zeros(len(self.keys)), 0.0
        for key, multiple in factors:
            at = self._index.get(key)
            if at is not None:
                total += multiple * float(self.values[at])
                gradient[at] += multiple
            else:
                prior = self.priors(key)
                total += multiple * prior.mean
                variance += (multiple * prior.spread) ** 2
        return total, float(np.sqrt(variance + gradient @ self.covariance @ gradient))

    def seconds(self, terms: Iterable[Term]) -> float:
        """Predicted time."""
        return sum(term.amount * float(np.exp(term.offset + self._log(term.factors))) for term in terms)

    def _log(self, factors: Factors) -> float:
        at = self._index
        return sum(m * (float(self.values[at[k]]) if k in at else self.priors(k).mean) for k, m in factors)

    @cached_property
    def covariance(self) -> FloatArray:
        """Of the parameters: residuals count as large as they turned out where that is more than assumed."""
        inverse: FloatArray = linalg.inv(self.slopes.T @ self.slopes)
        return inverse * max(1.0, self.residual / NOISE) ** 2

    @cached_property
    def _index(self) -> dict[Key, int]:
        return {key: i for i, key in enumerate(self.keys)}


def fit(lines: Sequence[Line], priors: Priors, near: Fit | None = None) -> Fit:
    """Robust least squares of log predicted over measured, with the priors as further residuals.

    Soft L1 by iterated weights, each step damped (Levenberg-Marquardt). Only parameters that some line uses are fitted.
    `near` is a fit of almost the same lines to start from.
    """
    # Matrices this small keep threads waiting for one another, and their number can change the last bits.
    with threadpool_limits(limits=1):
        return _fit(lines, priors, near)


def _fit(lines: Sequence[Line], priors: Priors, near: Fit | None) -> Fit:
    keys = tuple(dict.fromkeys(key for line in lines for term in line.terms for key, _ in term.factors))
    index = {key: i for i, key in enumerate(keys)}
    terms = [(n, term) for n, line in enumerate(lines) for term in line.terms]
    owner = np.array([n for n, _ in terms])
    amount = np.array([term.amount for _, term in terms])
    offset = np.array([term.offset for _, term in terms])
    cells = [(t, index[key], multiple) for t, (_, term) in enumerate(terms) for key, multiple in term.factors]
    rows, columns, multiples = (np.array(part) for part in zip(*cells, strict=True))
    design = sparse.csr_array((multiples.astype(float), (rows, columns)), shape=(len(terms), len(keys)))
    gather = sparse.csr_array((np.ones(len(terms)), (owner, np.arange(len(terms)))), shape=(len(lines), len(terms)))
    target = np.log([line.seconds for line in lines])
    mean = np.array([priors(key).mean for key in keys])
    spread = np.array([priors(key).spread for key in keys])

    def evaluate(x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Residuals in units of their usual size, lines then priors; share of each term in its line."""
        part = amount * np.exp(offset + design @ x)
        total = gather @ part
        residual = np.concatenate([(np.log(total) - target) / NOISE, (x - mean) / spread])
        return residual, part / total[owner]

    def cost(residual: FloatArray) -> float:
        return float(np.sum(np.sqrt(1 + residual**2) - 1))

    def jacobian(share: FloatArray) -> FloatArray:
        dense: FloatArray = (gather @ sparse.diags_array(share) @ design).toarray() / NOISE
        return np.concatenate([dense, np.diag(1 / spread)])

    x = mean if near is None else np.array([near._log(((key, 1.0),)) for key in keys])
    damping = 1e-3
    # A profile states four digits; a fit that only judges left-out rows needs far fewer.
    close = 1e-6 if near is None else 1e-3
    residual, share = evaluate(x)
    for _ in range(STEPS):
        slopes, usual = jacobian(share), 1 + residual**2
        # Iterated weights: steadier than the exact second derivative of the loss.
        gradient = slopes.T @ (residual * usual**-0.5)
        hessian = slopes.T @ (slopes * usual[:, None] ** -0.5)
        damped = linalg.cho_factor(hessian + damping * np.diag(np.diag(hessian)), check_finite=False)
        step = linalg.cho_solve(damped, -gradient, check_finite=False)
        trial, trial_share = evaluate(x + step)
        if cost(trial) < cost(residual):
            done = float(np.abs(step).max()) < close
            x, residual, share, damping = x + step, trial, trial_share, damping / 5
            if done:
                break
        elif damping > 1e8:
            break
        else:
            damping *= 5
    scatter = float(1.4826 * np.median(np.abs(residual[: len(lines)]))) * NOISE
    slopes = jacobian(share) * (1 + residual[:, None] ** 2) ** -0.25
    return Fit(keys, x, slopes, scatter, priors)


STEPS = 500
"""at most; some dozens are usual"""
