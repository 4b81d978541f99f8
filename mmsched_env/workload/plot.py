"""Pictures of a workload: arrivals and offered load over time, gaps, lengths, popularity, predictions (matplotlib)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import ConfigError

from .predict import spearman
from .stats import summary
from .trace import RequestTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#882255")
GREY, INK = "#b8b8b8", "#333333"
BINS = 60
"""steps of the time axis"""


def draw_workload(trace: RequestTrace, title: str, load: NDArray[np.float64] | None, path: Path) -> None:
    """Write a picture of `trace`, atomically; `load` is each request's part of the offered load, in seconds of capacity.

    Raises
    ------
    ConfigError
        matplotlib is not installed, or the file's ending is none it can write.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ConfigError("pictures need matplotlib; run: pip install 'mmsched-env[cli]'") from None
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    axes = figure.subplots(2, 3)
    figure.suptitle(title, fontsize=12, color=INK)
    _arrivals(axes[0, 0], trace)
    _gaps(axes[0, 1], trace)
    _lengths(axes[0, 2], trace)
    _load(axes[1, 0], trace, load)
    _popularity(axes[1, 1], trace)
    _predictions(axes[1, 2], trace)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8)
        one.title.set_fontsize(10.5)
        one.xaxis.label.set_fontsize(9)
        one.yaxis.label.set_fontsize(9)
    kind = path.suffix.lstrip(".").lower()
    supported = FigureCanvasAgg(figure).get_supported_filetypes()
    if kind not in supported:
        raise ConfigError(f"out is '{path}'; accepted: a file ending in .{', .'.join(sorted(supported))}")
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format=kind, dpi=110)
    part.replace(path)


def _edges(trace: RequestTrace) -> NDArray[np.float64]:
    return np.linspace(float(trace.arrival_s[0]), float(trace.arrival_s[-1]) + 1e-9, BINS + 1)


def _leaders(trace: RequestTrace) -> list[int]:
    """Models by popularity, those that are asked for."""
    requests = np.bincount(trace.model, minlength=len(trace.model_names))
    return [int(m) for m in np.argsort(-requests, kind="stable") if requests[m]]


def _arrivals(axes: Axes, trace: RequestTrace) -> None:
    edges, leaders = _edges(trace), _leaders(trace)
    shown = leaders if len(leaders) <= len(PALETTE) else leaders[: len(PALETTE) - 1]
    groups = [(trace.model_names[m], trace.model == m) for m in shown]
    if len(shown) < len(leaders):
        groups.append((f"{len(leaders) - len(shown)} others", ~np.isin(trace.model, shown)))
    rates = [np.histogram(trace.arrival_s[rows], edges)[0] / np.diff(edges) for _, rows in groups]
    names, colours = [name for name, _ in groups], [*PALETTE[: len(shown)], GREY]
    rates = [np.append(rate, rate[-1]) for rate in rates]  # a step ends where the next begins: the last one too
    axes.stackplot(edges, rates, labels=names, colors=colours[: len(groups)], step="post", linewidth=0)
    axes.set(title="arrivals", xlabel="time, s", ylabel="requests per s", xlim=(edges[0], edges[-1]))
    axes.set_ylim(0, 1.45 * float(np.sum(rates, axis=0).max()))
    axes.legend(fontsize=6.5, ncols=2, loc="upper left", frameon=False)


def _gaps(axes: Axes, trace: RequestTrace) -> None:
    """Share of gaps longer than a length; Poisson arrivals are the grey line."""
    figures = summary(trace)
    gaps = np.sort(np.diff(trace.arrival_s))
    gaps = gaps[gaps > 0]
    if len(gaps):
        longer = 1 - np.arange(len(gaps)) / len(gaps)
        mean = float(gaps.mean())
        x = np.geomspace(max(gaps[0], mean * 1e-3), max(gaps[-1], 3 * mean), 200)
        axes.loglog(x, np.exp(-x / mean), color=GREY, lw=3, label="Poisson")
        axes.loglog(gaps, longer, color=PALETTE[0], lw=1.5, label="trace")
        axes.set_ylim(0.5 / len(gaps), 1.5)
        axes.set_xlim(x[0], 1.2 * x[-1])
        axes.legend(fontsize=8, frameon=False, loc="lower left")
    fanos = ", ".join(f"{figures[f'fano_{w}s']:.3g} in {w} s" for w in (1, 60))
    axes.set(title=f"gaps: CV {figures['cv']:.3g}; Fano factor {fanos}", xlabel="gap, s", ylabel="share of longer gaps")


