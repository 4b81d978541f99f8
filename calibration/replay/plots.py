"""Measured against simulated: a point a request, and what the device did over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from mmsched_env.rendering.timeline import Activity, read_log

from .real import Outcome

PLAIN = StrMethodFormatter("{x:g}")

COLORS = ("#3b6ea5", "#d98c3f", "#5a9a68", "#a05195")


def scatter(path: Path, real: Outcome, forced: Outcome, free: Outcome, models: Sequence[str]) -> None:
    """E2E of every request, real against simulated, with the real decisions and left to itself."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    for axes, outcome, title in zip(
        figure.subplots(1, 2), (forced, free), ("the real decisions, re-timed", "left to itself"), strict=True
    ):
        x, y = real.rows["e2e_s"], outcome.rows["e2e_s"]
        low, high = min(x.min(), y.min()) / 1.2, max(x.max(), y.max()) * 1.2
        axes.plot([low, high], [low, high], color="0.6", linewidth=1)
        for m, name in enumerate(models):
            mine = real.rows["model"] == m
            axes.scatter(x[mine], y[mine], s=14, color=COLORS[m % len(COLORS)], label=name, alpha=0.8)
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), title=title)
        axes.set(xlabel="E2E measured, s", ylabel="E2E simulated, s")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PLAIN)
            axis.set_minor_formatter(NullFormatter())
    figure.axes[0].legend(loc="upper left", frameon=False, fontsize=8)
    _save(figure, path)


def timelines(path: Path, real: Outcome, forced: Outcome, free: Outcome, models: Sequence[str]) -> None:
    """What the device did: a band for each run, measured above simulated. Light: loads and unloads."""
    runs = (("measured", real), ("re-timed", forced), ("simulated", free))
    end = max(float(outcome.log["time_s"].max()) for _, outcome in runs)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots()
    for row, (_, outcome) in enumerate(runs):
        instances = int(outcome.log["instance"].max()) + 1
        story = read_log(outcome.log, end, instances, len(models))
        for bar in story.intervals:
            if bar.activity == Activity.IDLE:
                continue
            busy = bar.activity == Activity.BUSY
            place = -row + (0.0 if busy else 0.25)
            axes.barh(
                place,
                bar.end_s - bar.start_s,
                left=bar.start_s,
                height=0.5 if busy else 0.2,
                color=COLORS[bar.model % len(COLORS)],
                alpha=1.0 if busy else 0.45,
                linewidth=0,
            )
    axes.set_yticks([-row for row in range(len(runs))], [name for name, _ in runs])
    axes.set(xlabel="s", xlim=(0, end))
    handles = [axes.barh(0, 0, color=COLORS[m % len(COLORS)], label=name) for m, name in enumerate(models)]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncol=len(models), frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
