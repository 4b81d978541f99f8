"""The report's page: everything in one file, no network; and its pictures as PNG beside it."""

from __future__ import annotations

import base64
import html
import io
import os
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from ..evaluation.report import COLUMNS, write_text
from ..rendering.gantt import gantt_figure
from .figures import FIGURES, attainment_against_load, per_group
from .run import Run
from .timelines import play, timelines

PAGE = "report.html"
DPI = 150
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.25em; margin-top: 2.2em; border-bottom: 1px solid #ddd; } h3 { font-size: 1.05em; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: 3px 9px; text-align: right; border-bottom: 1px solid #eee; } th { background: #f6f6f6; }
td:first-child, th:first-child { text-align: left; } figure { margin: 1em 0; } figcaption { color: #555; font-size: 13px; }
img { max-width: 100%; } details { margin: 0.6em 0; } summary { cursor: pointer; color: #0057a8; } code { font-size: 13px; }
"""


def write_report(run: Run, out: Path, num_timelines: int = 2) -> list[Path]:
    """Write the page and its pictures into `out`. Returns the files written, the page first.

    Parameters
    ----------
    num_timelines
        Policies whose first episode is played again and drawn, best mean E2E first; 0: none.
    """
    out.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    body = [_head(run)]
    loads = attainment_against_load(run)
    if loads is not None:
        body.append(_picture(loads, attainment_against_load.__doc__, out / "slo-attainment-against-load.png", files))
    for scenario in run.scenarios:
        body.append(_scenario(run, scenario, out, files, num_timelines))
    script = f"<script>{get_plotlyjs()}</script>" if num_timelines else ""
    title = html.escape(f"mmsched: {run.folder.name}")
    page = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    page += f"<style>{STYLE}</style>{script}</head><body>{''.join(body)}</body></html>\n"
    write_text(out / PAGE, page)
    return [out / PAGE, *files]


def _head(run: Run) -> str:
    revision = run.summary["revision"]
    facts = {
        "version": f"{revision['mmsched_env']} ({revision['git'] or 'not a checkout'})",
        "seeds": f"{run.summary['split']} split, from {run.summary['seed']}",
        "scenarios": ", ".join(run.scenarios),
    }
    rows = "".join(f"<tr><td>{key}</td><td>{html.escape(value)}</td></tr>" for key, value in facts.items())
    note = "All figures are simulated. Every policy met the same traces; intervals are 95 % bootstrap intervals over traces."
    return f"<h1>{html.escape(str(run.folder))}</h1><p>{note}</p><table>{rows}</table>"


def _scenario(run: Run, scenario: str, out: Path, files: list[Path], num_timelines: int) -> str:
    result = run.summary["scenarios"][scenario]
    parts = [f'<h2 id="{html.escape(scenario)}">{html.escape(scenario)}</h2>']
    parts.append(f"<p>Mean over {result['episodes']} traces.</p>{_table(_means(result, run.policies))}")
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in scenario)
    for name, draw in FIGURES.items():
        parts.append(_picture(draw(run, scenario), draw.__doc__, out / f"{stem}-{name}.png", files))
    for key, words in (("model", "By model"), ("slo_class", "By class"), ("tenant", "By tenant")):
        if run.of(scenario)[key].nunique() > 1:
            parts.append(f"<details><summary>{words}</summary>{_table(per_group(run, scenario, key))}</details>")
    if num_timelines:
        parts.append(_timelines(run, scenario, out, stem, files, num_timelines))
    return "".join(parts)


def _means(result: dict[str, Any], policies: list[str]) -> pd.DataFrame:
    rows = [
        {"policy": policy, **{column: form.format(_number(row[column])) for column, form in COLUMNS.items()}}
        for policy, row in ((policy, result["mean"][policy]) for policy in policies)
    ]
    return pd.DataFrame(rows)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _timelines(run: Run, scenario: str, out: Path, stem: str, files: list[Path], count: int) -> str:
    means = run.summary["scenarios"][scenario]["mean"]
    best = sorted(run.policies, key=lambda policy: _number(means[policy]["mean_e2e_ms"]))[:count]
    played = play(run, scenario, best)
    for one in played:
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in one.policy)
        files.append(out / f"{stem}-timeline-{name}.png")
        _save(gantt_figure(one.simulation, 0), files[-1])
    caption = "The first trace under the best policies: slots over time; hatched: loading, pale: idle. Drag to zoom, double-click to zoom out."
    div = timelines(played).to_html(include_plotlyjs=False, full_html=False, div_id=f"timelines-{stem}")
    return f"<h3>Timelines</h3><figcaption>{caption}</figcaption>{div}"


def _picture(figure: Figure, words: str | None, path: Path, files: list[Path]) -> str:
    """Save the picture, and give it for the page as SVG in a data address."""
    _save(figure, path, dpi=DPI)
    files.append(path)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    data = base64.b64encode(drawn.getvalue().encode()).decode()
    text = html.escape((words or "").splitlines()[0])
    return f'<figure><img alt="{text}" src="data:image/svg+xml;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _save(figure: Figure, path: Path, **how: Any) -> None:
    """As PNG, atomically."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(temporary, format="png", metadata={"Software": None}, **how)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _table(frame: pd.DataFrame) -> str:
    return str(frame.to_html(index=False, border=0, float_format=lambda x: f"{x:.3g}", na_rep=""))
