"""Pictures of the validation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from . import loading
from .decode import terms
from .evidence import Error, Evidence
from .work import Unusable, Work, work

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, told apart by colour-blind eyes too"""


STYLE: Any = {"font.size": 8, "axes.titlesize": 8, "axes.spines.top": False, "axes.spines.right": False}


SIZES = (3, 8, 14, 32, 70)


def draw(found: Evidence, errors: dict[str, dict[str, list[Error]]], out: Path) -> list[Path]:
    """Write every picture into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figures = {
            "measured_predicted": measured_against_predicted(errors),
            "sweeps": sweeps(found),
            "loads": loads(found),
            "residuals": residuals(errors),
        }
        for name, figure in figures.items():
            figure.savefig(out / f"{name}.png", dpi=130, metadata={"Software": None})
    return [out / f"{name}.png" for name in figures]


def _scatter(axes: Any, errors: Sequence[Error], label: str, color: str) -> None:
    measured = np.array([_rate(item) for item, _ in errors])
    predicted = measured / (1 + np.array([error for _, error in errors]))
    axes.scatter(measured, predicted, s=9, alpha=0.6, label=f"{label} ({len(errors)})", color=color, linewidths=0)


def _rate(item: Work) -> float:
    return item.row.value


def measured_against_predicted(errors: dict[str, dict[str, list[Error]]]) -> Figure:
    """Tokens/s measured, and predicted without the row's model or GPU."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    for axes, operation in zip(figure.subplots(1, 2), ("decode", "prefill"), strict=True):
        for kind, color in (("one GPU", COLORS[1]), ("one model", COLORS[0])):
            name = next(n for n in errors if n.startswith(f"{operation}, {kind}"))
            rows = [e for part, es in errors[name].items() if part != "all discrete GPUs" for e in es]
            _scatter(axes, rows, f"{kind} left out", color)
        rates = [item.row.value for part in errors[name].values() for item, _ in part]
        line = np.array([0.8 * min(rates), 1.25 * max(rates)])
        axes.plot(line, line, color="0.3", lw=0.8)
        axes.fill_between(line, line * 0.8, line * 1.25, color="0.9", zorder=0, label="within 25 %")
        axes.set(xscale="log", yscale="log", xlabel=f"measured {operation}, tokens/s", ylabel="predicted, tokens/s")
        axes.legend(frameon=False, loc="upper left")
    return figure


def sweeps(found: Evidence) -> Figure:
    """Decode rate over what is on the GPU: points measured, lines fitted."""
    series = dict.fromkeys(i.row.series for i in found.decodes if i.row.series.startswith("S"))
    chosen = [s for s in series if sum(i.row.series == s for i in found.decodes) >= 3]
    columns = 4
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(11, 2.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, name in zip(grid, chosen, strict=False):
        items = [i for i in found.decodes if i.row.series == name]
        for depth, color in zip(dict.fromkeys(i.row.depth for i in items), COLORS, strict=False):
            own = [i for i in items if i.row.depth == depth]
            share = [_resident(i) for i in own]
            axes.plot(share, [i.row.value for i in own], "o", color=color, ms=4, label="measured")
        curve = _between(items[0], found)
        rates = [1 / found.decode.seconds(terms(i, found.specs)) for i in curve]
        axes.plot([_resident(i) for i in curve], rates, "-", color=COLORS[1], lw=1.2, label="fitted")
        axes.set_title(f"{name}: {items[0].model.name}\n{items[0].row.gpu}", fontsize=7)
        axes.set(ylim=(0, None), xlim=(-0.03, 1.03))
    for axes in list(figure.axes)[len(chosen) :]:
        axes.set_axis_off()
    figure.axes[0].legend(frameon=False)
    figure.supxlabel("share of the weights read in a step that is on the GPU", fontsize=8)
    figure.supylabel("decode, tokens/s", fontsize=8)
    return figure


def _between(item: Work, found: Evidence) -> list[Work]:
    """The same run with every number of layers (or of layers' experts) on the GPU."""
    layers = item.model.architecture.layers
    if item.model.architecture.experts:
        rows = [replace(item.row, n_cpu_moe=n) for n in range(layers + 1)]
    else:
        rows = [replace(item.row, n_gpu_layers=n) for n in range(layers + 2)]
    found_work = []
    for row in rows:
        with suppress(Unusable):
            found_work.append(work(row, found.specs))
    return sorted(found_work, key=_resident)


def _resident(item: Work) -> float:
    here, there = item.here.read + item.here.head, item.there.read + item.there.head
    return here / (here + there)


def loads(found: Evidence) -> Figure:
    """Load times of nine models over their size, and what each law says of them."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    kinds = (("page_cache", "read"), ("disk", "read"), ("disk", "direct I/O"))
    for axes, (tier, how) in zip(figure.subplots(1, 3, sharey=True), kinds, strict=True):
        rows = sorted(loading.own_loads(found.rows, tier, how), key=lambda pair: pair[0].size_bytes or 0)
        law, _ = loading.linear_law([(work, row.value) for row, work in rows])
        size = np.array([(row.size_bytes or 0) / 1e9 for row, _ in rows])
        axes.plot(size, [row.value for row, _ in rows], "o", color=COLORS[0], ms=5, label="measured")
        axes.plot(size, [loading.seconds(work, law) for _, work in rows], "x", color=COLORS[1], ms=6, label="law")
        error = float(np.mean(np.abs(loading.leave_one_out(rows))))
        cache = {"page_cache": "from the page cache", "disk": "from disk"}[tier]
        axes.set_title(f"{how}, {cache}: {error:.1%} left out", fontsize=8)
        axes.set(xscale="log", yscale="log", xlabel="file, GB")
    figure.axes[0].set_ylabel("load, s")
    figure.axes[0].legend(frameon=False)
    return figure


def residuals(errors: dict[str, dict[str, list[Error]]]) -> Figure:
    """Error without the row's model over the model's parameters."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, operation in zip(figure.subplots(1, 2, sharey=True), ("decode", "prefill"), strict=True):
        parts = errors[f"{operation}, one model left out (known GPU)"]
        names = [name for name in parts if name != "all discrete GPUs" and parts[name]]
        for name, color in zip(names, COLORS, strict=False):
            size = [item.model.params / 1e9 for item, _ in parts[name]]
            axes.scatter(
                size, [100 * e for _, e in parts[name]], s=10, alpha=0.6, label=name, color=color, linewidths=0
            )
        axes.axhline(0, color="0.3", lw=0.8)
        axes.set(xscale="log", xlabel="parameters, 10^9", title=f"{operation}, one model left out")
        axes.set_xticks(SIZES, [str(size) for size in SIZES])
        axes.set_xticks([], minor=True)
        axes.legend(frameon=False)
    figure.axes[0].set_ylabel("predicted time over measured, less 1, %")
    return figure
