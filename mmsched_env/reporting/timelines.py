"""One episode of a run played again, as slots over time that one can zoom, policies one above the other (plotly)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..config import EnvConfig, env_config
from ..core import Simulation
from ..evaluation.policies import make_policy
from ..evaluation.rollout import run_episode
from ..rendering.gantt import GREY, PALETTE
from ..rendering.timeline import Activity, Interval, timeline
from ..workload.splits import seed_of
from .run import Run

LANE = 22  # pixels
HATCH = {Activity.LOADING: "/", Activity.UNLOADING: "\\", Activity.RESIZING: "x"}
WORDS = {
    Activity.LOADING: "loading",
    Activity.IDLE: "idle",
    Activity.BUSY: "running",
    Activity.UNLOADING: "unloading",
    Activity.RESIZING: "changing level",
}


@dataclass(frozen=True)
class Played:
    """An episode of one policy."""

    policy: str
    simulation: Simulation


def play(run: Run, scenario: str, policies: Sequence[str], episode: int = 0) -> list[Played]:
    """The same trace under each policy: the run's configuration and seed give it again."""
    parts = {field.name for field in fields(EnvConfig)}
    config = env_config({key: value for key, value in run.config(scenario).items() if key in parts})
    seed = seed_of(run.summary["split"], run.summary["seed"]) + episode
    trace = config.workload.sample(seed, config.models.names)
    played = []
    for label in policies:
        _, policy = make_policy(run.entry(scenario, label))
        simulation = Simulation(config, 1, logging=True)
        run_episode(simulation, policy, trace, seed)
        played.append(Played(label, simulation))
    return played


def timelines(played: Sequence[Played]) -> go.Figure:
    """A panel a policy, a lane an instance slot in use; hover tells what it is, drag zooms all panels together."""
    lanes = [_lanes(one.simulation) for one in played]
    figure = make_subplots(
        rows=len(played),
        shared_xaxes=True,
        vertical_spacing=0.06,
        subplot_titles=[one.policy for one in played],
        row_heights=[max(1, len(mine)) for mine in lanes],
    )
    shown: set[str] = set()
    for row, (one, mine) in enumerate(zip(played, lanes, strict=True), start=1):
        for bars in _bars(one.simulation, mine):
            bars.showlegend = bars.name not in shown
            shown.add(bars.name)
            figure.add_trace(bars, row=row, col=1)
        names = {instance: label for label, instance in mine.items()}
        figure.update_yaxes(categoryorder="array", categoryarray=list(names.values())[::-1], row=row, col=1)
    figure.update_xaxes(title_text="s", row=len(played), col=1)
    figure.update_layout(
        barmode="overlay",
        bargap=0.15,
        height=120 + sum(LANE * max(3, len(mine)) + 40 for mine in lanes),
        margin={"l": 150, "r": 10, "t": 40, "b": 40},
        legend={"orientation": "h", "y": -0.08},
        font={"size": 11},
        template="plotly_white",
    )
    return figure


def _lanes(simulation: Simulation) -> dict[str, int]:
    """Label -> instance, of the slots that were used."""
    used = sorted({interval.instance for interval in timeline(simulation, 0).intervals})
    gpus, slots = simulation.config.cluster.gpus, simulation.dims.S
    return {f"{gpus[i // slots]} #{i // slots}.{i % slots}": i for i in used}


def _bars(simulation: Simulation, lanes: dict[str, int]) -> list[go.Bar]:
    """A series a model and activity: one colour a model, loads hatched, idle pale."""
    label_of = {instance: label for label, instance in lanes.items()}
    groups: dict[tuple[int, Activity], list[Interval]] = {}
    for interval in timeline(simulation, 0).intervals:
        groups.setdefault((interval.model, interval.activity), []).append(interval)
    names, levels = simulation.config.models.names, simulation.config.limits.levels
    bars = []
    for (model, activity), mine in sorted(groups.items()):
        colour = PALETTE[model % len(PALETTE)]
        bars.append(
            go.Bar(
                orientation="h",
                base=[one.start_s for one in mine],
                x=[one.end_s - one.start_s for one in mine],
                y=[label_of[one.instance] for one in mine],
                name=names[model],
                legendgroup=names[model],
                marker={
                    "color": GREY if activity == Activity.UNLOADING else colour,
                    "opacity": 0.3 if activity == Activity.IDLE else 1.0,
                    "pattern": {"shape": HATCH.get(activity, ""), "fgcolor": "white"},
                    "line": {"width": 0},
                },
                customdata=[(WORDS[activity], levels[one.level], one.end_s) for one in mine],
                hovertemplate="%{customdata[0]} "
                + names[model]
                + "<br>%{base:.2f} to %{customdata[2]:.2f} s, level %{customdata[1]:.2f}<extra></extra>",
            )
        )
    return bars
