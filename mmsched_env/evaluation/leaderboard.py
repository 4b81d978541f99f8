"""`mmsched leaderboard RUN ...`: a Markdown page about runs of `mmsched evaluate`, every policy against one of them.

Figures of several runs (look-ahead on fewer traces, say) come together: a policy is compared with the reference on the traces
that both have met.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..files import writable
from ..hydra_app import with_one_line_errors
from .policies import policy_names
from .report import write_text
from .stats import Difference, holm, interquartile_mean, p_value, paired_difference, probability_of_improvement
from .tuned import LOOK_AHEAD

KEY = "weighted_mean_e2e_ms"
SUMMARY = "summary.json"
BEST = "best-rule"
"""as the reference: in each scenario the rule of the least E2E on the most traces. Chosen by the traces that it is then compared
on, which is to its advantage."""
ABOUT = (
    "Simulated. *E2E*: mean seconds from arrival to last token, weighted by class, with its 95 % interval. *IQM*: mean of the middle "
    "half of the traces. *SLO*: share of requests that met their targets. *Difference*: paired, on the same traces, with its "
    "95 % interval. *P(better)*: share of traces on which it was lower, ties half. *p*: sign-flip test, corrected for the number of scenarios "
    "(Holm). *Gap*: E2E over a lower bound that leaves out switching (`mmsched_env/bounds/fluid.py`), so the gap to the optimum is at most this. "
    "*Decision*: wall-clock microseconds of a decision, observation to action, median and 99th percentile."
)


@dataclass(frozen=True)
class Row:
    """A policy in a scenario."""

    traces: int
    mean: Difference
    iqm: float
    slo: float
    loads: float
    gap: float
    decision_us: tuple[float, float]
    against: Difference | None
    """None: the reference itself"""
    ratio: float
    """of its mean to the reference's on the same traces"""
    p_better: float
    p: float


def rows_of(runs: Sequence[dict[str, Any]], reference: str) -> dict[str, dict[str, Row]]:
    """Scenario -> policy -> its row, the best first.

    Raises
    ------
    ConfigError
        Runs of other seeds, a policy twice, or a scenario without the reference.
    """
    if len({(run["split"], run["seed"], run["warmup"]) for run in runs}) > 1:
        raise ConfigError("the runs are not of the same split, seed and warmup; accepted: runs on the same traces")
    table: dict[str, dict[str, Row]] = {}
    for name in dict.fromkeys(name for run in runs for name in run["scenarios"]):
        parts = [run["scenarios"][name] for run in runs if name in run["scenarios"]]
        compared = _best_rule(parts) if reference == BEST else reference
        found = next((part for part in parts if compared in part["mean"]), None)
        if found is None:
            raise ConfigError(f"policy '{compared}' is in no run of {name}; accepted: {', '.join(parts[0]['mean'])}")
        labels = [label for part in parts for label in part["mean"]]
        if len(set(labels)) < len(labels):
            raise ConfigError(f"a policy is in two runs of {name}: {', '.join(labels)}; accepted: each once")
        base = _values(found, compared, KEY).mean(axis=0)
        bounds = max((part["lower_bound_ms"] or [] for part in parts), key=len)
        mine = {label: _row(part, label, base, bounds, label == compared) for part in parts for label in part["mean"]}
        table[name] = dict(sorted(mine.items(), key=lambda item: item[1].ratio))
    _correct(table)
    return table


def _best_rule(parts: Sequence[dict[str, Any]]) -> str:
    """Label of the best policy that neither looks ahead nor has learned; empty: there is none."""
    rules = set(policy_names()) - set(LOOK_AHEAD)
    means = {}
    for part in parts:
        for label, entry in part["entries"].items():
            if (entry if isinstance(entry, str) else entry["name"]) in rules:
                values = _values(part, label, KEY)
                means[label] = (-values.shape[1], float(values.mean()))
    return min(means, key=means.__getitem__, default="")


def _row(part: dict[str, Any], label: str, base: NDArray[np.float64], bounds: list[float], same: bool) -> Row:
    ours = _values(part, label, KEY)
    count = min(ours.shape[1], len(base))
    over, base = ours[:, :count], base[:count]
    bound = float(np.mean(bounds[: ours.shape[1]])) if bounds else float("nan")
    decision = part["decision_us"][label]
    return Row(
        traces=ours.shape[1],
        mean=paired_difference(ours, np.zeros(ours.shape[1])),
        iqm=interquartile_mean(ours),
        slo=float(_values(part, label, "slo_attainment").mean()),
        loads=float(_values(part, label, "loads_per_100").mean()),
        gap=float(ours.mean()) / bound - 1,
        decision_us=(decision["p50"], decision["p99"]),
        against=None if same else paired_difference(over, base),
        ratio=float(over.mean() / base.mean()),
        p_better=probability_of_improvement(over, base),
        p=float("nan") if same else p_value(over, base),
    )


def _values(part: dict[str, Any], label: str, key: str) -> NDArray[np.float64]:
    return np.array(part["per_episode"][label][key], np.float64)


