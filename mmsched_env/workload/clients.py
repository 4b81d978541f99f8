"""Traffic as a sum of clients, each with its own rate and burstiness (what ServeGen found in production).

A few clients carry most of the load and are bursty on their own; a sum that is drawn as one process with the pooled
CV loses the clients' bursts, which outlast many gaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arrivals import first_gap, gaps_of, shape_of
from .checks import require, require_at_least
from .modulation import BurstConfig, ProfileConfig, bend
from .popularity import zipf_shares
from .source import stream

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class ClientsConfig:
    """How many clients there are and what each sends. One: the traffic is a single process."""

    count: int = 1
    zipf_exponent: float = 1.0
    """the r-th client's rate falls as r to the minus this"""
    cv: float = 1.0
    """coefficient of variation of every client's own gaps"""
    shares: tuple[float, ...] = ()
    """each client's part of the rate; empty: by zipf_exponent"""
    cvs: tuple[float, ...] = ()
    """each client's coefficient of variation; empty: cv for all"""

    def check(self, key: str) -> None:
        """Raise `ConfigError` for a value that cannot be used; `key` is where this stands in the configuration."""
        require_at_least(f"{key}.count", self.count, 1)
        require(self.count <= 10_000, f"{key}.count", self.count, "at most 10000 clients")
        require(0 <= self.zipf_exponent <= 100, f"{key}.zipf_exponent", self.zipf_exponent, "a number in [0, 100]")
        for cv in (self.cv, *self.cvs):
            require(0.01 <= cv <= 100, f"{key}.cv", cv, "numbers in [0.01, 100]")
        require(all(0 < x < np.inf for x in self.shares), f"{key}.shares", self.shares, "numbers > 0")
        for name in ("shares", "cvs"):
            given = getattr(self, name)
            require(len(given) in (0, self.count), f"{key}.{name}", given, f"{self.count} numbers, one a client")

    def times(
        self,
        seed: int,
        size: int,
        rate_per_s: float,
        family: str,
        bursts: tuple[BurstConfig, ...],
        profile: ProfileConfig,
    ) -> tuple[FloatArray, NDArray[np.int64]]:
        """The first `size` arrivals of all clients: times in seconds and clients, [size] each.

        Client c has the stream "client<c>" and its own bursts; the profile is common to all. Another size changes no
        arrival.
        """
        shares = np.array(self.shares) if self.shares else zipf_shares(self.count, self.zipf_exponent)
        rates = rate_per_s * shares / shares.sum()
        cvs = self.cvs or (self.cv,) * self.count
        until_s = 1.2 * size / rate_per_s
        while True:
            times = [
                _one(seed, f"client{c}", float(rates[c]), family, cvs[c], until_s, bursts, profile)
                for c in range(self.count)
            ]
            merged = np.concatenate(times)
            if len(merged) >= size:
                break
            until_s *= 1.5
        client = np.repeat(np.arange(self.count), [len(t) for t in times])
        order = np.argsort(merged, kind="stable")[:size]
        return merged[order], client[order]


def _one(
    seed: int,
    name: str,
    rate_per_s: float,
    family: str,
    cv: float,
    until_s: float,
    bursts: tuple[BurstConfig, ...],
    profile: ProfileConfig,
) -> FloatArray:
    """Arrivals of one client before `until_s`."""
    shape = shape_of(family, cv)
    rng = stream(seed, name)
    clock = np.array([first_gap(rng, family, rate_per_s, shape)])
    while True:
        times = bend(clock, seed, name, bursts, profile)
        if times[-1] >= until_s:
            return times[times < until_s]
        block = 16 + int(rate_per_s * until_s)
        clock = np.append(clock, clock[-1] + np.cumsum(gaps_of(rng, family, rate_per_s, shape, block)))
