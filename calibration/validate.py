"""How good the profiles are: errors on measurements left out of the fit, or on a file of one's own.

`mmsched calibrate validate` refits without each model, each GPU, each series and each point of a sweep, prints the errors
and draws them. `mmsched calibrate validate against=FILE` predicts every row of a measurement file with the shipped profiles.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mmsched_env.costmodel.profile import PROFILES, load_host
from mmsched_env.errors import ConfigError, unknown_name

from . import expert_batches, loading, schema
from .atomic import write_atomic
from .evidence import Error, Evidence, architecture, decode_left_out, gather, prefill_left_out, repeats
from .fit import MEASUREMENTS
from .import_command import GIVEN as given_columns
from .importers import load
from .names import read_specs
from .predict import Prediction, predict
from .schema import PARSERS, Measurement
from .work import Unusable, Work

OPTIONS = ("against", "host", "measurements", "out")

GIVEN = tuple(column for column in given_columns if column != "host")
"""columns that options can say in the file's place: an engine's log may not know its GPU"""

UNLISTED = ("Jetson Nano",)
"""integrated GPUs without a data sheet"""

SMALL = 2.9e9
"""parameters below which a model is reported apart"""


def main(arguments: Sequence[str]) -> int:
    """Run with ``key=value`` options. Returns the exit status.

    Raises
    ------
    ConfigError
        An unknown option, a file that cannot be read, an output that cannot be written.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(
            f"usage: mmsched calibrate validate [{'] ['.join(f'{o}=...' for o in OPTIONS)}] [COLUMN=...]\n\n{__doc__}"
        )
        print(f"COLUMN, in the place of the file's: {', '.join(GIVEN)}")
        return 0
    options = dict(_option(argument) for argument in arguments)
    folder = Path(options.get("measurements", MEASUREMENTS))
    out = Path(options.get("out", "runs/validate"))
    if "against" in options:
        given = {key: PARSERS[key](key, value) for key, value in options.items() if key in GIVEN}
        return against(Path(options["against"]), folder, out, options.get("host"), given)
    return left_out(folder, out)


def _option(argument: str) -> tuple[str, str]:
    key, found, value = argument.partition("=")
    if not found or not value:
        raise ConfigError(f"option '{argument}'; accepted: {', '.join(f'{o}=VALUE' for o in OPTIONS)}")
    if key not in OPTIONS + GIVEN:
        raise unknown_name("option", key, OPTIONS + GIVEN)
    return key, value


# -- left out of the fit -----------------------------------------------------------------------------------------------


def left_out(folder: Path, out: Path) -> int:
    """Refit without each group, print and write the errors, draw them."""
    from . import plots  # late: only here is matplotlib needed

    found = gather(folder)
    errors = all_errors(found)
    tables = {name: [_line(part, rows) for part, rows in parts.items() if rows] for name, parts in errors.items()}
    sweeps = [
        _sweep(series, rows) for series, rows in _by(errors["decode, one setting of a sweep left out"]["all"], _series)
    ]
    loads = load_errors(found)
    starts = start_table(found.rows)
    batches = expert_batch_errors(found, folder)
    console = _console()
    for name, lines in tables.items():
        console.print(_errors_table(name, lines))
    console.print(_table("sweeps, one setting left out (relative error on time)", sweeps))
    console.print(_table("loads of nine models on one CPU thread, one model left out", loads))
    console.print(_table("batches of mixtures of experts, one model left out (relative error on time)", batches))
    console.print(_table("vLLM: seconds as published, no law fits them", starts))
    result = {"errors": tables, "sweeps": sweeps, "loads": loads, "expert batches": batches, "starts": starts}
    _write(out / "validation.json", json.dumps(result, indent=1))
    for path in plots.draw(found, errors, out):
        print(f"wrote {path}")
    print(f"wrote {out / 'validation.json'}")
    return 0


Parts = dict[str, list[Error]]


def all_errors(found: Evidence) -> dict[str, Parts]:
    """Every error, by what was left out and then by kind of row."""

    def resident(item: Work) -> bool:
        return item.resident and item.gpu is not None

    models = decode_left_out(found, found.decodes, lambda i: architecture(i) if resident(i) else None)
    gpus = decode_left_out(found, found.decodes, lambda i: i.gpu if resident(i) else None)
    series = decode_left_out(found, found.decodes, lambda i: _run(i) if resident(i) else None)
    points = decode_left_out(found, found.decodes, lambda i: _setting(i) if _series(i) else None)
    known = _known(found.decodes)
    return {
        "decode, one model left out (known GPU)": _parts(found, [e for e in models if known(e[0])]),
        "decode, one GPU left out (data sheet alone)": _parts(found, gpus),
        "decode, one series left out": _parts(found, series),
        "decode, one setting of a sweep left out": {"all": repeats(points), **_sweep_parts(repeats(points), found)},
        "prefill, one model left out (known GPU)": _parts(found, _prefill_models(found)),
        "prefill, one GPU left out (data sheet alone)": _parts(
            found, prefill_left_out(found, found.prefills, lambda i: i.gpu)
        ),
        "prefill, one series left out": _parts(found, prefill_left_out(found, found.prefills, _run)),
    }


