"""All regressions over the measurement tables, done once: what the profiles are then put together from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmsched_env.costmodel.profile import FitError

from . import laws, loading
from .laws import Fit
from .measurements import Decode, Prefill, Row, Split, architecture, decode, number, prefill, read_rows, split

SMALL, BIG = "LLaMA-3 8B", "LLaMA-3 70B"

BOXES = {"S05": "desktop-ddr4", "S06": "desktop-ddr5", "S06b": "desktop-ddr5", "S11": "gtx-1060-box"}
"""decode sweep -> the machine it ran on"""


@dataclass(frozen=True)
class Evidence:
    """Everything the profiles need, in SI units."""

    specs: dict[str, Row]
    transfers: list[Row]
    decode: Fit
    decode_errors: dict[str, FitError]
    prefill: dict[str, Fit]
    prefill_errors: dict[str, FitError]
    width_exponent: float
    sweep: Fit
    sweep_errors: dict[str, FitError]
    cpu_const_s: float
    sweep_rows: list[Split]
    stream: dict[str, float]
    cpu_flops: float
    cpu_flops_error: FitError
    batch_gpu: dict[float, float]
    batch_cpu: dict[float, float]
    kv_cpu: float
    """bytes/s of KV cache read by CPU layers on a DDR5 desktop"""
    load: tuple[float, float]
    """fixed seconds, bytes/s"""
    vocab_s: float
    unload: tuple[float, float]
    disk_load: float
    shared_errors: dict[str, FitError]
    """of what is fitted once for all GPUs"""

    @property
    def layer_s(self) -> float:
        """Launch overhead of a layer, shared by all GPUs."""
        return self.decode.coefficients["layer"]


def gather(folder: Path) -> Evidence:
    """Read the tables and run every regression."""
    bench = read_rows(folder, "decode_prefill")
    sweeps = read_rows(folder, "offload_sweeps")
    loads = read_rows(folder, "load_times")
    specs = {row["gpu"]: row for row in read_rows(folder, "gpu_specs")}
    whole = [row for row in bench if row["model"] in (SMALL, BIG)]
    decodes = [decode(r, r["model"], architecture(r["model"])) for r in whole if r["test"] == "tg"]
    prefills = [prefill(r, r["model"], architecture(r["model"])) for r in whole if r["test"] == "pp"]
    decode_fit = laws.fit_linear([laws.decode_work(d) for d in decodes])
    splits = [split(r, architecture(r["model"])) for r in sweeps if r["test"] == "tg" and r["series_id"] in BOXES]
    sweep_fit, sweep_errors = _sweeps(splits, decode_fit)
    exponents = _width_exponent(prefills, decode_fit)
    exponent = float(np.median(list(exponents.values())))
    prefill_fits, prefill_errors = _prefill(prefills, decode_fit, exponent)
    vocab_s = loading.tokenizer(loads)
    load, load_error = loading.load(loads, vocab_s)
    batch, batch_error = _batch_gpu(bench, decode_fit)
    flops, flops_error = _cpu_flops([r for r in sweeps if r["series_id"] == "S06c"])
    return Evidence(
        specs=specs,
        transfers=read_rows(folder, "transfer"),
        decode=decode_fit,
        decode_errors=_decode_errors(decodes, decode_fit),
        prefill=prefill_fits,
        prefill_errors=prefill_errors,
        width_exponent=exponent,
        sweep=sweep_fit,
        sweep_errors=sweep_errors,
        cpu_const_s=_cpu_const(bench),
        sweep_rows=splits,
        stream=_stream(sweeps),
        cpu_flops=flops,
        cpu_flops_error=flops_error,
        batch_gpu=batch,
        batch_cpu=_batch_cpu(bench),
        kv_cpu=_kv_cpu(sweeps),
        load=load,
        vocab_s=vocab_s,
        unload=loading.unload(loads),
        disk_load=loading.disk(loads, load[1]),
        shared_errors={
            **_other_model(decodes, prefills, decode_fit, exponents),
            "load": load_error,
            "batch": batch_error,
        },
    )


# -- GPU ---------------------------------------------------------------------------------------------------------------


def _decode_errors(rows: list[Decode], fit: Fit) -> dict[str, FitError]:
    """Each GPU's rows with one generation length left out of all GPUs' rows."""
    errors = {}
    without = {
        n: laws.fit_linear([laws.decode_work(r) for r in rows if r.tokens != n]) for n in {r.tokens for r in rows}
    }
    for gpu in dict.fromkeys(r.gpu for r in rows):
        own = [r for r in rows if r.gpu == gpu]
        left = [laws.relative_error(laws.decode_work(r), without[r.tokens]) for r in own]
        errors[gpu] = laws.fit_error(own, laws.decode_work, fit, left, "one generation length")
    return errors


def _width_exponent(rows: list[Prefill], decode_fit: Fit) -> dict[str, float]:
    """Power of the width at which the prefill rate grew from Llama 3 8B to 70B, on each GPU that ran both."""
    exponents = {}
    for gpu in dict.fromkeys(r.gpu for r in rows if r.model == BIG):
        pair = {}
        for model in (SMALL, BIG):
            own = [r for r in rows if (r.gpu, r.model, r.quant) == (gpu, model, "q4_k_m")]
            fit = laws.fit_linear([laws.prefill_work(r, decode_fit, 0.0) for r in own])
            pair[model] = (own[0].width, fit.coefficients["compute q4_k_m"])
        exponents[gpu] = float(np.log(pair[SMALL][1] / pair[BIG][1]) / np.log(pair[BIG][0] / pair[SMALL][0]))
    return exponents


def _prefill(rows: list[Prefill], decode_fit: Fit, exponent: float) -> tuple[dict[str, Fit], dict[str, FitError]]:
    fits, errors = {}, {}

    def work(row: Prefill) -> tuple[dict[str, float], float]:
        return laws.prefill_work(row, decode_fit, exponent)

    for gpu in dict.fromkeys(r.gpu for r in rows):
        own = [r for r in rows if r.gpu == gpu]
        fits[gpu] = laws.fit_linear([work(r) for r in own])
        left = laws.errors_left_out(own, work, lambda r: r.tokens)
        errors[gpu] = laws.fit_error(own, work, fits[gpu], left, "one prompt length")
    return fits, errors


def _other_model(
    decodes: list[Decode], prefills: list[Prefill], decode_fit: Fit, exponents: dict[str, float]
) -> dict[str, FitError]:
    """The 70B rows of each GPU that ran them, predicted from its 8B rows and the other GPUs: the transfer to another
    model that every unmeasured pair relies on."""
    decode_left, decode_big = [], [r for r in decodes if r.model == BIG]
    prefill_left, prefill_in, prefill_big = [], [], [r for r in prefills if r.model == BIG]
    for gpu in exponents:
        exponent = float(np.median([e for other, e in exponents.items() if other != gpu]))
        without = laws.fit_linear([laws.decode_work(r) for r in decodes if (r.gpu, r.model) != (gpu, BIG)])
        own = [r for r in prefills if r.gpu == gpu]
        small = laws.fit_linear([laws.prefill_work(r, without, exponent) for r in own if r.model == SMALL])
        decode_left += [laws.relative_error(laws.decode_work(r), without) for r in decode_big if r.gpu == gpu]
        held = [laws.prefill_work(r, without, exponent) for r in own if r.model == BIG]
        prefill_left += [laws.relative_error(work, small) for work in held]
        whole = laws.fit_linear([laws.prefill_work(r, decode_fit, exponent) for r in own])
        prefill_in += [
            laws.relative_error(laws.prefill_work(r, decode_fit, exponent), whole) for r in own if r.model == BIG
        ]
    what = f"Llama 3 70B, on the {len(exponents)} GPUs that ran it"
    median_in, median_left = float(np.median(prefill_in)), float(np.median(prefill_left))
    return {
        "decode_other_model": laws.fit_error(decode_big, laws.decode_work, decode_fit, decode_left, what),
        "prefill_other_model": FitError(len(prefill_big), median_in, median_left, max(prefill_left), what),
    }


def _batch_gpu(bench: list[Row], decode_fit: Fit) -> tuple[dict[float, float], FitError]:
    """Relative step time: geometric mean over the series that have a batch size, made rising."""
    series = _batch_series(bench, decode_fit)
    table: dict[float, float] = {1.0: 1.0}
    log_errors = []
    for batch in sorted({b for s in series for b in s if b > 1}):
        logs = [float(np.log(s[batch])) for s in series if batch in s]
        table[batch] = max(float(np.exp(np.mean(logs))), max(table.values()))
        log_errors += [abs(np.expm1(np.mean([o for o in logs if o != x]) - x)) for x in logs if len(logs) > 1]
    inside = [abs(table[b] / t - 1) for s in series for b, t in s.items() if b > 1]
    rows = sum(len(s) for s in series)
    left, worst = float(np.median(log_errors)), float(max(log_errors))
    return table, FitError(rows, float(np.median(inside)), left, worst, "one batch series")


def _batch_series(bench: list[Row], decode_fit: Fit) -> list[dict[float, float]]:
    """Step time over the step time of batch 1, for each published series."""
    steps: dict[str, dict[float, float]] = {"pull/3776": {}, "pull/15802": {}, "pull/7676": {}}
    for row in bench:
        for key, table in steps.items():
            if key in row["source_url"]:
                table[float(row["batch"])] = float(row["batch"]) / number(row, "tokens_per_s")
    # The third series starts at batch 16: its batch 1 comes from the decode fit of the same GPU.
    arch = architecture("llama 8B")
    weights = arch.layers * arch.layer_bytes("q4_0") + arch.head_bytes("q4_0")
    steps["pull/7676"][1.0] = decode_fit.seconds({"read RTX 4090 q4_k_m": weights, "layer": float(arch.layers)})
    return [{b: t / table[1.0] for b, t in table.items()} for table in steps.values()]


def _stream(sweeps: list[Row]) -> dict[str, float]:
    """Bytes/s at which CPU layers reach the GPU in prefill. The slope over CPU layers is one pass over their weights:
    the published runs pass a whole 2048-token prompt as one micro-batch (chunks of 512 would need four times the link).
    """
    rates = {}
    for series, gpu in (("S06", "RTX 4090"), ("S07", "RTX 4080")):
        rows = [split(r, architecture(r["model"])) for r in sweeps if r["series_id"] == series and r["test"] == "pp"]
        slope, _ = laws.line([r.cpu_layer_bytes for r in rows], [r.seconds * r.tokens for r in rows])
        rates[gpu] = 1 / slope
    return rates


# -- host --------------------------------------------------------------------------------------------------------------


def _sweeps(rows: list[Split], decode_fit: Fit) -> tuple[Fit, dict[str, FitError]]:
    def work(row: Split) -> tuple[dict[str, float], float]:
        return laws.sweep_work(row, BOXES[row.series], decode_fit.coefficients["layer"])

    fit = laws.fit_linear([work(r) for r in rows])
    errors = {}
    for box in dict.fromkeys(BOXES.values()):
        own = [r for r in rows if BOXES[r.series] == box]
        left = laws.errors_left_out(own, work, lambda r: (r.series, r.units_on_gpu))
        errors[box] = laws.fit_error(own, work, fit, left, "one n_gpu_layers setting")
    return fit, errors


def _cpu_const(bench: list[Row]) -> float:
    """Fixed part of an all-CPU iteration: intercept over model size, with one rate for each quantisation."""
    rows = []
    for row in bench:
        if row["gpu"] == "none (CPU)" and "single decode" in row["note"]:
            arch, quant = architecture(row["model"]), row["quant"].lower()
            weights = arch.layers * arch.layer_bytes(quant) + arch.head_bytes(quant)
            rows.append(({"const": 1.0, quant: weights}, 1 / number(row, "tokens_per_s")))
    return laws.fit_linear(rows).coefficients["const"]


def _cpu_flops(rows: list[Row]) -> tuple[float, FitError]:
    """FLOP/s of CPU layers in prefill, from a sweep in which they really were computed on the CPU."""
    splits = [split(r, architecture(r["model"])) for r in rows]

    def work(row: Split) -> tuple[dict[str, float], float]:
        return {"cpu": row.cpu_layer_flops, "all": 1.0}, row.seconds

    fit = laws.fit_linear([work(r) for r in splits])
    left = laws.errors_left_out(splits, work, lambda r: r.units_on_gpu)
    return 1 / fit.coefficients["cpu"], laws.fit_error(splits, work, fit, left, "one n_gpu_layers setting")


def _batch_cpu(bench: list[Row]) -> dict[float, float]:
    rows = [r for r in bench if r["gpu"] == "none (CPU)" and "batch series" in r["note"]]
    steps = {float(r["batch"]): float(r["batch"]) / number(r, "tokens_per_s") for r in rows}
    return {b: t / steps[1.0] for b, t in steps.items()}


KV_LAYER_BYTES = 2 * 8 * 128 * 34 / 32
"""of one token in the depth series: q8_0 cache; 8 KV heads of 128 are assumed, the source does not give the shape"""


def _kv_cpu(sweeps: list[Row]) -> float:
    """Bytes/s: what a CPU layer costs more, per token, at a depth of 15k tokens than at none."""
    per_layer = {}
    for series in ("S21", "S21d"):
        rows = [r for r in sweeps if r["series_id"] == series]
        times = [1 / number(r, "tokens_per_s") for r in rows]
        per_layer[series] = -laws.line([float(r["n_gpu_layers"]) for r in rows], times)[0]
        depth = max(float(r["depth"]) for r in rows)
    return KV_LAYER_BYTES * depth / (per_layer["S21d"] - per_layer["S21"])
