"""All regressions over the measurement tables, done once: what the profiles are then put together from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmsched_env.errors import ConfigError

from . import decode, expert_batches, loading, prefill, schema
from .loglinear import Fit, Term
from .names import Spec, read_specs
from .schema import CPU_ONLY, Measurement
from .work import Unusable, Work, work

TABLES = ("decode_prefill", "offload_sweeps", "load_times", "transfer", "own")


@dataclass(frozen=True)
class Evidence:
    """Everything the profiles need, in SI units."""

    specs: dict[str, Spec]
    rows: tuple[Measurement, ...]
    decodes: tuple[Work, ...]
    prefills: tuple[Work, ...]
    decode: Fit
    prefill: Fit
    stream: dict[str, tuple[float, float]]
    """GPU -> bytes/s at which CPU layers reach it in prefill, relative standard error"""
    cpu_flops: tuple[float, float]
    batch_gpu: tuple[dict[float, float], float]
    """relative step time by batch size, and its relative spread between series"""
    batch_cpu: tuple[dict[float, float], float]
    expert_reach: expert_batches.Reach
    loads: loading.Loads

    def decode_seconds(self, item: Work) -> float:
        return self.decode.seconds(decode.terms(item, self.specs))

    def prefill_seconds(self, item: Work) -> float:
        return self.prefill.seconds(prefill.terms(item, self.decode, self.specs))


def gather(folder: Path) -> Evidence:
    """Read the tables and run every regression.

    Raises
    ------
    ConfigError
        A table that is missing, empty, or has a cell that cannot be used.
    """
    specs = read_specs(folder)
    rows = read_tables(folder)
    decodes, prefills, _ = sort_out(rows, specs)
    decoded = decode.fit_decode(decodes, specs)
    return Evidence(
        specs=specs,
        rows=rows,
        decodes=tuple(decodes),
        prefills=tuple(prefills),
        decode=decoded,
        prefill=prefill.fit_prefill(prefills, decoded, specs),
        stream=_stream(rows, specs),
        cpu_flops=_cpu_flops(rows, specs),
        batch_gpu=_batch_gpu(rows, decoded, specs),
        batch_cpu=_batch_cpu(rows),
        expert_reach=expert_batches.fit_reach(schema.read(folder / expert_batches.TABLE), decoded, specs),
        loads=loading.fit_loads(rows),
    )


def read_tables(folder: Path) -> tuple[Measurement, ...]:
    """Rows of every table, in their order."""
    rows: list[Measurement] = []
    for table in TABLES:
        path = folder / f"{table}.csv"
        found = schema.read(path)
        if not found:
            raise ConfigError(f"{path}: no rows; accepted: one measurement a row below the header")
        rows += found
    return tuple(rows)


def sort_out(
    rows: Iterable[Measurement], specs: dict[str, Spec]
) -> tuple[list[Work], list[Work], list[tuple[Measurement, str]]]:
    """Work of the rows that the decode and prefill laws cover, and the others with the reason."""
    decodes: list[Work] = []
    prefills: list[Work] = []
    others: list[tuple[Measurement, str]] = []
    for row in rows:
        try:
            item = work(row, specs)
            if row.operation == "prefill":
                prefill.usable(item)
            (decodes if row.operation == "decode" else prefills).append(item)
        except Unusable as reason:
            others.append((row, str(reason)))
    return decodes, prefills, others


Error = tuple[Work, float]
"""a row, and its signed relative error on time where it was left out of the fit"""
Group = Callable[[Work], object]
"""rows with the same value are left out together; None: never"""


def decode_left_out(found: Evidence, items: Sequence[Work], group: Group) -> list[Error]:
    """Errors of the decode rows in groups, each predicted by a fit without its group."""
    errors: list[Error] = []
    for left in dict.fromkeys(group(i) for i in items if group(i) is not None):
        rest = [i for i in items if group(i) != left]
        without = decode.fit_decode(rest, found.specs, found.decode)
        held = [i for i in items if group(i) == left]
        errors += [(i, without.seconds(decode.terms(i, found.specs)) / i.seconds - 1) for i in held]
    return errors


def prefill_left_out(found: Evidence, items: Sequence[Work], group: Group) -> list[Error]:
    """Errors of the prefill rows in groups, each predicted by a fit without its group.

    What every chunk pays (a small part of it) is that of the full decode fit.
    """
    errors: list[Error] = []
    for left in dict.fromkeys(group(i) for i in items if group(i) is not None):
        rest = [i for i in items if group(i) != left]
        without = prefill.fit_prefill(rest, found.decode, found.specs, found.prefill)
        held = [i for i in items if group(i) == left]
        errors += [(i, without.seconds(prefill.terms(i, found.decode, found.specs)) / i.seconds - 1) for i in held]
    return errors


def architecture(item: Work) -> str:
    """Architecture of a row's model."""
    return item.model.name.removesuffix(f"-{item.quant}")