def _known(items: Sequence[Work]) -> Callable[[Work], bool]:
    """Whether a row's GPU was measured with another model too."""
    models: dict[str | None, set[str]] = {}
    for item in items:
        models.setdefault(item.gpu, set()).add(architecture(item))
    return lambda item: len(models[item.gpu]) > 1


def _prefill_models(found: Evidence) -> list[Error]:
    known = _known(found.prefills)
    return [e for e in prefill_left_out(found, found.prefills, architecture) if known(e[0])]


def _run(item: Work) -> object:
    """A published run: one table of one source on one card."""
    row = item.row
    return (row.source, row.gpu, row.num_gpus, row.model, row.quant, row.series)


def _series(item: Work) -> str:
    """Sweep of a row; empty: none."""
    return item.row.series if item.row.series.startswith("S") else ""


def _setting(item: Work) -> object:
    row = item.row
    return (row.series, row.n_gpu_layers, row.n_cpu_moe, row.depth)


def _parts(found: Evidence, errors: Sequence[Error]) -> Parts:
    """Discrete GPUs, then what is reported apart."""

    def unified(item: Work) -> bool:
        return item.row.gpu in UNLISTED or (item.gpu is not None and found.specs[item.gpu].memory == "unified")

    def part(item: Work) -> str:
        if unified(item):
            return "integrated GPUs"
        if item.model.architecture.experts:
            return "mixtures of experts"
        if item.model.params < SMALL:
            return "below 3B"
        return "dense, 3B and more"

    names = ("dense, 3B and more", "below 3B", "mixtures of experts", "integrated GPUs")
    parts: Parts = {"all discrete GPUs": [e for e in errors if not unified(e[0])]}
    return parts | {name: [e for e in errors if part(e[0]) == name] for name in names}


def _sweep_parts(errors: Sequence[Error], found: Evidence) -> Parts:
    parts = _parts(found, [e for e in errors if not e[0].all_cpu])
    return parts | {"all on the CPU": [e for e in errors if e[0].all_cpu]}


def _line(part: str, errors: Sequence[Error]) -> dict[str, Any]:
    absolute = np.abs([error for _, error in errors])
    signed = np.array([error for _, error in errors])
    return {
        "rows": len(errors),
        "part": part,
        "median": float(np.median(absolute)),
        "mean": float(np.mean(absolute)),
        "p90": float(np.quantile(absolute, 0.9)),
        "max": float(np.max(absolute)),
        "bias": float(np.median(signed)),
    }


def _by(errors: Sequence[Error], key: Callable[[Work], str]) -> list[tuple[str, list[Error]]]:
    names = dict.fromkeys(key(item) for item, _ in errors)
    return [(name, [e for e in errors if key(e[0]) == name]) for name in names]


def _sweep(series: str, errors: Sequence[Error]) -> dict[str, Any]:
    item = errors[0][0]
    inner = [abs(error) for i, error in errors if not i.all_cpu]
    alone = [abs(error) for i, error in errors if i.all_cpu]
    return {
        "series": series,
        "GPU": item.row.gpu,
        "model": item.model.name,
        "settings": len(errors),
        "mean": float(np.mean(inner)),
        "max": float(np.max(inner)),
        "all on the CPU": max(alone) if alone else None,
    }


def load_errors(found: Evidence) -> list[dict[str, Any]]:
    """Every law of loading on the nine models, each left out."""
    lines = []
    kinds = (("page_cache", "read"), ("disk", "read"), ("disk", "direct I/O"), ("page_cache", "mmap"), ("disk", "mmap"))
    for tier, how in kinds:
        rows = loading.own_loads(found.rows, tier, how)
        errors = np.abs(loading.leave_one_out(rows))
        law, _ = loading.linear_law([(work, row.value) for row, work in rows])
        lines.append(
            {
                "tier": tier,
                "how": how,
                "models": len(rows),
                "mean": float(errors.mean()),
                "max": float(errors.max()),
                "us per vocabulary entry": law["vocabulary"] * 1e6,
                "s per GB": law["bytes"] * 1e9,
                "s per GB repacked": law["repacked"] * 1e9,
            }
        )
    return lines


def expert_batch_errors(found: Evidence, folder: Path) -> list[dict[str, Any]]:
    """Steps of 2 to 32 sequences of each mixture of experts, how many experts they reach fitted to the others."""
    errors = expert_batches.left_out(schema.read(folder / expert_batches.TABLE), found.decode, found.specs)
    return [
        {"model": model, "batches": len(e), "median": float(np.median(np.abs(e))), "max": float(np.abs(e).max())}
        for model, e in errors.items()
    ]