def _correct(table: dict[str, dict[str, Row]]) -> None:
    """Each policy's p-values for the number of scenarios it was compared in."""
    for label in {label for rows in table.values() for label in rows}:
        where = [name for name, rows in table.items() if label in rows]
        for name, p in zip(where, holm([table[name][label].p for name in where]), strict=True):
            table[name][label] = Row(**vars(table[name][label]) | {"p": p})


def page(runs: Sequence[dict[str, Any]], reference: str) -> str:
    """The page as Markdown."""
    table = rows_of(runs, reference)
    parts = ["# Leaderboard", ABOUT, *_facts(runs), "## All scenarios", _over_all(table, reference)]
    for name, rows in table.items():
        parts += [f"## {name}", _scenario(rows, reference)]
    return "\n\n".join(parts) + "\n"


def _facts(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Of each run: command, version, time, machine, and which policies have other settings than conf/policy says."""
    parts = []
    for run in runs:
        version = f"{run['revision']['mmsched_env']} at {(run['revision']['git'] or 'no checkout')[:12]}"
        entries = [one["entries"].items() for one in run["scenarios"].values()]
        changed = sorted(
            {label for part in entries for label, entry in part if not isinstance(entry, str) and len(entry) > 1}
        )
        parts.append(
            f"```\n{run['command']}\n```\n\nVersion {version}; {run['processor_s']:.0f} s of processor time in the episodes; "
            f"{run['machine']}. Settings other than those of conf/policy (tuned ones: conf/tuned_for), in some scenario at least: "
            f"{', '.join(changed) or 'none'}."
        )
    return parts


def _over_all(table: dict[str, dict[str, Row]], reference: str) -> str:
    """A line a policy: geometric mean of its ratios, and where it is better or worse beyond doubt (p, Holm, below 0.05)."""
    labels = {label for rows in table.values() for label in rows}
    lines = {}
    for label in labels:
        rows = [rows[label] for rows in table.values() if label in rows]
        ratio = float(np.exp(np.mean(np.log([row.ratio for row in rows]))))
        sure = [row for row in rows if row.against is not None and row.p < 0.05]
        better = sum(row.against is not None and row.against.mean < 0 for row in sure)
        gap = np.median([row.gap for row in rows])
        lines[label] = (
            ratio,
            [
                label,
                f"{ratio:.3f}",
                "" if label == reference else f"{better} / {len(sure) - better} of {len(rows)}",
                "" if label == reference else f"{np.mean([row.p_better for row in rows]):.2f}",
                f"{np.mean([row.slo for row in rows]):.3f}",
                f"{100 * gap:.0f} %",
                " / ".join(f"{np.median([row.decision_us[i] for row in rows]):,.0f}" for i in (0, 1)),
            ],
        )
    head = [
        "policy",
        f"E2E / {reference}",
        "better / worse",
        "P(better)",
        "SLO",
        "gap, median",
        "decision us, p50 / p99",
    ]
    return _markdown(head, [line for _, line in sorted(lines.values())])


def _scenario(rows: dict[str, Row], reference: str) -> str:
    head = ["policy", "traces", "E2E, s", "IQM", "SLO", "loads / 100", f"difference to {reference}, s"]
    lines = [
        [
            label,
            str(row.traces),
            _with_interval(row.mean, ""),
            f"{row.iqm / 1e3:.2f}",
            f"{row.slo:.3f}",
            f"{row.loads:.1f}",
            "" if row.against is None else _with_interval(row.against, "+"),
            "" if row.against is None else f"{row.p_better:.2f}",
            "" if row.against is None else f"{row.p:.2g}",
            f"{100 * row.gap:.0f} %",
            " / ".join(f"{us:,.0f}" for us in row.decision_us),
        ]
        for label, row in rows.items()
    ]
    return _markdown([*head, "P(better)", "p", "gap", "decision us, p50 / p99"], lines)


def _with_interval(d: Difference, sign: str) -> str:
    return f"{d.mean / 1e3:{sign}.2f} [{d.low / 1e3:{sign}.2f}, {d.high / 1e3:{sign}.2f}]"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def read_summary(folder: Path) -> dict[str, Any]:
    """The figures of a run. Raises ConfigError where there are none, or of another version."""
    try:
        summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"{folder} has no readable {SUMMARY}; accepted: a folder written by `mmsched evaluate`"
        ) from None
    missing = {"command", "processor_s", "machine", "scenarios"} - set(summary)
    if missing:
        raise ConfigError(
            f"{folder / SUMMARY} has no '{min(missing)}'; accepted: a run of this version: evaluate again"
        )
    return summary


def leaderboard(arguments: Sequence[str]) -> None:
    """Write the page that the arguments ask for."""
    parser = argparse.ArgumentParser(prog="mmsched leaderboard", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders written by `mmsched evaluate out=...`")
    parser.add_argument(
        "--reference",
        default="composite",
        help=f"policy that the others are compared with (composite), or {BEST}: in each scenario the best",
    )
    parser.add_argument("--file", default="leaderboard.md", help="where to write (leaderboard.md)")
    args = parser.parse_args(arguments)
    path = writable(args.file)
    write_text(path, page([read_summary(run) for run in args.runs], args.reference))
    print(f"wrote {path}")


def main(arguments: Sequence[str]) -> None:
    with_one_line_errors(lambda: leaderboard(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
