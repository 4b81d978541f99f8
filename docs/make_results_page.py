"""Writes the tables of benchmarks/results.md, between its marks, from the runs whose commands are there.

``python docs/make_results_page.py FOLDER``; FOLDER holds the runs by the names that the commands give them (``out=``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.evaluation.leaderboard import KEY, read_summary
from mmsched_env.evaluation.stats import Difference, paired_difference

PAGE = Path(__file__).parent.parent / "benchmarks" / "results.md"
E2E = "mean_e2e_ms"
REFERENCE = "fcfs"
Figures = dict[str, dict[str, NDArray[np.float64]]]
"""policy -> figure -> (traces,)"""


def read(folder: Path) -> Figures:
    """A run of one scenario."""
    (part,) = read_summary(folder)["scenarios"].values()
    return {label: {key: np.array(v[0]) for key, v in rows.items()} for label, rows in part["per_episode"].items()}


def seconds(d: Difference) -> str:
    """A difference of milliseconds."""
    return f"{d.mean / 1e3:+.2f} [{d.low / 1e3:+.2f}, {d.high / 1e3:+.2f}]"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def policies(run: Figures) -> str:
    """Every policy, against FCFS."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "mean TTFT s": lambda f: f"{f['mean_ttft_ms'].mean() / 1e3:.2f}",
        "p99 TTFT s": lambda f: f"{f['p99_ttft_ms'].mean() / 1e3:.1f}",
        "mean E2E s": lambda f: f"{f[E2E].mean() / 1e3:.2f}",
        "weighted E2E s": lambda f: f"{f[KEY].mean() / 1e3:.2f}",
        "SLO": lambda f: f"{f['slo_attainment'].mean():.3f}",
        "goodput /s": lambda f: f"{f['request_goodput'].mean():.3f}",
        "loads": lambda f: f"{f['loads'].mean():.1f}",
        "preemptions": lambda f: f"{f['preemptions'].mean():.1f}",
        "offloads": lambda f: f"{f['offloads'].mean():.1f}",
    }
    lines = [
        [
            label,
            *(show(figures) for show in columns.values()),
            "" if label == REFERENCE else seconds(paired_difference(figures[E2E], run[REFERENCE][E2E])),
        ]
        for label, figures in run.items()
    ]
    return table(["policy", *columns, f"E2E vs {REFERENCE}, s"], lines)


def action(allowed: Figures, forbidden: Figures, key: str, count: str) -> str:
    """Every policy with an action and without it: `key` is compared, `count` says how often it was taken."""
    shown = {"mean E2E s": (E2E, 1e3, 2), "weighted E2E s": (KEY, 1e3, 2), "p99 TTFT s": ("p99_ttft_ms", 1e3, 1)}
    shown |= {"SLO": ("slo_attainment", 1.0, 3), count.removeprefix("num_"): (count, 1.0, 1)}
    lines = []
    for label in allowed:
        cells = [
            " / ".join(f"{run[label][name].mean() / unit:.{digits}f}" for run in (allowed, forbidden))
            for name, unit, digits in shown.values()
        ]
        same = np.array_equal(allowed[label][key], forbidden[label][key])
        lines.append(
            [label, *cells, "0" if same else seconds(paired_difference(allowed[label][key], forbidden[label][key]))]
        )
    what = "weighted E2E" if key == KEY else "mean E2E"
    return table(["policy", *shown, f"{what}, allowed - forbidden, s"], lines)


def main(arguments: Sequence[str]) -> None:
    """Write the page."""
    folder = Path(arguments[0])

    def both(name: str, key: str, count: str) -> str:
        return action(read(folder / f"{name}-true"), read(folder / f"{name}-false"), key, count)

    tables = {
        "default": policies(read(folder / "default")),
        "preempt": both("ib", KEY, "preemptions"),
        "offload, 0.03": both("lc03", E2E, "offloads"),
        "offload, 0.05": both("lc", E2E, "offloads"),
        "offload, 0.05, 100 traces": both("lc100", E2E, "offloads"),
        "offload-cliff": both("oc", E2E, "offloads"),
    }
    text = PAGE.read_text()
    for name, written in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(begin)
        text = before + begin + written + end + rest.split(end)[1]
    PAGE.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