def start_table(rows: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Engine starts, wakes and sleeps: mean and range of the repeats."""
    chosen = [row for row in rows if row.operation in ("start", "wake", "sleep") and "vLLM" in row.engine]
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in chosen:
        gpu = f"{row.num_gpus}x {row.gpu}" if row.num_gpus > 1 else row.gpu
        engine = f"{row.engine} {row.engine_version}".strip()
        groups.setdefault((row.operation, row.tier, gpu, row.model, row.quant, engine), []).append(row.value)
    return [
        {
            "operation": operation,
            "tier": tier,
            "GPU": gpu,
            "model": model,
            "quant": quant,
            "engine": engine,
            "runs": len(values),
            "mean s": round(float(np.mean(values)), 2),
            "min s": min(values),
            "max s": max(values),
        }
        for (operation, tier, gpu, model, quant, engine), values in groups.items()
    ]


# -- a file of one's own -----------------------------------------------------------------------------------------------


def against(path: Path, folder: Path, out: Path, host: str | None, given: dict[str, Any]) -> int:
    """Predict every row of a file, print and write rows and summary.

    `host` is the host profile of rows that use the CPU, `given` columns that the file does not say or says wrongly.
    """
    if host is not None:
        load_host(host, PROFILES)
    specs = read_specs(folder)
    imported = load(path, given)
    predictions: list[Prediction] = []
    silent: list[tuple[Measurement, str]] = []
    for row in imported.rows:
        try:
            predictions.append(predict(row, specs, host))
        except Unusable as reason:
            silent.append((row, str(reason)))
    rows = [_row(prediction) for prediction in predictions]
    summary = _summary(predictions)
    ignored = Counter({why: len(what) for why, what in imported.ignored.items()})
    unpredicted = Counter(why for _, why in silent)
    console = _console()
    console.print(f"{path}: {imported.format}, {len(imported.rows)} rows, {len(predictions)} predicted")
    console.print(_table("rows: measured, predicted, relative error on time", [_short(row) for row in rows]))
    console.print(_table("summary", summary))
    for title, counts in (("not predicted", unpredicted), ("not read", ignored)):
        for why, count in counts.most_common():
            print(f"{title}: {count} ({why})")
    result = {
        "file": path.name,
        "format": imported.format,
        "rows": rows,
        "summary": summary,
        "not predicted": [_about(row) | {"reason": why} for row, why in silent],
        "not read": dict(ignored),
    }
    target = out / f"{path.stem}.against.json"
    _write(target, json.dumps(result, indent=1))
    print(f"wrote {target}")
    return 0


def _about(row: Measurement) -> dict[str, Any]:
    where = "all" if row.n_gpu_layers in (None, -1) else str(row.n_gpu_layers)
    return {
        "operation": row.operation,
        "GPU": f"{row.num_gpus}x {row.gpu}" if row.num_gpus > 1 else row.gpu,
        "model": row.model,
        "quant": row.quant,
        "layers": where + (f", {row.n_cpu_moe} experts off" if row.n_cpu_moe else ""),
        "tokens": row.tokens,
        "depth": row.depth,
        "batch": row.batch,
    }


def _row(p: Prediction) -> dict[str, Any]:
    return {
        **_about(p.row),
        "measured": p.row.value,
        "predicted": float(f"{p.predicted:.4g}"),
        "unit": p.row.unit,
        "error": p.error,
        "stated": p.spread,
        "profiles": p.gpu + (f" + {p.host}" if p.host else ""),
    }


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """A row as a line of the table: what was asked in one column."""
    asked = f"{row['tokens'] or '?'}" + (f" at {row['depth']}" if row["depth"] else "")
    asked += f" x{row['batch']}" if (row["batch"] or 1) > 1 else ""
    what = {key: row[key] for key in ("operation", "GPU", "model", "quant", "layers")}
    return (
        what
        | {"tokens": asked}
        | {key: row[key] for key in ("measured", "predicted", "unit", "error", "stated", "profiles")}
    )


def _summary(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    lines = []
    for kind in dict.fromkeys(p.kind for p in predictions):
        errors = np.array([p.error for p in predictions if p.kind == kind])
        stated = np.array([p.spread for p in predictions if p.kind == kind])
        absolute = np.abs(errors)
        lines.append(
            {
                "kind": kind,
                "rows": len(errors),
                "median": float(np.median(absolute)),
                "p90": float(np.quantile(absolute, 0.9)),
                "max": float(absolute.max()),
                "bias": float(np.median(errors)),
                "stated (median)": float(np.median(stated)),
                "within twice the stated": float(np.mean(absolute <= 2 * stated)),
            }
        )
    return lines


# -- output ------------------------------------------------------------------------------------------------------------


def _errors_table(name: str, lines: Sequence[dict[str, Any]]) -> Table:
    columns = ("part", "rows", "median", "p90", "max", "mean", "bias")
    return _table(name, [{column: line[column] for column in columns} for line in lines])


SHARES = {"median", "p90", "max", "mean", "bias", "error", "stated", "stated (median)", "within twice the stated"}
SHARES |= {"all on the CPU"}


def _table(title: str, lines: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in lines[0] if lines else ():
        numeric = any(isinstance(line[column], (int, float)) for line in lines)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for line in lines:
        table.add_row(*[_text(column, value) for column, value in line.items()])
    return table


def _text(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column in SHARES:
        return f"{value:+.1%}" if column in ("bias", "error") else f"{value:.1%}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=230)


def _write(path: Path, text: str) -> None:
    try:
        write_atomic(path, text + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; accepted: out=FOLDER that can") from None
