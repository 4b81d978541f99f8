"""What all recorded workloads share: the part of the trace that is used, its load, and what a record does not say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import ConfigError, TraceError

from .checks import require, require_at_least, require_load, require_positive
from .classes import ClassConfig
from .predict import PredictionConfig
from .source import stream
from .splits import window_of
from .trace import CLASS_NAMES, RequestTrace

WINDOWS = ("whole", "by_seed")


@dataclass(frozen=True)
class ReplayConfig:
    """Settings of every recorded trace. A reader is a subclass with ``sample``, which ends in `replay`."""

    path: str = ""
    """where the user has the trace; none is shipped"""
    start_s: float = 0.0
    """leave out what arrived before this time; the episode's clock starts here"""
    duration_s: float | None = None
    """leave out what arrived this long after start_s or later; none: to the end"""
    num_requests: int | None = None
    """use the first so many requests after start_s; none: all"""
    windows: str = "whole"
    """whole: every seed sees the whole record. by_seed: training, validation and test seeds (splits.py) each see a part
    of its time of their own, and start_s, duration_s and num_requests cut within it"""
    client_share: float | None = None
    """keep whole clients (tenants), drawn by the seed, up to this share of the requests; none: all. Leaving out single
    requests instead would make what is left more regular than the record"""
    tick_s: float | None = None
    """the record's times are quantised to this: requests of one time are spread at random over so many seconds, not past
    the next time, in their order; none: leave times alone"""
    rate_per_s: float | None = None
    """stretch or squeeze time to this mean rate (requests over the time from first to last); none: as recorded"""
    rho: float | None = None
    """offered load: an environment sets rate_per_s to this multiple of its capacity (costmodel/capacity.py); none: as
    rate_per_s says"""
    min_tokens: int = 0
    """raise shorter prompts and outputs to this, counted in the notes; 0: a length of zero is an error"""
    max_prompt_tokens: int | None = None
    """clip longer prompts to this, counted in the notes; none: as recorded"""
    max_tokens: int | None = None
    """what every request may generate and reserves KV cache for; longer outputs are clipped, counted in the notes.
    none: the trace's own, or where it has none the largest output of the file, alike for all so that it gives no
    length away"""
    classes: ClassConfig = field(default_factory=ClassConfig)
    prediction: PredictionConfig = field(default_factory=PredictionConfig)

    def __post_init__(self) -> None:
        require(0 <= self.start_s < math.inf, "workload.start_s", self.start_s, "seconds >= 0")
        for name, unit in (("duration_s", "seconds"), ("rate_per_s", "requests per second"), ("tick_s", "seconds")):
            value = getattr(self, name)
            if value is not None:
                require_positive(f"workload.{name}", value, unit)
        require_load(self.rho)
        require(self.windows in WINDOWS, "workload.windows", self.windows, " or ".join(WINDOWS))
        share = self.client_share
        require(share is None or 0 < share < 1, "workload.client_share", share, "none, or a share in (0, 1)")
        for name in ("num_requests", "max_prompt_tokens", "max_tokens"):
            value = getattr(self, name)
            if value is not None:
                require_at_least(f"workload.{name}", value, 1)
        require_at_least("workload.min_tokens", self.min_tokens, 0)
        for name in ("max_prompt_tokens", "max_tokens"):
            top = getattr(self, name)
            require(top is None or top >= self.min_tokens, f"workload.{name}", top, f">= min_tokens={self.min_tokens}")
        self.classes.check("workload.classes")
        self.prediction.check("workload.prediction")

    def folder_or_file(self, what: str) -> Path:
        """The configured path, which must have been set; `what` it should name is for the message."""
        require(self.path.strip() != "", "workload.path", self.path, what)
        return Path(self.path).expanduser()

    def replay(
        self,
        seed: int,
        model_names: tuple[str, ...],
        source: str,
        columns: dict[str, Any],
        class_names: tuple[str, ...] = CLASS_NAMES,
        notes: Sequence[str] = (),
        first_row: int = 2,
        last_s: float | None = None,
    ) -> RequestTrace:
        """A trace from recorded `columns` (at least arrival_s, model, prompt_tokens, output_tokens; [N] each).

        What the record lacks is filled in for the whole record before the cut, so a request keeps its class, its
        prediction and its place within a tick wherever the cut lies. `last_s` is where the record ends, if not at
        its last request here.

        Raises
        ------
        ConfigError, TraceError
            Settings that leave nothing to replay, or data that `RequestTrace.validate` refuses.
        """
        columns, limited = self._limit_lengths(columns)
        size = len(columns["arrival_s"])
        if self.tick_s is not None:
            columns["arrival_s"] = spread_ticks(columns["arrival_s"], self.tick_s, stream(seed, "ticks"))
        given = columns.get("slo_class")
        columns = {**(self.classes.draw(seed, size) if given is None else self.classes.values(given)), **columns}
        if "predicted_tokens" not in columns:
            lengths = (columns["output_tokens"], columns["max_tokens"])
            columns["predicted_tokens"] = self.prediction.predict(seed, *lengths, columns["slo_class"])
        notes = [*notes, *limited]
        options: dict[str, Any] = {"class_names": class_names, "source": source, "first_row": first_row}
        trace = RequestTrace.from_columns(model_names, notes=notes, **options, **columns)
        if self.client_share is not None:
            trace = keep_clients(trace, self.client_share, stream(seed, "clients"), source)
        start_s, end_s = self.span(seed, float(trace.arrival_s[-1]) if last_s is None else last_s)
        return self._cut(trace, source, start_s, end_s)

    def _limit_lengths(self, columns: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The columns with lengths raised and clipped as configured, and a note on each that changed something."""
        columns, notes = dict(columns), []

        def limit(name: str, low: float, high: float, why: str) -> None:
            limited = np.clip(columns[name], low, high)
            changed = int((limited != columns[name]).sum())
            if changed:
                notes.append(f"{changed} of {len(limited)} {name} {why}")
            columns[name] = limited

        for name in ("prompt_tokens", "output_tokens"):
            limit(name, self.min_tokens, math.inf, f"raised to min_tokens={self.min_tokens}")
        if self.max_prompt_tokens is not None:
            limit("prompt_tokens", 0, self.max_prompt_tokens, f"clipped to max_prompt_tokens={self.max_prompt_tokens}")
        if self.max_tokens is not None:
            limit("output_tokens", 0, self.max_tokens, f"clipped to max_tokens={self.max_tokens}")
            columns["max_tokens"] = np.full(len(columns["output_tokens"]), self.max_tokens)
        elif "max_tokens" not in columns:
            columns["max_tokens"] = np.full(len(columns["output_tokens"]), columns["output_tokens"].max())
        return columns, notes

    def span(self, seed: int, last_s: float) -> tuple[float, float]:
        """Seconds [from, to) of a record that ends at `last_s` which `seed` is to see."""
        begin_s, limit_s = (0.0, math.inf) if self.windows == "whole" else window_of(seed, last_s)
        start_s = begin_s + self.start_s
        return start_s, limit_s if self.duration_s is None else min(limit_s, start_s + self.duration_s)

    def _cut(self, trace: RequestTrace, source: str, start_s: float, end_s: float) -> RequestTrace:
        """The requests from `start_s` to before `end_s`, the clock starting there, at the configured rate."""
        first, last = np.searchsorted(trace.arrival_s, (start_s, end_s))
        available = max(0, int(last - first))
        if available < (self.num_requests or 1):
            raise TraceError(
                f"{source}: {available} requests from second {start_s:g} to before {end_s:g}, the last one in the "
                f"file arrives at {trace.arrival_s[-1]:g}; accepted: at least {self.num_requests or 1} "
                "(change workload.start_s, duration_s or num_requests)"
            )
        part = trace.select(slice(first, first + (self.num_requests or available)))
        part = part.shift_time(-start_s)
        if self.rate_per_s is None:
            return part
        span_s = float(part.arrival_s[-1] - part.arrival_s[0])
        if span_s == 0:
            raise ConfigError(
                f"workload.rate_per_s is {self.rate_per_s!r}; accepted: none, all arrivals are at one time"
            )
        return part.rescale_time(len(part) / span_s / self.rate_per_s)


def spread_ticks(arrival_s: NDArray[np.float64], tick_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """[N] times with those of one reading spread evenly at random over `tick_s` seconds, not past the next reading."""
    ticks, tick = np.unique(arrival_s, return_inverse=True)
    width = np.minimum(np.diff(ticks, append=np.inf), tick_s)
    share = rng.random(len(arrival_s))
    order = np.lexsort((share, tick))  # within a tick in their order: the smallest share first
    return arrival_s + share[order] * width[tick]


def keep_clients(trace: RequestTrace, share: float, rng: np.random.Generator, source: str) -> RequestTrace:
    """The requests of whole clients (tenants) in a random order, as many as come nearest to `share` of all.

    Raises
    ------
    ConfigError
        There is but one client.
    """
    requests = np.bincount(trace.tenant)
    order = rng.permutation(np.flatnonzero(requests))
    if len(order) < 2:
        raise ConfigError(f"workload.client_share is {share!r}; accepted: none, {source} has one client (tenant)")
    kept = np.cumsum(requests[order])
    count = 1 + int(np.abs(kept - share * len(trace)).argmin())
    thinned = trace.select(np.isin(trace.tenant, order[:count]))
    note = f"{count} of {len(order)} clients kept, {len(thinned)} of {len(trace)} requests"
    return dataclasses.replace(thinned, notes=(*thinned.notes, note))
