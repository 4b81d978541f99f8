"""Requests drawn from the client tables that ServeGen publishes (Apache-2.0; Xiang et al., arXiv 2505.09999).

A folder with two files a client: ``chunk-<i>-trace.csv`` (no header: second, requests/s, CV of the gaps, Gamma or
Weibull, its two parameters; a line for each 600 s, without pattern where there are no requests) and
``chunk-<i>-dataset.json`` (second -> histograms of the lengths from there on, each as text).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import TraceError

from .arrivals import renewal_times
from .checks import require_models
from .lines import file_stamp, text_lines
from .mapping import MappingConfig
from .popularity import draw_by_share
from .replay import ReplayConfig
from .source import stream
from .table import Indices, Numbers, read_columns
from .trace import Column, RequestTrace

WINDOW_S = 600.0
"""length of a line's window"""
PATTERNS = ("", "gamma", "weibull")
PAIR = re.compile(r"\s*([\d.]+(?:[eE][+-]?\d+)?)\s*:\s*([\d.]+(?:[eE][+-]?\d+)?)\s*")
FLOAT = np.float64
COLUMNS = {
    "t_s": Column(FLOAT, 0, "seconds >= 0"),
    "rate_per_s": Column(FLOAT, 0, "requests per second >= 0"),
    "cv": Column(FLOAT, 0, "a number >= 0"),
    "p1": Column(FLOAT, 0, "a number >= 0"),
    "p2": Column(FLOAT, 0, "a number >= 0"),
}
HEADER = ("t_s", "rate_per_s", "cv", "pattern", "p1", "p2")

Histogram = tuple[NDArray[np.float64], NDArray[np.float64]]
"""tokens and their weights, [n] each; empty without requests"""


@dataclass(frozen=True)
class Client:
    """One client's lines, [W] each, and its histograms by the second from which they hold."""

    name: str
    lines: dict[str, NDArray[Any]]
    lengths: dict[float, dict[str, Histogram]]

    def histogram(self, t_s: float, kind: str) -> Histogram:
        """The histogram that holds at `t_s`, or the nearest one that is not empty; empty if there is none."""
        known = [start for start, kinds in self.lengths.items() if len(kinds.get(kind, ((), ()))[0])]
        if not known:
            return np.zeros(0), np.zeros(0)
        before = [start for start in known if start <= t_s]
        return self.lengths[max(before) if before else min(known)][kind]


