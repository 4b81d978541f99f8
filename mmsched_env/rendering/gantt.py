"""The episode as a Gantt chart: GPU slots over time, and below it the waiting queue (matplotlib)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core import Simulation
from ..errors import ConfigError
from .timeline import Activity, Interval, Timeline, timeline

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito's palette, told apart by colour-blind readers, then two of Paul Tol's; a model keeps its colour by index.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#882255", "#332288", "#999933")
GREY = "#b8b8b8"
INK = "#333333"
MIN_SPAN_S = 10.0
"""the time axis is never shorter, so that the first frames of a video are readable"""

DPI = 100
WIDTH = 1280
LANE = 26  # pixels of a slot's lane
QUEUE = 120  # pixels of the queue's axes
LEFT, RIGHT, TOP, BOTTOM, BETWEEN = 150, 200, 36, 44, 14  # margins, pixels
GROUP_GAP = 0.5  # lanes between two GPUs
BAR = 0.78  # lanes
SAVE_MARK, RESTORE_MARK = "^", "v"
TEXT = 8.0  # points
LETTER = 5.6  # pixels a letter of that size takes, about


def gantt_figure(
    simulation: Simulation,
    env: int,
    start_s: float | None = None,
    end_s: float | None = None,
    width: int = WIDTH,
    height: int | None = None,
) -> Figure:
    """Chart of environment `env` between two times, by default from the first event to the present clock.

    Parameters
    ----------
    width, height
        Pixels. The default height follows from the number of instance slots and does not change in an episode.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    MmschedError
        The simulation keeps no event log.
    """
    story = timeline(simulation, env)
    start = story.start_s if start_s is None else start_s
    end = max(story.end_s if end_s is None else end_s, start + MIN_SPAN_S)
    names = _Names.of(simulation)
    layout = _Layout(width, height or default_height(names), start, end)
    figure, lanes, queue = _axes(layout)
    _draw_lanes(lanes, names, layout)
    _draw_bars(lanes, story, names, layout)
    _draw_transfers(lanes, story, names)
    _draw_labels(lanes, story, names, layout)
    _draw_queue(queue, story, names, layout)
    _draw_legend(figure, names, layout)
    for axes in (lanes, queue):
        axes.axvline(story.end_s, color=INK, linewidth=0.8, linestyle=":", zorder=1)  # the present
    lanes.set_title(_headline(simulation, env), loc="left", fontsize=10, color=INK)
    return figure


def gantt_array(
    simulation: Simulation,
    env: int,
    start_s: float | None = None,
    end_s: float | None = None,
    width: int = WIDTH,
    height: int | None = None,
) -> NDArray[np.uint8]:
    """`gantt_figure` as an image, uint8 (height, width, 3); of the same size throughout an episode."""
    figure = gantt_figure(simulation, env, start_s, end_s, width, height)
    canvas: Any = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def default_height(names: _Names) -> int:
    """Pixels, enough for lanes and legend; even, as video encoders ask."""
    lanes = TOP + round(LANE * len(names.gpus) * (names.slots + GROUP_GAP)) + BETWEEN + QUEUE + BOTTOM
    legends = TOP + _legend_height(len(names.models)) + _legend_height(len(MARKS))
    return 2 * ((max(lanes, legends) + 1) // 2)


# ---------------------------------------------------------------- what is drawn, and where


@dataclass(frozen=True)
class _Names:
    """Words and sizes of a configuration."""

    gpus: tuple[str, ...]
    gpu_gb: tuple[float, ...]
    slots: int
    models: tuple[str, ...]
    units: NDArray[np.int64]  # [M] layers + head
    units_on_gpu: NDArray[np.int64]  # [M, K]

    @classmethod
    def of(cls, simulation: Simulation) -> _Names:
        params = simulation.params[0]
        gpus = simulation.config.cluster.gpus
        return cls(
            gpus=gpus,
            gpu_gb=tuple(float(params["gpu_bytes"][g]) / 1e9 for g in range(len(gpus))),
            slots=simulation.dims.S,
            models=simulation.config.models.names,
            units=params["num_units"],
            units_on_gpu=params["units_on_gpu"],
        )

    @property
    def num_lanes(self) -> int:
        return len(self.gpus) * self.slots

    def share(self, model: int, level: int) -> float:
        """Share of the model's units on the GPU at a level."""
        return float(self.units_on_gpu[model, level] / self.units[model])

    def bottom(self, instance: int) -> float:
        """Lower edge of an instance's bar; the first GPU is at the top."""
        gpu, slot = divmod(instance, self.slots)
        return -(gpu * (self.slots + GROUP_GAP) + slot) - 0.5 * BAR


