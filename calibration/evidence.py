"""All regressions over the measurement tables, done once: what the profiles are then put together from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmsched_env.costmodel.profile import PROFILES, FitError, load_model
from mmsched_env.costmodel.shapes import Architecture

from . import laws
from .laws import Fit
from .measurements import Decode, Prefill, Row, Split, decode, first, number, prefill, read_rows, split

MODELS = {
    "LLaMA-3 8B": "llama-3-8b-f16",
    "LLaMA-3 70B": "llama-3-70b-q4_k_m",
    "llama 8B": "llama-3-8b-f16",
    "Qwen2.5-Coder-14B": "qwen2.5-14b-f16",
    "Qwen2.5-32B": "qwen2.5-32b-q4_k_m",
    "Qwen2.5-7B": "qwen2.5-7b-f16",
    "SmolLM2-135M": "smollm2-135m-f16",
    "SmolLM2-360M": "smollm2-135m-f16",  # same tokenizer, all that is used of it
    "Qwen2.5-0.5B": "qwen2.5-0.5b-f16",
    "Llama-3.2-1B": "llama-3.2-1b-f16",
    "Qwen2.5-3B": "qwen2.5-3b-f16",
}
"""model in the tables -> a profile with its shape (the row's own quantisation is used)"""

BOXES = {"S05": "desktop-ddr4", "S06": "desktop-ddr5", "S06b": "desktop-ddr5", "S11": "gtx-1060-box"}
"""decode sweep -> the machine it ran on"""


def architecture(model: str) -> Architecture:
    """Shape of a model as the tables name it."""
    return load_model(MODELS[model], PROFILES).architecture


@dataclass(frozen=True)
class Evidence:
    """Everything the profiles need, in SI units."""

    specs: dict[str, Row]
    transfers: list[Row]
    decode: Fit
    decode_errors: dict[str, FitError]
    prefill: dict[str, Fit]
    prefill_errors: dict[str, FitError]
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
    whole = [row for row in bench if row["model"] in ("LLaMA-3 8B", "LLaMA-3 70B")]
    decodes = [decode(r, r["model"], architecture(r["model"])) for r in whole if r["test"] == "tg"]
    prefills = [prefill(r, r["model"], architecture(r["model"])) for r in whole if r["test"] == "pp"]
    decode_fit = laws.fit_linear([laws.decode_work(d) for d in decodes])
    splits = [split(r, architecture(r["model"])) for r in sweeps if r["test"] == "tg" and r["series_id"] in BOXES]
    sweep_fit, sweep_errors = _sweeps(splits, decode_fit)
    prefill_fits, prefill_errors = _prefill(prefills, decode_fit)
    vocab_s = _tokenizer(loads)
    load, load_error = _load(loads, vocab_s)
    batch, batch_error = _batch_gpu(bench, decode_fit)
    flops, flops_error = _cpu_flops([r for r in sweeps if r["series_id"] == "S06c"])
    return Evidence(
        specs=specs,
        transfers=read_rows(folder, "transfer"),
        decode=decode_fit,
        decode_errors=_decode_errors(decodes, decode_fit),
        prefill=prefill_fits,
        prefill_errors=prefill_errors,
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
        unload=_unload(loads),
        disk_load=_disk(loads, load[1]),
        shared_errors={**_other_model(decodes, prefills, decode_fit), "load": load_error, "batch": batch_error},
    )


# -- GPU ---------------------------------------------------------------------------------------------------------------


def _decode_errors(rows: list[Decode], fit: Fit) -> dict[str, FitError]:
    """Each GPU's rows with one generation length left out of all GPUs' rows."""
    errors = {}
    lengths = sorted({r.tokens for r in rows})
    without = {n: laws.fit_linear([laws.decode_work(r) for r in rows if r.tokens != n]) for n in lengths}
    for gpu in dict.fromkeys(r.gpu for r in rows):
        own = [r for r in rows if r.gpu == gpu]
        left = [laws.relative_error(laws.decode_work(r), without[r.tokens]) for r in own]
        inside = laws.error_in_sample(own, laws.decode_work, fit)
        errors[gpu] = FitError(len(own), inside, float(np.median(left)), "one generation length")
    return errors


def _prefill(rows: list[Prefill], decode_fit: Fit) -> tuple[dict[str, Fit], dict[str, FitError]]:
    fits, errors = {}, {}

    def work(row: Prefill) -> tuple[dict[str, float], float]:
        return laws.prefill_work(row, decode_fit)

    for gpu in dict.fromkeys(r.gpu for r in rows):
        own = [r for r in rows if r.gpu == gpu]
        fits[gpu] = laws.fit_linear([work(r) for r in own])
        left = laws.error_left_out(own, work, lambda r: r.tokens)
        errors[gpu] = FitError(len(own), laws.error_in_sample(own, work, fits[gpu]), left, "one prompt length")
    return fits, errors


def _other_model(decodes: list[Decode], prefills: list[Prefill], fit: Fit) -> dict[str, FitError]:
    """The 70B rows of each GPU that ran them, predicted from its 8B rows and the other GPUs: the transfer to another
    model that every unmeasured pair relies on."""
    big = "LLaMA-3 70B"
    gpus = list(dict.fromkeys(r.gpu for r in decodes if r.model == big))
    decode_left, prefill_left = [], []
    for gpu in gpus:
        without = laws.fit_linear([laws.decode_work(r) for r in decodes if (r.gpu, r.model) != (gpu, big)])
        held = [r for r in decodes if (r.gpu, r.model) == (gpu, big)]
        decode_left += [laws.relative_error(laws.decode_work(r), without) for r in held]
        own = [r for r in prefills if r.gpu == gpu]
        small = laws.fit_linear([laws.prefill_work(r, without) for r in own if r.model != big])
        prefill_left += [laws.relative_error(laws.prefill_work(r, without), small) for r in own if r.model == big]
    inside = laws.error_in_sample([r for r in decodes if r.model == big], laws.decode_work, fit)
    what = f"Llama 3 70B, on the {len(gpus)} GPUs that ran it"
    prefill_all = {gpu: laws.fit_linear([laws.prefill_work(r, fit) for r in prefills if r.gpu == gpu]) for gpu in gpus}
    prefill_in = [
        laws.relative_error(laws.prefill_work(r, fit), prefill_all[r.gpu]) for r in prefills if r.model == big
    ]
    return {
        "decode_other_model": FitError(len(decode_left), inside, float(np.median(decode_left)), what),
        "prefill_other_model": FitError(
            len(prefill_left), float(np.median(prefill_in)), float(np.median(prefill_left)), what
        ),
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
    return table, FitError(rows, float(np.median(inside)), float(np.median(log_errors)), "one batch series")


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
        inside = laws.error_in_sample(own, work, fit)
        left = laws.error_left_out(own, work, lambda r: (r.series, r.units_on_gpu))
        errors[box] = FitError(len(own), inside, left, "one n_gpu_layers setting")
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
    left = laws.error_left_out(splits, work, lambda r: r.units_on_gpu)
    error = FitError(len(splits), laws.error_in_sample(splits, work, fit), left, "one n_gpu_layers setting")
    return 1 / fit.coefficients["cpu"], error


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


# -- loading -----------------------------------------------------------------------------------------------------------

RELOAD_SHARE = 0.985
"""of the source paper's preemption time is reloading weights ("more than"); the rest bounds unloading and KV moves"""


def _tokenizer(loads: list[Row]) -> float:
    """Seconds per vocabulary entry: warm memory-mapped loads copy nothing, so that the tokenizer is what is left."""
    rows = [r for r in loads if r["gpu"] == "none (CPU)"]
    return float(np.median([number(r, "seconds") / architecture(r["model"]).vocab for r in rows]))


def _preemptions(loads: list[Row]) -> list[tuple[float, float]]:
    """(weight bytes, seconds) of the paper's cheapest and dearest preemption, taken to be its smallest and largest
    model: the source gives the two ends of a range, not which model they belong to."""
    ends = {"lowest": "qwen2.5-3b-f16", "highest": "qwen2.5-14b-f16"}
    rows = [(m, first((r for r in loads if end in r["operation"]), f"{end} preemption")) for end, m in ends.items()]
    return [(float(load_model(m, PROFILES).file_bytes), number(row, "seconds")) for m, row in rows]


def _load(loads: list[Row], vocab_s: float) -> tuple[tuple[float, float], FitError]:
    """Fixed seconds and bytes/s of a load from host RAM, tokenizer apart."""
    tokenizer = vocab_s * architecture("Qwen2.5-3B").vocab
    points = [(size, RELOAD_SHARE * s - tokenizer) for size, s in _preemptions(loads)]
    ollama = first((r for r in loads if r["engine"] == "Ollama"), "a load by Ollama")
    points.append((number(ollama, "size_gb") * 1e9, number(ollama, "seconds") - tokenizer))

    def work(point: tuple[float, float]) -> tuple[dict[str, float], float]:
        return {"const": 1.0, "byte": point[0]}, point[1]

    fit = laws.fit_linear([work(p) for p in points])
    left = laws.error_left_out(points, work, lambda p: p)
    error = FitError(len(points), laws.error_in_sample(points, work, fit), left, "one load")
    return (fit.coefficients["const"], 1 / fit.coefficients["byte"]), error


def _unload(loads: list[Row]) -> tuple[float, float]:
    """Upper bound: all of the paper's preemption time that is not reload."""
    points = _preemptions(loads)
    slope, fixed = laws.line([size for size, _ in points], [(1 - RELOAD_SHARE) * s for _, s in points])
    return fixed, 1 / slope


def _disk(loads: list[Row], load_rate: float) -> float:
    """Bytes/s of one cold load from disk: the slope over model size, less the copy to the GPU that follows."""
    params = {"Llama-2-13B": 13.02e9, "OPT-30B": 29.97e9, "LLaMA-2-70B": 68.98e9}
    rows = [r for r in loads if r["model"] in params]
    work = [({"const": 1.0, "byte": 2 * params[r["model"]]}, number(r, "seconds")) for r in rows]
    per_byte = laws.fit_linear(work).coefficients["byte"] - 1 / load_rate
    return 1 / per_byte
