"""Rates that change with time: on/off bursts (a Markov-modulated process) and a daily profile.

A process of constant rate is run on a clock of its own, which is then bent: where the rate is twice the mean, the clock
runs at double speed. Its k-th arrival falls where the clock reads what it read, so exactly one number is drawn for each
request. For Poisson arrivals this is the same law as drawing at the highest rate and thinning, without draws thrown
away; Gamma and Weibull gaps keep their shape on the bent clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .checks import require, require_positive, require_share
from .source import stream

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class BurstConfig:
    """A source that is on and off in turn, for exponential times; several multiply (slow ones with fast ones in them)."""

    on_s: float
    """mean seconds on"""
    off_s: float
    """mean seconds off"""
    off_rate: float = 0.0
    """rate when off, as a share of that when on"""

    def check(self, key: str) -> None:
        """Raise `ConfigError` for a value that cannot be used; `key` is where this stands in the configuration."""
        require_positive(f"{key}.on_s", self.on_s, "seconds")
        require_positive(f"{key}.off_s", self.off_s, "seconds")
        require_share(f"{key}.off_rate", self.off_rate)
        require(self.off_rate < 1, f"{key}.off_rate", self.off_rate, "a share below 1")

    @property
    def rates(self) -> tuple[float, float]:
        """Rate when off and when on, of mean 1 over time."""
        mean = (self.on_s + self.off_rate * self.off_s) / (self.on_s + self.off_s)
        return self.off_rate / mean, 1 / mean

    def path(self, rng: np.random.Generator, until_s: float) -> tuple[FloatArray, FloatArray]:
        """(starts of phases in seconds, the first 0; rate in each), past `until_s`. It has been running for long."""
        on = rng.random() < self.on_s / (self.on_s + self.off_s)
        lengths = np.array([self.on_s, self.off_s] if on else [self.off_s, self.on_s])
        phases = np.zeros(0)
        while phases.sum() <= until_s:
            more = 2 * (8 + int(until_s / (self.on_s + self.off_s)))
            phases = np.append(phases, rng.standard_exponential(more) * np.tile(lengths, more // 2))
        rates = np.tile(self.rates[::-1] if on else self.rates, len(phases) // 2)
        return np.append(0.0, np.cumsum(phases)[:-1]), rates


@dataclass(frozen=True)
class ProfileConfig:
    """A rate that repeats: one step after the other, each of equal length."""

    period_s: float = 86400.0
    rates: tuple[float, ...] = ()
    """relative rates of the steps of a period; empty: constant"""
    start_s: float = 0.0
    """where in the period the episode begins"""

    def check(self, key: str) -> None:
        """Raise `ConfigError` for a value that cannot be used; `key` is where this stands in the configuration."""
        require_positive(f"{key}.period_s", self.period_s, "seconds")
        require(0 <= self.start_s < self.period_s, f"{key}.start_s", self.start_s, f"seconds in [0, {self.period_s:g})")
        ok = all(0 <= rate < np.inf for rate in self.rates) and (not self.rates or sum(self.rates) > 0)
        require(ok, f"{key}.rates", self.rates, "numbers >= 0, not all 0")

    def path(self, until_s: float) -> tuple[FloatArray, FloatArray]:
        """(starts of steps in seconds, the first 0; rate in each, of mean 1 over a period), past `until_s`."""
        step_s = self.period_s / len(self.rates)
        first = int(self.start_s // step_s)
        count = first + int(until_s / step_s) + 2
        rates = np.array(self.rates) / np.mean(self.rates)
        starts = np.arange(first, count + first) * step_s - self.start_s
        return np.maximum(starts, 0.0), rates[np.arange(first, count + first) % len(rates)]


def bend(
    clock_s: FloatArray, seed: int, name: str, bursts: tuple[BurstConfig, ...], profile: ProfileConfig
) -> FloatArray:
    """[N] rising times at constant rate -> times at the modulated rate, of the same mean rate in the long run.

    Each burst source has the stream "`name`.burst<i>". More requests at the end change no earlier time.
    """
    if not bursts and not profile.rates:
        return clock_s
    until_s = 2 * float(clock_s[-1]) + 1.0
    while True:
        paths = [burst.path(stream(seed, f"{name}.burst{i}"), until_s) for i, burst in enumerate(bursts)]
        paths += [profile.path(until_s)] if profile.rates else []
        starts = np.unique(np.concatenate([path[0] for path in paths]))
        starts = starts[starts < until_s]  # up to the last one every interval is whole
        rate = np.prod([rates[np.searchsorted(begin, starts[:-1], "right") - 1] for begin, rates in paths], axis=0)
        reading = np.append(0.0, np.cumsum(rate * np.diff(starts)))
        if reading[-1] > clock_s[-1]:
            times: FloatArray = np.interp(clock_s, reading, starts)
            return times
        until_s *= 2
