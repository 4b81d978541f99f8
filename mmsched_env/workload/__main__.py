"""`mmsched workload`: look at a workload, fit the generator to it, or write it to a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ..config import EnvConfig
from ..errors import ConfigError
from ..hydra_app import composed, env_config_of, fail, with_one_line_errors
from .fit import Row, compare, fit_generator, yaml_of
from .load import capacity_for, unloaded_s
from .plot import draw_workload
from .splits import seed_of
from .stats import summary
from .trace import RequestTrace

CONFIG = "workloads"


def main(arguments: Sequence[str]) -> None:
    """Run ``mmsched workload COMMAND [key=value ...]``."""
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(usage())
        raise SystemExit(0 if arguments else 2)
    command, *overrides = arguments
    if command not in COMMANDS:
        fail(f"unknown command 'workload {command}'; accepted: {', '.join(COMMANDS)}")
    with_one_line_errors(lambda: COMMANDS[command][0](composed(CONFIG, overrides, f"workload {command}")))


def usage() -> str:
    """Help text."""
    lines = [f"  {name:<8} {text}" for name, (_, text) in COMMANDS.items()]
    return (
        "usage: mmsched workload COMMAND [key=value ...]\n\n"
        + "\n".join(lines)
        + """

  mmsched workload show scenario=edge-box out=edge-box.png
  mmsched workload show workload=azure2023 workload.path=traces/azure
  mmsched workload fit workload=mooncake workload.path=conversation_trace.jsonl out=mine.yaml
  mmsched workload convert workload=arena27 workload.path=arena27_requests.csv out=arena27.parquet

Settings: those of `mmsched evaluate` that make an environment (cluster, models, workload, scenario, ...), and
  split, seed  which seed (default: the first of test)
  draws        fit: draws that are compared with the trace
  out          show: picture; fit: settings, a file for conf/workload; convert: .csv, .csv.gz or .parquet"""
    )


def show(config: DictConfig) -> None:
    """Print a workload's figures and its load, and draw them."""
    env, trace = _sample(config)
    capacity = capacity_for([trace], env)
    seconds = unloaded_s(trace, env)
    load = seconds / seconds.mean() / capacity
    _print_figures(trace, capacity)
    out = _out(config, "workload.png")
    draw_workload(trace, f"{_label(config)}: {len(trace)} requests", load, out)
    print(f"wrote {out}")


def fit(config: DictConfig) -> None:
    """Fit the generator to a workload, print how near its draws come, and write its settings."""
    _, trace = _sample(config)
    if len(trace) < 100:
        raise ConfigError(f"the trace has {len(trace)} requests; accepted: at least 100 to fit a generator to")
    if not isinstance(config.draws, int) or config.draws < 2:
        raise ConfigError(f"draws is {config.draws!r}; accepted: a whole number >= 2")
    fitted = fit_generator(trace)
    _print_rows(compare(trace, fitted, config.draws), config.draws)
    out = _out(config, "fitted.yaml")
    part = out.with_name(out.name + ".part")
    part.write_text(yaml_of(fitted, f"Fitted to {_label(config)} by `mmsched workload fit`."), encoding="utf-8")
    part.replace(out)
    print(f"wrote {out} (use it from a folder F: F/workload/{out.name}, --config-dir F workload={out.stem})")


def convert(config: DictConfig) -> None:
    """Write a workload as a file of our own format."""
    out = _out(config, "")
    if not out.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise ConfigError(f"out is {config.out!r}; accepted: a file ending in .csv, .csv.gz or .parquet")
    _, trace = _sample(config)
    (trace.write_parquet if out.suffix == ".parquet" else trace.write_csv)(out)
    notes = "".join(f"; {note}" for note in trace.notes)
    print(f"wrote {out}: {len(trace)} requests{notes}")


COMMANDS: dict[str, tuple[Callable[[DictConfig], None], str]] = {
    "show": (show, "print a workload's figures and draw it"),
    "fit": (fit, "fit the generator to it"),
    "convert": (convert, "write it as CSV or Parquet, to be read with workload=file"),
}
"""command -> (what it runs, one line of help)"""


def _sample(config: DictConfig) -> tuple[EnvConfig, RequestTrace]:
    env = env_config_of(config)
    return env, env.workload.sample(seed_of(str(config.split), config.seed), env.models.names)


def _out(config: DictConfig, default: str) -> Path:
    path = Path(str(config.out or default)).expanduser()
    if not path.parent.is_dir():
        raise ConfigError(f"out is '{path}'; accepted: a file in a folder that exists")
    return path


def _label(config: DictConfig) -> str:
    """The scenario, or the workload alone with its file."""
    if str(config.scenario.name) != "default-v0":
        return str(config.scenario.name)
    path = str(config.workload.get("path", ""))
    return f"{config.workload.kind}{' ' if path else ''}{Path(path).name}"


def _print_figures(trace: RequestTrace, capacity: float) -> None:
    figures = summary(trace)
    table = Table(show_header=False)
    for name in ("num_requests", "span_s", "rate_per_s", "cv", "fano_1s", "fano_60s", "peak_60s", "switch_share"):
        table.add_row(name, f"{figures[name]:.6g}")
    table.add_row("capacity, requests per s", f"{capacity:.4g}")
    table.add_row("offered load", f"{figures['rate_per_s'] / capacity:.3g}")
    for name in ("prompt_tokens", "output_tokens"):
        table.add_row(name, ", ".join(f"{key} {value:.1f}" for key, value in figures[name].items()))
    table.add_row("image_share", f"{figures['image_share']:.3g}")
    table.add_row("tenants", str(len(np.unique(trace.tenant))))
    for name, share in figures["model_shares"].items():
        table.add_row(f"share of {name}", f"{share:.3f}")
    for note in figures["notes"]:
        table.add_row("note", note)
    _print(table)


def _print_rows(rows: list[Row], draws: int) -> None:
    table = Table(title=f"trace beside {draws} draws of the generator fitted to it", title_justify="left")
    for name in ("figure", "trace", "generated, mean", "95 % of draws", "asked for", ""):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for row in rows:
        verdict = "" if not row.accepted else "met" if row.ok else "missed"
        band = f"{row.low:.4g} to {row.high:.4g}"
        table.add_row(row.figure, f"{row.real:.4g}", f"{row.mean:.4g}", band, row.accepted, verdict)
    _print(table)


def _print(table: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