def repeats(errors: Iterable[Error]) -> list[Error]:
    """One error for each setting: runs of one setting, a published range for one, count as their geometric mean."""
    settings: dict[object, list[Error]] = {}
    for item, error in errors:
        row = item.row
        key = (row.source, row.series, row.gpu, row.num_gpus, row.model, row.quant, row.operation)
        where = (row.n_gpu_layers, row.n_cpu_moe, row.tokens, row.depth, row.ubatch)
        settings.setdefault((key, where), []).append((item, error))
    return [(same[0][0], float(np.expm1(np.mean([np.log1p(e) for _, e in same])))) for same in settings.values()]


def _splits(rows: Iterable[Measurement], specs: dict[str, Spec], series: str) -> list[Work]:
    return [work(row, specs) for row in rows if row.series == series and row.operation == "prefill"]


def _stream(rows: Sequence[Measurement], specs: dict[str, Spec]) -> dict[str, tuple[float, float]]:
    """The slope of prefill time over CPU layers is one pass over their weights: the published runs pass a whole
    2048-token prompt as one micro-batch (chunks of 512 would need four times the link)."""
    rates = {}
    for series in ("S06", "S07"):
        items = _splits(rows, specs, series)
        assert items and items[0].gpu, series
        slope, spread = _slope([i.there.read for i in items], [i.seconds for i in items])
        rates[items[0].gpu] = (1 / slope, spread)
    return rates


def _cpu_flops(rows: Sequence[Measurement], specs: dict[str, Spec]) -> tuple[float, float]:
    """FLOP/s of CPU layers in prefill, from a sweep in which they really were computed on the CPU."""
    items = _splits(rows, specs, "S06c")
    slope, spread = _slope([i.there.flops * i.tokens for i in items], [i.seconds for i in items])
    return 1 / slope, spread


def _slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope of relative least squares, and its relative standard error."""
    weight = 1 / np.array(y)
    design = np.column_stack([np.array(x), np.ones(len(x))]) * weight[:, None]
    beta, *_ = np.linalg.lstsq(design / np.abs(design).max(axis=0), np.ones(len(x)), rcond=None)
    scaled = design / np.abs(design).max(axis=0)
    variance = np.sum((scaled @ beta - 1) ** 2) / max(len(x) - 2, 1) * np.linalg.inv(scaled.T @ scaled)[0, 0]
    return float(beta[0] / np.abs(design).max(axis=0)[0]), float(np.sqrt(variance) / abs(beta[0]))


BATCHED = {"pull/3776": "batch", "pull/15802": "ubatch", "pull/7676": "ubatch"}
"""source of a series -> the column with its batch size. A prompt cut into small micro-batches steps as a batch does"""
MOST = 64
"""largest batch taken from micro-batches: beyond it a step is bound by arithmetic, as prefill is"""


def _batch_gpu(rows: Sequence[Measurement], decoded: Fit, specs: dict[str, Spec]) -> tuple[dict[float, float], float]:
    """Relative step time: geometric mean over the series that have a batch size, made rising."""
    series = batch_series(rows, decoded, specs)
    table: dict[float, float] = {1.0: 1.0}
    scatter: list[float] = []
    for batch in sorted({b for s in series for b in s if b > 1}):
        logs = [float(np.log(s[batch])) for s in series if batch in s]
        table[batch] = max(float(np.exp(np.mean(logs))), max(table.values()))
        scatter += [x - float(np.mean(logs)) for x in logs if len(logs) > 1]
    return table, float(np.sqrt(2 * np.mean(np.square(scatter))))


def batch_series(rows: Sequence[Measurement], decoded: Fit, specs: dict[str, Spec]) -> list[dict[float, float]]:
    """Step time over the step time of one sequence, for each published series."""
    steps: dict[str, dict[float, float]] = {key: {} for key in BATCHED}
    for row in rows:
        for key, column in BATCHED.items():
            size = getattr(row, column)
            if key in row.source and size is not None and size <= MOST:
                steps[key][float(size)] = size / row.value
    # The third series starts at batch 16: its batch 1 comes from the decode fit of the same GPU.
    first = next(row for row in rows if "pull/7676" in row.source)
    item = work(first, specs)
    read = decode.read_term(item.here.read + item.here.head, item.gpu, item.quant, item.box, specs)
    launch = decode.launch_factors(item.gpu, item.box, item.eager, specs)
    steps["pull/7676"][1.0] = decoded.seconds([read, Term(float(item.here.launched), launch)])
    return [{b: t / table[1.0] for b, t in table.items()} for table in steps.values()]


def _batch_cpu(rows: Sequence[Measurement]) -> tuple[dict[float, float], float]:
    """Step time over that of one sequence at a short context; the spread is that to a context of 256 tokens."""
    tables = []
    for series in ("own-batch-0", "own-batch-256"):
        steps = {float(r.batch or 1): (r.batch or 1) / r.value for r in rows if r.series == series}
        tables.append({b: t / steps[1.0] for b, t in steps.items()})
    apart = [np.log(tables[1][b] / t) for b, t in tables[0].items() if b > 1]
    return tables[0], float(np.sqrt(np.mean(np.square(apart)) / 2))


def has_rows(gpu: str, items: Iterable[Work], quant: str | None = None) -> bool:
    """Whether a GPU was measured (in a quantisation)."""
    return any(i.gpu == gpu and (quant is None or i.quant == quant) and i.row.gpu != CPU_ONLY for i in items)