@dataclass(frozen=True)
class _Layout:
    """Pixels and seconds."""

    width: int
    height: int
    start_s: float
    end_s: float

    @property
    def pixels_per_s(self) -> float:
        return (self.width - LEFT - RIGHT) / (self.end_s - self.start_s)

    def box(self, bottom: int, top: int) -> tuple[float, float, float, float]:
        """Axes between two heights in pixels, as matplotlib's fractions (left, bottom, width, height)."""
        inner = self.width - LEFT - RIGHT
        return LEFT / self.width, bottom / self.height, inner / self.width, (top - bottom) / self.height


class _Style(NamedTuple):
    """How a bar, or a part of it, is filled; a colour of None is the model's."""

    fill: str | None
    strength: float
    """of the fill: 1 full colour, 0 white"""
    hatch: str = ""
    edge: str | None = None


ON_GPU = {Activity.BUSY: _Style(None, 1.0), Activity.IDLE: _Style(None, 0.3)}
IN_RAM = {Activity.BUSY: _Style(None, 0.0, "....."), Activity.IDLE: _Style(None, 0.0)}
WHOLE = {
    Activity.LOADING: _Style(None, 0.0, "/////"),
    Activity.UNLOADING: _Style(GREY, 1.0, edge="#555555"),
    Activity.RESIZING: _Style(None, 0.0, "xxxxx"),
}