@dataclass(frozen=True)
class ServeGenConfig(ReplayConfig):
    """Every client's renewal process, at the rate and of the shape published for each 600 s; a `TraceSource`.

    ``path`` is the folder of one production model. ``tenant`` is the client. The seed draws times and lengths, a stream
    for each client and window, so a cut shifts no draw. Only ``start_s`` to ``start_s + duration_s`` is drawn.

    Raises
    ------
    ConfigError
        A value that cannot be used, with its full key and what is accepted.
    """

    duration_s: float | None = 3600.0
    mapping: MappingConfig = field(default_factory=MappingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mapping.check("workload.mapping")

    def sample(self, seed: int, model_names: tuple[str, ...]) -> RequestTrace:
        """Requests of the published clients; see `TraceSource.sample`."""
        require_models(model_names)
        folder = self.folder_or_file("a ServeGen model's folder, with its chunk-<i>-trace.csv files")
        clients = read_clients(folder)
        last_s = max(float(client.lines["t_s"][-1]) for client in clients) + WINDOW_S
        columns = draw(clients, seed, *self.span(seed, last_s))
        if not len(columns["arrival_s"]):
            raise TraceError(f"{folder}: no requests in the part asked for; accepted: another start_s or duration_s")
        names = [client.name for client in clients]
        model = self.mapping.assign(seed, columns["tenant"], names, model_names, "workload.mapping")
        limit = max((h[0].max() for c in clients for kinds in c.lengths.values() for k, h in kinds.items()
                     if k == "output_tokens" and len(h[0])), default=1)  # fmt: skip
        columns["max_tokens"] = np.full(len(model), max(limit, self.min_tokens))
        return self.replay(seed, model_names, str(folder), {**columns, "model": model}, last_s=last_s)


def draw(clients: tuple[Client, ...], seed: int, start_s: float, end_s: float) -> dict[str, NDArray[Any]]:
    """Columns of all requests of the windows that overlap [start_s, end_s), sorted by arrival."""
    parts: list[dict[str, NDArray[Any]]] = []
    for tenant, client in enumerate(clients):
        begin = client.lines["t_s"]
        for w in np.flatnonzero((begin + WINDOW_S > start_s) & (begin < end_s) & (client.lines["rate_per_s"] > 0)):
            if len(client.histogram(begin[w], "output_tokens")[0]):
                parts.append(_window(client, tenant, int(w), seed))
    names = ("arrival_s", "tenant", "prompt_tokens", "image_tokens", "output_tokens")
    merged = {name: np.concatenate([part[name] for part in parts] or [np.zeros(0)]) for name in names}
    order = np.argsort(merged["arrival_s"], kind="stable")
    return {name: values[order] for name, values in merged.items()}


def _window(client: Client, tenant: int, w: int, seed: int) -> dict[str, NDArray[Any]]:
    """Requests of a client in its window `w`."""
    lines = client.lines
    begin, rate = float(lines["t_s"][w]), float(lines["rate_per_s"][w])
    name = f"servegen.{client.name}.{begin:g}"
    family = PATTERNS[lines["pattern"][w]]
    times = renewal_times(stream(seed, name), family, rate, float(lines["p1"][w]), WINDOW_S)
    rng = stream(seed, name + ".lengths")
    text = client.histogram(begin, "input_tokens")
    text = text if len(text[0]) else client.histogram(begin, "text_tokens")
    return {
        "arrival_s": begin + times,
        "tenant": np.full(len(times), tenant),
        "prompt_tokens": np.maximum(_tokens(rng, text, len(times)), 1),
        "output_tokens": np.maximum(_tokens(rng, client.histogram(begin, "output_tokens"), len(times)), 1),
        "image_tokens": _images(rng, client, begin, len(times)),
    }


def _tokens(rng: np.random.Generator, histogram: Histogram, size: int) -> NDArray[np.int64]:
    """[size] draws; zeros from an empty histogram."""
    tokens, weights = histogram
    if not len(tokens):
        return np.zeros(size, np.int64)
    drawn: NDArray[np.int64] = np.rint(tokens[draw_by_share(rng.random(size), weights)]).astype(np.int64)
    return drawn


def _images(rng: np.random.Generator, client: Client, begin: float, size: int) -> NDArray[np.int64]:
    """[size] tokens of all of a request's images together."""
    counts = _tokens(rng, client.histogram(begin, "image_count"), size)
    each = _tokens(rng, client.histogram(begin, "image_tokens"), int(counts.sum()))
    total: NDArray[np.int64] = np.bincount(np.repeat(np.arange(size), counts), each, minlength=size).astype(np.int64)
    return total


def read_clients(folder: Path) -> tuple[Client, ...]:
    """The clients of a folder, by number.

    Raises
    ------
    TraceError
        No such files, or one that cannot be used.
    """
    paths = sorted(folder.glob("chunk-*-trace.csv"), key=lambda path: (len(path.name), path.name))
    if not paths:
        raise TraceError(f"{folder}: no chunk-<i>-trace.csv there; accepted: a ServeGen model's folder")
    lengths = [path.with_name(path.name.replace("-trace.csv", "-dataset.json")) for path in paths]
    return _read(tuple(paths), tuple(file_stamp(path) for path in (*paths, *lengths)))


@lru_cache(maxsize=4)
def _read(paths: tuple[Path, ...], stamps: tuple[Any, ...]) -> tuple[Client, ...]:
    return tuple(_client(path) for path in paths)


def _client(path: Path) -> Client:
    fields = {name: Numbers(column, rising=name == "t_s") for name, column in COLUMNS.items()}
    lines = read_columns(path, {**fields, "pattern": Indices(("", "Gamma", "Weibull"))}, header=HEADER)
    for name in ("pattern", "p1"):
        bad = (lines["rate_per_s"] > 0) & (lines[name] <= 0)
        if bad.any():
            row = 1 + int(bad.argmax())
            raise TraceError(f"{path}: row {row}: {name} is missing; accepted: Gamma or Weibull with its parameters")
    if (lines["t_s"] % WINDOW_S).any() or (np.diff(lines["t_s"]) < WINDOW_S).any():
        raise TraceError(
            f"{path}: its times are no multiples of {WINDOW_S:g} s; accepted: a line for each {WINDOW_S:g} s"
        )
    dataset = path.with_name(path.name.replace("-trace.csv", "-dataset.json"))
    return Client(path.name.removesuffix("-trace.csv"), lines, _histograms(dataset))


def _histograms(path: Path) -> dict[float, dict[str, Histogram]]:
    text = "".join(text_lines(path, "JSON"))
    try:
        entries = json.loads(text)
        return {float(t): {kind: _histogram(value) for kind, value in kinds.items()} for t, kinds in entries.items()}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise TraceError(
            f"{path}: not a table of histograms ({str(error)[:120]}); accepted: second -> kind -> text such as "
            "'{12: 0.5, 30: 0.5}'"
        ) from error


def _histogram(text: str) -> Histogram:
    """A histogram from its text; weights need not sum to 1."""
    inner = text.strip().removeprefix("{").removesuffix("}").strip()
    found = [PAIR.fullmatch(part) for part in inner.split(",")] if inner else []
    if any(match is None for match in found):
        raise ValueError(f"'{text[:40]}'")
    pairs = np.array([[float(match[1]), float(match[2])] for match in found if match]).reshape(-1, 2)
    tokens, weights = pairs.T
    if not np.isfinite(pairs).all() or (len(pairs) and (tokens.max() >= 2**31 or weights.sum() <= 0)):
        raise ValueError(f"'{text[:40]}'")
    return tokens, weights
