"""Prints a table for benchmarks/learned.md from runs of `mmsched evaluate`: one policy against the best tuned rule.

``python docs/make_learned_tables.py POLICY RUN ...``; POLICY is the beginning of the policy's label in the runs (``learned``,
``planner``), the longest of several.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from mmsched_env.evaluation.leaderboard import BEST, KEY, Row, read_summary, rows_of

HEAD = "scenario | traces | best tuned rule | composite | policy | % | difference, s | better on | SLO, rule | SLO, policy | ms"


@dataclass(frozen=True)
class Line:
    """A scenario: the policy against the rule, on the same traces."""

    name: str
    rule: str
    row: Row
    best: Row
    composite: Row
    values: NDArray[np.float64]
    """[members, traces] E2E"""
    rule_values: NDArray[np.float64]
    """[1, traces] the rule's"""

    @property
    def seeds(self) -> NDArray[np.float64]:
        """Of each member: E2E over the rule's."""
        ratios: NDArray[np.float64] = self.values.mean(axis=1) / self.rule_values.mean()
        return ratios

    @property
    def gain(self) -> float:
        """Of the rule's E2E."""
        return 1 - self.row.ratio

    def markdown(self) -> str:
        """The table's line."""
        against = self.row.against
        assert against is not None
        numbers = [f"{1e-3 * value:+.2f}" for value in (against.mean, against.low, against.high)]
        cells = [
            workload[1] if (workload := re.search(r"workload=(\w+)", self.name)) else self.name.removesuffix("-v0"),
            f"{self.row.traces}",
            f"{self.rule} {self.best.mean.mean / 1e3:.2f}",
            f"{self.composite.mean.mean / 1e3:.2f}",
            f"{self.row.mean.mean / 1e3:.2f}",
            f"{-100 * self.gain:+.1f} %",
            f"{numbers[0]} [{numbers[1]}, {numbers[2]}]",
            f"{self.row.p_better:.2f}",
            f"{self.best.slo:.3f}",
            f"{self.row.slo:.3f}",
            f"{self.row.decision_us[0] / 1e3:,.2g}" if len(self.seeds) == 1 else self.of_seeds(),
        ]
        return "| " + " | ".join(cells) + " |"

    def of_seeds(self) -> str:
        """The best and the worst member."""
        return f"{self.seeds.min():.3f} to {self.seeds.max():.3f} ({len(self.seeds)})"


def lines_of(runs: Sequence[dict[str, Any]], policy: str) -> list[Line]:
    """A line a scenario, the greatest gain first."""
    lines = []
    for name, rows in rows_of(runs, BEST).items():
        label = max((label for label in rows if label.startswith(policy)), key=len)
        rule = next(label for label, row in rows.items() if row.against is None)
        traces = rows[label].traces
        values, rule_values = (_per_trace(runs, name, one)[:, :traces] for one in (label, rule))
        lines.append(Line(name, rule, rows[label], rows[rule], rows["composite"], values, rule_values))
    return sorted(lines, key=lambda line: -line.gain)


def _per_trace(runs: Sequence[dict[str, Any]], scenario: str, label: str) -> NDArray[np.float64]:
    """[members, traces] E2E, from the first run that has them."""
    parts = [run["scenarios"].get(scenario, {"per_episode": {}})["per_episode"] for run in runs]
    return np.array(next(part[label][KEY] for part in parts if label in part))


def interval_of_mean(lines: Sequence[Line]) -> tuple[float, float]:
    """95 % interval of the geometric mean of the ratios, by a bootstrap over the traces of each scenario (of the seeds' means); NaN if some
    scenario has one trace."""
    if any(line.row.traces < 2 for line in lines):
        return float("nan"), float("nan")

    def statistic(*picked: NDArray[np.int64]) -> float:
        ratios = [
            line.values[:, i].mean() / line.rule_values[:, i].mean() for line, i in zip(lines, picked, strict=True)
        ]
        return float(np.exp(np.mean(np.log(ratios))))

    traces = [np.arange(line.row.traces) for line in lines]
    result = bootstrap(
        traces, statistic, vectorized=False, paired=False, n_resamples=5000, method="percentile", random_state=0
    )
    interval = result.confidence_interval
    return float(interval.low), float(interval.high)


def table(lines: Sequence[Line]) -> str:
    """Markdown, with a sentence on all of them."""
    several = max(len(line.seeds) for line in lines) > 1
    head = HEAD.replace("| ms", "| seeds") if several else HEAD
    rows = [f"| {head} |", "|" + "---|" * (head.count("|") + 1), *(line.markdown() for line in lines)]
    against = [line.row.against for line in lines]
    better, worse = (sum(one is not None and test(one) for one in against) for test in (_better, _worse))
    over_best, over_composite = (
        100 * (np.exp(np.mean(np.log(ratios))) - 1)
        for ratios in (
            [line.row.ratio for line in lines],
            [line.row.mean.mean / line.composite.mean.mean for line in lines],
        )
    )
    low, high = (100 * (ratio - 1) for ratio in interval_of_mean(lines))
    slo = np.mean([line.row.slo - line.best.slo for line in lines])
    return "\n".join(rows) + (
        f"\n\n**Geometric mean over {len(lines)} scenarios: {over_best:+.1f} % [{low:+.1f}, {high:+.1f}] to the best tuned rule of each, {over_composite:+.1f} % to `composite`; "
        f"beyond doubt better in {better}, worse in {worse}; SLO attainment {100 * slo:+.1f} points on average.**\n"
    )


def _better(difference: Any) -> bool:
    return bool(difference.high < 0)


def _worse(difference: Any) -> bool:
    return bool(difference.low > 0)


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    policy, *folders = arguments
    print(table(lines_of([read_summary(Path(folder)) for folder in folders], policy)))


if __name__ == "__main__":
    main(sys.argv[1:])