def _axes(layout: _Layout) -> tuple[Figure, Axes, Axes]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("the Gantt chart needs matplotlib: pip install 'mmsched-env[render]'") from error
    # Half a pixel keeps the rasteriser from rounding the size down.
    figure = Figure(figsize=((layout.width + 0.5) / DPI, (layout.height + 0.5) / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    lanes = figure.add_axes(layout.box(BOTTOM + QUEUE + BETWEEN, layout.height - TOP))
    queue = figure.add_axes(layout.box(BOTTOM, BOTTOM + QUEUE), sharex=lanes)
    for axes in (lanes, queue):
        axes.set_xlim(layout.start_s, layout.end_s)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=TEXT, color=INK, labelcolor=INK)
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, lanes, queue


def _shade(color: str, strength: float) -> tuple[float, float, float]:
    """The colour mixed with white."""
    from matplotlib.colors import to_rgb

    red, green, blue = (1 - strength + strength * part for part in to_rgb(color))
    return red, green, blue


def model_color(model: int) -> str:
    """Colour of a model by its index, the same in every picture."""
    return PALETTE[model % len(PALETTE)]


# ---------------------------------------------------------------- GPU slots


def _draw_lanes(axes: Axes, names: _Names, layout: _Layout) -> None:
    """Axis labels and a pale band a GPU."""
    axes.set_ylim(names.bottom(names.num_lanes - 1) - 0.5 * (1 - BAR), 0.5)
    axes.set_yticks([names.bottom(i) + 0.5 * BAR for i in range(names.num_lanes)])
    axes.set_yticklabels([str(i % names.slots) for i in range(names.num_lanes)])
    axes.tick_params(axis="x", labelbottom=False, length=0)
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    aside = -24 / (layout.width - LEFT - RIGHT)
    for g, (name, gb) in enumerate(zip(names.gpus, names.gpu_gb, strict=True)):
        top = names.bottom(g * names.slots) + 0.5 * (1 + BAR)
        axes.axhspan(top - names.slots, top, color="#f4f5f7", linewidth=0, zorder=0)
        axes.text(
            aside,
            top - 0.5 * names.slots,
            f"GPU {g}\n{name}\n{gb:.1f} GB",
            transform=axes.get_yaxis_transform(),
            horizontalalignment="right",
            verticalalignment="center",
            fontsize=TEXT,
            color=INK,
        )


Rectangle = tuple[float, float, float, float]  # start_s, end_s, bottom, top


def _draw_bars(axes: Axes, story: Timeline, names: _Names, layout: _Layout) -> None:
    """Every interval in sight; bars of one look are one artist, which keeps long episodes fast."""
    looks: dict[tuple[_Style, int], list[Rectangle]] = defaultdict(list)
    for interval in story.intervals:
        if interval.end_s < layout.start_s or interval.start_s > layout.end_s:
            continue
        for style, rectangle in _parts(interval, names):
            looks[style, interval.model].append(rectangle)
    for (style, model), rectangles in looks.items():
        _add_bars(axes, rectangles, style, model)


def _parts(interval: Interval, names: _Names) -> Iterator[tuple[_Style, Rectangle]]:
    """A loaded model's bar has two parts: as high as the share of its layers on the GPU, and the rest in host RAM."""
    start, end, activity = interval.start_s, interval.end_s, interval.activity
    bottom = names.bottom(interval.instance)
    top = bottom + BAR
    if activity in WHOLE:
        yield WHOLE[activity], (start, end, bottom, top)
        return
    middle = bottom + BAR * names.share(interval.model, interval.level)
    if middle > bottom:
        yield ON_GPU[activity], (start, end, bottom, middle)
    if middle < top:
        yield IN_RAM[activity], (start, end, middle, top)


def _add_bars(axes: Axes, rectangles: Iterable[Rectangle], style: _Style, model: int) -> None:
    from matplotlib.collections import PolyCollection

    own = model_color(model)
    corners = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, x1, y0, y1 in rectangles]
    axes.add_collection(
        PolyCollection(
            corners,
            facecolor=_shade(style.fill or own, style.strength),
            edgecolor=style.edge or own,
            hatch=style.hatch or None,
            linewidth=0.6,
            zorder=2,
        ),
        autolim=False,
    )


def _draw_transfers(axes: Axes, story: Timeline, names: _Names) -> None:
    """A black line on the bar's edge, above for a save, below for a restore; marked, as most take milliseconds."""
    for transfer in story.transfers:
        edge = names.bottom(transfer.instance) + (BAR if transfer.is_save else 0.0)
        axes.plot([transfer.start_s, transfer.end_s], [edge, edge], color="black", linewidth=2, zorder=4)
        marker = SAVE_MARK if transfer.is_save else RESTORE_MARK
        axes.plot([transfer.start_s], [edge], color="black", marker=marker, markersize=3.5, zorder=4)


