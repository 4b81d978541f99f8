"""Pictures over all requests of a scenario: each function draws one, and says in its first line what it shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..rendering.gantt import INK, PALETTE
from .run import Run

WIDTH, HEIGHT = 8.6, 3.4  # inches
SCALES = np.geomspace(0.25, 8, 41)
"""factors on every target, for attainment against SLO scale"""

_PLAIN = FuncFormatter(lambda x, _: f"{x:g}")

mpl.rcParams["svg.hashsalt"] = "mmsched"  # the same picture, the same bytes


def leaderboard(run: Run, scenario: str) -> Figure:
    """Mean E2E of each policy over the traces, and the difference from the first policy, 95 % interval."""
    result, policies = run.summary["scenarios"][scenario], run.policies
    figure, (left, right) = _axes(2, height=0.9 + 0.32 * len(policies))
    rows = np.arange(len(policies))[::-1]
    found = [result["mean"][p]["mean_e2e_ms"] for p in policies]
    means = [0.0 if mean is None else mean / 1e3 for mean in found]  # None: no request was finished
    left.barh(rows, means, color=_colours(len(policies)))
    for y, value, mean in zip(rows, means, found, strict=True):
        words = " none finished" if mean is None else f" {value:.1f}"
        left.text(value, y, words, va="center", fontsize=8, color=INK)
    left.set_yticks(rows, policies)
    left.set_xlabel("mean E2E, s")
    left.margins(x=0.15)
    for y, policy, colour in list(zip(rows, policies, _colours(len(policies)), strict=True))[1:]:
        d = result["mean_e2e_ms_difference"][policy]
        if d["mean"] is None:
            continue
        low, high = (d["mean"] if d[key] is None else d[key] for key in ("low", "high"))
        right.plot([low / 1e3, high / 1e3], [y, y], color=colour, linewidth=2)
        right.plot(d["mean"] / 1e3, y, "o", color=colour)
    right.axvline(0, color=INK, linewidth=0.8)
    right.set_yticks(rows, [""] * len(rows))
    right.set_ylim(*left.get_ylim())
    right.set_xlabel(f"against {policies[0]} on the same traces, s")
    return figure


def latency_cdf(run: Run, scenario: str) -> Figure:
    """Share of the requests that had their first and their last token within a time."""
    figure, axes = _axes(2)
    for ax, column, words in zip(axes, ("ttft_s", "e2e_s"), ("TTFT, s", "E2E, s"), strict=True):
        for policy, colour in _each(run):
            rows = run.of(scenario, policy)
            seconds = np.sort(rows[column].to_numpy())  # NaN, for what never came, at the end
            share = np.arange(1, len(seconds) + 1) / max(1, int(rows["arrived"].sum()))
            ax.step(np.maximum(seconds, 1e-3), share, where="post", color=colour, label=policy)
        ax.set_xscale("log")
        ax.set_xlabel(words)
        ax.set_ylim(0, 1.02)
    axes[0].set_ylabel("share of requests")
    _legend(axes[1])
    return figure


def slo_scale(run: Run, scenario: str) -> Figure:
    """SLO attainment if every target were this many times as long."""
    figure, (ax,) = _axes(1)
    for policy, colour in _each(run):
        rows = run.of(scenario, policy)
        arrived = max(1, int(rows["arrived"].sum()))
        need = np.maximum(
            *(rows[f"{name}_s"].to_numpy() / rows[f"slo_{name}_s"].to_numpy() for name in ("e2e", "ttft"))
        )
        ax.plot(SCALES, [np.sum(need <= scale) / arrived for scale in SCALES], color=colour, label=policy)
    ax.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(_PLAIN)
    ax.set_xlabel("SLO scale")
    ax.set_ylabel("SLO attainment")
    ax.set_ylim(0, 1.02)
    _legend(ax)
    return figure


def fairness(run: Run, scenario: str) -> Figure:
    """Mean slowdown of each model's and each tenant's requests: even bars are fair."""
    keys = [key for key in ("model", "slo_class", "tenant") if run.of(scenario)[key].nunique() > 1] or ["model"]
    figure, axes = _axes(len(keys))
    policies = run.policies
    for ax, key in zip(axes, keys, strict=True):
        table = run.of(scenario).groupby([key, "policy"])["slowdown"].mean().unstack().reindex(columns=policies)
        width = 0.8 / len(policies)
        for at, (policy, colour) in enumerate(_each(run)):
            ax.bar(
                np.arange(len(table)) + (at - (len(policies) - 1) / 2) * width,
                table[policy],
                width,
                color=colour,
                label=policy,
            )
        ax.set_xticks(
            range(len(table)), [_name(run, scenario, key, int(value)) for value in table.index], rotation=30, ha="right"
        )
        if table.notna().any(axis=None):
            ax.set_yscale("log")
        ax.yaxis.set_major_formatter(_PLAIN)
        ax.yaxis.set_minor_formatter(_PLAIN)
        ax.set_title(key, fontsize=9, loc="left")
    axes[0].set_ylabel("mean slowdown")
    _legend(axes[-1])
    return figure


def operations(run: Run, scenario: str) -> Figure:
    """Loads, unloads, preempted requests and changes of level, mean per trace."""
    names = ("loads", "unloads", "preemptions", "offloads")
    figure, (ax,) = _axes(1)
    policies = run.policies
    width = 0.8 / len(policies)
    for at, (policy, colour) in enumerate(_each(run)):
        counts = [run.summary["scenarios"][scenario]["mean"][policy][name] for name in names]
        bars = ax.bar(
            np.arange(len(names)) + (at - (len(policies) - 1) / 2) * width, counts, width, color=colour, label=policy
        )
        ax.bar_label(bars, fmt="%.3g", fontsize=6, color=INK)
    ax.set_xticks(range(len(names)), names)
    ax.set_ylabel("per trace")
    _legend(ax)
    return figure


FIGURES: dict[str, Callable[[Run, str], Figure]] = {
    "leaderboard": leaderboard,
    "latency": latency_cdf,
    "slo-scale": slo_scale,
    "fairness": fairness,
    "operations": operations,
}
"""file name -> picture of one scenario"""


def attainment_against_load(run: Run) -> Figure | None:
    """SLO attainment against offered load, over the scenarios that state one; None if fewer than two loads do."""
    points = [(float(rho), s) for s in run.scenarios if (rho := run.config(s)["workload"].get("rho")) is not None]
    if len({rho for rho, _ in points}) < 2:
        return None
    figure, (ax,) = _axes(1)
    for policy, colour in _each(run):
        mine = sorted((rho, _mean(run, s, policy, "slo_attainment")) for rho, s in points)
        ax.plot(*zip(*mine, strict=True), "o", color=colour, label=policy, alpha=0.8)
    ax.set_xlabel("offered load (a point a scenario)")
    ax.set_ylabel("SLO attainment")
    ax.set_ylim(0, 1.02)
    _legend(ax)
    return figure


def per_group(run: Run, scenario: str, key: str) -> pd.DataFrame:
    """Requests, mean and p99 TTFT and E2E in seconds, and SLO attainment, by policy and `key` (model, slo_class or tenant)."""
    grouped = run.of(scenario).groupby(["policy", key], sort=False)
    table = pd.DataFrame(
        {
            "requests": grouped["request"].count(),
            "mean TTFT, s": grouped["ttft_s"].mean(),
            "p99 TTFT, s": grouped["ttft_s"].quantile(0.99),
            "mean E2E, s": grouped["e2e_s"].mean(),
            "p99 E2E, s": grouped["e2e_s"].quantile(0.99),
            "SLO attainment": grouped["slo_met"].mean(),
        }
    ).reset_index()
    table[key] = [_name(run, scenario, key, int(value)) for value in table[key]]
    return table


# ---------------------------------------------------------------- shared


def _mean(run: Run, scenario: str, policy: str, name: str) -> float:
    return float(run.summary["scenarios"][scenario]["mean"][policy][name])


def _name(run: Run, scenario: str, key: str, value: int) -> str:
    if key == "model":
        return str(run.config(scenario)["models"]["names"][value])
    return f"{'class' if key == 'slo_class' else key} {value}"


def _colours(count: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def _each(run: Run) -> list[tuple[str, str]]:
    return list(zip(run.policies, _colours(len(run.policies)), strict=True))


def _axes(columns: int, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes: Any = figure.subplots(1, columns, squeeze=False)
    for ax in axes[0]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure, list(axes[0])


def _legend(ax: Axes) -> None:
    ax.legend(fontsize=7, frameon=False)