def _lengths(axes: Axes, trace: RequestTrace) -> None:
    columns = [("prompt", trace.prompt_tokens), ("output", trace.output_tokens), ("limit", trace.max_tokens)]
    if trace.image_tokens.any():
        columns.append(("image, where there is one", trace.image_tokens[trace.image_tokens > 0]))
    for (name, tokens), colour in zip(columns, (PALETTE[0], PALETTE[1], GREY, PALETTE[2]), strict=False):
        label = f"{name}: p50 {np.median(tokens):.0f}, p95 {np.percentile(tokens, 95):.0f}"
        axes.plot(np.sort(tokens), np.linspace(0, 1, len(tokens)), color=colour, lw=1.5, label=label)
    axes.set(title="lengths", xlabel="tokens", ylabel="share of requests", xscale="log", ylim=(0, 1.45))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.legend(fontsize=7.5, frameon=False, loc="upper left")


def _load(axes: Axes, trace: RequestTrace, load: NDArray[np.float64] | None) -> None:
    if load is None:
        axes.set_axis_off()
        return
    edges = _edges(trace)
    span_s = float(edges[-1] - edges[0])
    offered = np.histogram(trace.arrival_s, edges, weights=load)[0] / np.diff(edges)
    axes.stairs(offered, edges, fill=True, color=PALETTE[4])
    mean = float(load.sum()) / span_s
    axes.axhline(mean, color=PALETTE[0], lw=1.2, ls="--", label=f"mean {mean:.2f}")
    axes.axhline(1, color=PALETTE[5], lw=1.2, label="capacity")
    axes.set(title="offered load against capacity", xlabel="time, s", ylabel="load", xlim=(edges[0], edges[-1]))
    axes.set_ylim(0, 1.25 * max(1.0, float(offered.max())))
    axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)


def _popularity(axes: Axes, trace: RequestTrace, most: int = 14) -> None:
    """Shares by model, over the whole and in the first and last third."""
    leaders = _leaders(trace)[:most]
    thirds = np.array_split(trace.model, 3)
    parts: Iterable[tuple[str, Any, str]] = (
        ("first third", thirds[0], PALETTE[4]),
        ("all", trace.model, PALETTE[0]),
        ("last third", thirds[2], PALETTE[1]),
    )
    place = np.arange(len(leaders))
    for i, (label, model, colour) in enumerate(parts):
        shares = np.bincount(model, minlength=len(trace.model_names))[leaders] / max(len(model), 1)
        axes.barh(place + 0.27 * (i - 1), shares, 0.25, color=colour, label=label)
    axes.set_yticks(place, [trace.model_names[m] for m in leaders], fontsize=7)
    axes.invert_yaxis()
    hidden = len(_leaders(trace)) - len(leaders)
    title = "popularity" + (f" ({hidden} more models)" if hidden else "")
    axes.set(title=title, xlabel="share of requests")
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _predictions(axes: Axes, trace: RequestTrace) -> None:
    true, predicted = trace.output_tokens.astype(float), trace.predicted_tokens.astype(float)
    axes.loglog(true, predicted, ".", ms=2.5, alpha=0.4, color=PALETTE[0], rasterized=True)
    ends = [1.0, float(max(true.max(), predicted.max()))]
    axes.plot(ends, ends, color=GREY, lw=1)
    axes.set(
        title=f"predicted lengths: rank correlation {spearman(true, predicted):.2f}",
        xlabel="output tokens",
        ylabel="predicted tokens",
    )