def _draw_labels(axes: Axes, story: Timeline, names: _Names, layout: _Layout) -> None:
    """Model and layers on the GPU, once for each stay at one level, as far as there is room."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.2, foreground="white")]
    for _, stay in groupby(story.intervals, key=lambda i: (i.instance, i.model, i.level, i.activity in ON_GPU)):
        intervals = list(stay)
        first, last = intervals[0], intervals[-1]
        start, end = max(first.start_s, layout.start_s), min(last.end_s, layout.end_s)
        text = _label(first, names, (end - start) * layout.pixels_per_s)
        if first.activity in ON_GPU and text:
            axes.text(
                start + 4 / layout.pixels_per_s,
                names.bottom(first.instance) + 0.46 * BAR,
                text,
                fontsize=TEXT,
                color="black",
                verticalalignment="center",
                path_effects=halo,
                clip_on=True,
                zorder=5,
            )


def _label(interval: Interval, names: _Names, pixels: float) -> str:
    """The longest of: model and offload, offload, nothing, that fits."""
    units, on_gpu = int(names.units[interval.model]), int(names.units_on_gpu[interval.model, interval.level])
    offload = f"{on_gpu}/{units}" if on_gpu < units else ""
    for text in (f"{names.models[interval.model]} {offload}".strip(), offload):
        if LETTER * len(text) + 8 <= pixels:
            return text
    return ""


# ---------------------------------------------------------------- queue, legend, headline


def _draw_queue(axes: Axes, story: Timeline, names: _Names, layout: _Layout) -> None:
    """Waiting requests, stacked by model."""
    from matplotlib.ticker import MaxNLocator

    queued = story.queued
    times = np.concatenate([[layout.start_s], queued.times_s, [story.end_s]])
    nobody = np.zeros((1, queued.values.shape[1]), queued.values.dtype)
    values = np.vstack([nobody, queued.values])
    values = np.vstack([values, values[-1:]])[:, : len(names.models)]
    colors = [_shade(model_color(m), 0.85) for m in range(len(names.models))]
    axes.stackplot(times, values.T, colors=colors, step="post", linewidth=0)
    seen = (times >= layout.start_s) & (times <= layout.end_s)
    axes.set_ylim(0, max(5.0, 1.1 * values[seen].sum(axis=1).max(initial=0)))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_ylabel("waiting requests", fontsize=TEXT, color=INK)
    axes.set_xlabel("time (s)", fontsize=TEXT, color=INK)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)


MARKS = (
    (ON_GPU[Activity.BUSY], "busy"),
    (IN_RAM[Activity.BUSY], "busy, in host RAM"),
    (ON_GPU[Activity.IDLE], "loaded, idle"),
    (WHOLE[Activity.LOADING], "loading"),
    (WHOLE[Activity.RESIZING], "changing level"),
    (WHOLE[Activity.UNLOADING], "saving KV, unloading"),
    (SAVE_MARK, "KV save"),
    (RESTORE_MARK, "KV restore"),
)


def _draw_legend(figure: Figure, names: _Names, layout: _Layout) -> None:
    models = [_sample(ON_GPU[Activity.BUSY], model_color(m), name) for m, name in enumerate(names.models)]
    marks = [_sample(look, INK, label) for look, label in MARKS]
    left = layout.width - RIGHT + 10
    top = layout.height - TOP + 6
    for title, handles in (("model", models), ("bar height: layers on the GPU", marks)):
        legend = figure.legend(
            handles=handles,
            title=title,
            loc="upper left",
            bbox_to_anchor=(left / layout.width, top / layout.height),
            frameon=False,
            fontsize=TEXT,
            title_fontsize=TEXT,
            labelcolor=INK,
            alignment="left",
            borderaxespad=0,
        )
        legend.get_title().set_color(INK)
        top -= _legend_height(len(handles))


def _legend_height(entries: int) -> int:
    """Pixels of a legend and the space below it, about."""
    return 18 * (entries + 1) + 14


def _sample(look: _Style | str, color: str, label: str) -> Artist:
    """Legend entry: a bar of a style, or a line with a marker."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if isinstance(look, str):
        return Line2D([], [], color="black", marker=look, markersize=4, linewidth=2, label=label)
    return Patch(
        facecolor=_shade(look.fill or color, look.strength),
        edgecolor=look.edge or color,
        hatch=look.hatch or None,
        label=label,
    )


def _headline(simulation: Simulation, env: int) -> str:
    s = simulation.state[env]
    return (
        f"t = {s['now']:.1f} s     arrived {s['num_arrived']} of {s['num_requests']}   done {s['num_done']}     "
        f"loads {s['num_loads']}   unloads {s['num_unloads']}   level changes {s['num_resizes']}   "
        f"preempted requests {s['num_preempted']}"
    )
