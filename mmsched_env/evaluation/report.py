"""What an evaluation leaves: a printed table, requests.parquet and summary.json."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

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
    table = Table(title=scenario, title_justify="left")
    table.add_column("policy", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.replace("_", "_\n", 1) if len(column) > 9 else column, justify="right")
    table.add_column(f"mean_e2e vs {reference}, s [95 %]", justify="right")
    for policy, row in means.items():
        cells = [form.format(row[column]) for column, form in COLUMNS.items()]
        table.add_row(policy, *cells, "" if policy == reference else _difference(versus[policy]))
    return table


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
    temporary = path.with_suffix(".parquet.part")
    pq.write_table(pa.concat_tables(tables), temporary, compression="zstd")
    temporary.replace(path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Atomically, sorted keys; NaN as null."""
    text = json.dumps(_plain(values), indent=2, sort_keys=True, allow_nan=False)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, suffix=".part") as file:
        file.write(text + "\n")
    Path(file.name).replace(path)


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
