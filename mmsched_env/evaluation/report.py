"""What an evaluation leaves: a printed table, requests.parquet and summary.json."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from .stats import Difference

COLUMNS = {
    "mean_ttft_ms": "{:,.0f}",
    "p99_ttft_ms": "{:,.0f}",
    "mean_tpot_ms": "{:,.1f}",
    "p99_tpot_ms": "{:,.1f}",
    "mean_e2e_ms": "{:,.0f}",
    "p99_e2e_ms": "{:,.0f}",
    "request_throughput": "{:.3f}",
    "request_goodput": "{:.3f}",
    "slo_attainment": "{:.3f}",
    "loads": "{:.1f}",
    "preemptions": "{:.1f}",
    "offloads": "{:.1f}",
}
"""printed columns, in vLLM's names where vLLM has one"""


def comparison_table(
    scenario: str, reference: str, means: Mapping[str, Mapping[str, float]], versus: Mapping[str, Difference]
) -> Table:
    """One row a policy; the last column is mean E2E against the reference, paired by trace, with its interval."""
    table = Table(title=Text(scenario), title_justify="left")
    table.add_column("policy", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.replace("_", "_\n", 1) if len(column) > 9 else column, justify="right")
    table.add_column(f"mean_e2e vs {reference}, s [95 %]", justify="right")
    for policy, row in means.items():
        cells = [form.format(row[column]) for column, form in COLUMNS.items()]
        table.add_row(policy, *cells, "" if policy == reference else _difference(versus[policy]))
    return table


SUITE_COLUMNS = ("mean_ttft_ms", "mean_e2e_ms", "p99_e2e_ms", "mean_slowdown", "slo_attainment", "loads_per_100")


def suite_table(policies: Sequence[str], results: Mapping[str, Mapping[str, Any]]) -> Table:
    """All scenarios in one table: a row a policy, the difference against the first policy as in `comparison_table`."""
    count = max(int(result["episodes"]) for result in results.values())
    table = Table(title=f"{len(results)} scenarios, mean over {count} traces each", title_justify="left")
    table.add_column("scenario", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    for column in ("request\nper s", *(name.replace("_", "_\n", 1) for name in SUITE_COLUMNS)):
        table.add_column(column, justify="right")
    table.add_column("gap, at\nmost, %", justify="right")
    table.add_column(f"mean_e2e vs {policies[0]}, s [95 %]", justify="right")
    table.add_column("P(better)", justify="right")
    table.add_column("p, Holm", justify="right")
    for scenario, result in results.items():
        for policy in policies:
            row, first = result["mean"][policy], policy == policies[0]
            rate = "" if result["rate_per_s"] is None else f"{result['rate_per_s']:.3f}"
            cells = [
                (COLUMNS | {"mean_slowdown": "{:.1f}", "loads_per_100": "{:.1f}"})[c].format(row[c])
                for c in SUITE_COLUMNS
            ]
            versus = ["", "", ""] if first else _versus(result, policy)
            table.add_row(scenario if first else "", policy, rate if first else "", *cells, _gap(result, row), *versus)
        table.add_section()
    return table


def _gap(result: Mapping[str, Any], row: Mapping[str, float]) -> str:
    """Weighted mean E2E over the lower bound: how much the optimum can be better at most."""
    bounds = result["lower_bound_ms"]
    return "" if bounds is None else f"{100 * (row['weighted_mean_e2e_ms'] / float(np.mean(bounds)) - 1):.0f}"


def _versus(result: Mapping[str, Any], policy: str) -> list[str]:
    """Difference with interval, probability of improvement, p-value corrected for the number of scenarios."""
    stored = result["mean_e2e_ms_difference"][policy]
    return [_difference(difference_of(result, policy)), f"{stored['p_better']:.2f}", f"{stored['p_holm']:.2g}"]


def difference_of(result: Mapping[str, Any], policy: str) -> Difference:
    """A scenario's paired difference of mean E2E, from its figures."""
    stored = result["mean_e2e_ms_difference"][policy]
    return Difference(stored["mean"], stored["low"], stored["high"])


def _difference(d: Difference) -> str:
    return f"{d.mean / 1e3:+.2f} [{d.low / 1e3:+.2f}, {d.high / 1e3:+.2f}]"


def print_table(table: Table) -> None:
    """To the terminal's width, or wide enough for all columns where there is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=220)
    console.print(table)


def write_parquet(path: Path, tables: Sequence[pa.Table]) -> None:
    """All requests of all episodes, atomically. Same results, same bytes: no time stamps inside."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        pq.write_table(pa.concat_tables(tables), temporary, compression="zstd")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Atomically, sorted keys; NaN as null."""
    write_text(path, json.dumps(_plain(values), indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Atomically."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None if value != value else str(value)
    return value


def revision() -> dict[str, str | None]:
    """Version of the package and, in a git checkout, the commit it is at."""
    folder = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        commit: str | None = run.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {"mmsched_env": __version__, "git": commit}


def machine() -> str:
    """Processor, number of CPUs and versions that figures of this run depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} CPUs, Python {platform.python_version()}, Numba {version('numba')}"
