"""GPU profiles out of the evidence: which figure each number is, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mmsched_env.costmodel.number import Curve, Number
from mmsched_env.costmodel.profile import FitError, GpuProfile

from .evidence import Evidence
from .measurements import architecture, first, number
from .sources import BATCH_SOURCES, GIB, LLAMA_TABLES, OWN_CPU, PAPER, SWEEP_4090, SWEEP_5060TI

QUANTS = ("f16", "q4_k_m")


BIG_COPY_GB = 0.1
"""copies smaller than this are bound by latency and say nothing about a rate"""


def gpu_profile(name: str, label: str, found: Evidence) -> GpuProfile:
    """Profile of the GPU that the tables call `label`."""
    layer_s, read = _read(label, found)
    compute, attention = _compute(label, found)
    spec = found.specs[label]
    return GpuProfile(
        name=name,
        capacity=Number(number(spec, "gpu_mem_gb") * GIB, "B", "imported", spec["source_url"]),
        reserve=Number(
            0.75 * GIB,
            "B",
            "assumed",
            "driver, display and the contexts of a few engine processes; nobody published it",
        ),
        read=read,
        kv_read=_kv_read(label, found),
        layer_s=layer_s,
        hybrid_s=_hybrid(found),
        cpu_only_s=Number(found.cpu_const_s, "s", "fitted", f"intercept over model size; {OWN_CPU}"),
        batch=Curve(
            tuple(found.batch_gpu.items()),
            "relative",
            "fitted",
            f"shared by all GPUs: mean of three series; {BATCH_SOURCES}",
        ),
        compute=compute,
        width_exponent=Number(
            found.width_exponent, "relative", "fitted", f"Llama 3 8B against 70B, median over 4 GPUs; {LLAMA_TABLES}"
        ),
        attention=attention,
        stream=_stream(label, found),
        stream_min_tokens=Number(32, "tokens", "imported", "llama.cpp's rule: smaller batches stay on the CPU"),
        **_link(label, found),
        **_loading(found),
        errors=_gpu_errors(label, found),
    )


def _read(label: str, found: Evidence) -> tuple[Number, dict[str, Number]]:
    """Launch overhead of a layer and read rate by quantisation."""
    rates = found.decode.coefficients
    shared = Number(found.layer_s, "s", "fitted", f"shared by all GPUs; {LLAMA_TABLES}")
    read = {}
    for quant in QUANTS:
        key = f"read {label} {quant}"
        if key in rates:
            read[quant] = Number(1 / rates[key], "B/s", "fitted", LLAMA_TABLES)
        else:
            read[quant] = _scaled(label, found, "gb_per_s", 1e9, _read_rate(quant), f"read rate at {quant.upper()}")
    if label == "RTX 5060 Ti":
        return _layer_from_sweep(read["q4_k_m"].value, found), read
    return shared, read


def _layer_from_sweep(read: float, found: Evidence) -> Number:
    """With the read rate predicted from the data sheet, the one row with all layers on the GPU gives the overhead."""
    row = first((r for r in found.sweep_rows if r.series == "S05" and r.cpu_bytes == 0), "series S05, all layers")
    source = f"what the predicted read rate leaves of the all-GPU row; {SWEEP_5060TI}"
    return Number(max(row.seconds - row.gpu_bytes / read, 0.0) / row.gpu_layers, "s", "fitted", source)


def _kv_read(label: str, found: Evidence) -> Number:
    key = f"kv {label}"
    if key in found.decode.coefficients:
        return Number(1 / found.decode.coefficients[key], "B/s", "fitted", f"growth with context; {LLAMA_TABLES}")
    return _scaled(label, found, "gb_per_s", 1e9, _kv_rate, "KV read rate")


def _compute(label: str, found: Evidence) -> tuple[dict[str, Number], Number]:
    """Prefill arithmetic by quantisation, and of attention."""
    if label in found.prefill:
        rates = found.prefill[label].coefficients
        compute = {q: Number(1 / rates[f"compute {q}"], "FLOP/s", "fitted", LLAMA_TABLES) for q in QUANTS}
        return compute, Number(1 / rates["attention"], "FLOP/s", "fitted", f"growth with length; {LLAMA_TABLES}")
    compute = {
        q: _scaled(label, found, "fp32_tflops", 1e12, _prefill_rate(f"compute {q}"), f"prefill rate at {q.upper()}")
        for q in QUANTS
    }
    return compute, _scaled(label, found, "fp32_tflops", 1e12, _prefill_rate("attention"), "attention rate")


def _read_rate(quant: str) -> Callable[[Evidence, str], float | None]:
    return lambda found, gpu: _inverse(found.decode.coefficients.get(f"read {gpu} {quant}"))


def _kv_rate(found: Evidence, gpu: str) -> float | None:
    return _inverse(found.decode.coefficients.get(f"kv {gpu}"))


def _prefill_rate(key: str) -> Callable[[Evidence, str], float | None]:
    return lambda found, gpu: _inverse(found.prefill[gpu].coefficients.get(key)) if gpu in found.prefill else None


def _inverse(value: float | None) -> float | None:
    return 1 / value if value else None


def _scaled(
    label: str, found: Evidence, column: str, scale: float, rate: Callable[[Evidence, str], float | None], what: str
) -> Number:
    """Predict a rate from a data-sheet figure: median of rate / figure over the GPUs that have both."""
    ratios, unit = _ratios(found, column, scale, rate), "B/s" if column == "gb_per_s" else "FLOP/s"
    spread = _leave_one_out(ratios)
    value = float(np.median(ratios)) * number(found.specs[label], column) * scale
    source = (
        f"data sheet ({column}) times the median ratio over {len(ratios)} fitted GPUs, {what} there off by "
        f"{spread:.0%} (median, each left out); {found.specs[label]['source_url']}"
    )
    return Number(value, unit, "predicted", source)


def _ratios(found: Evidence, column: str, scale: float, rate: Callable[[Evidence, str], float | None]) -> list[float]:
    pairs = [(rate(found, gpu), spec) for gpu, spec in found.specs.items() if spec[column]]
    return [value / (number(spec, column) * scale) for value, spec in pairs if value]


def _leave_one_out(ratios: list[float]) -> float:
    others = [float(np.median(ratios[:i] + ratios[i + 1 :])) for i in range(len(ratios))]
    return float(np.median([abs(o / r - 1) for o, r in zip(others, ratios, strict=True)]))


def _hybrid(found: Evidence) -> Number:
    """A split iteration pays the CPU's constant and what the sweeps add to it."""
    extra = found.sweep.coefficients["hybrid"]
    source = (
        f"the CPU's constant ({OWN_CPU}) plus {extra * 1e3:.2f} ms fitted over sweeps of 7-32 B models on CUDA GPUs"
    )
    return Number(found.cpu_const_s + extra, "s", "fitted", source)


def _stream(label: str, found: Evidence) -> Number:
    if label in found.stream:
        return Number(found.stream[label], "B/s", "fitted", f"slope of prefill time over CPU layers; {SWEEP_4090}")
    shares = [rate / _transfer(gpu, "H2D", "y", found).value for gpu, rate in found.stream.items()]
    share = float(np.exp(np.mean(np.log(shares))))
    value = share * _transfer(label, "H2D", "y", found).value
    source = f"{share:.0%} of the pinned link rate: mean of the two GPUs measured; {SWEEP_4090}"
    return Number(value, "B/s", "predicted", source)


def _link(label: str, found: Evidence) -> dict[str, Number]:
    latency = first((r for r in found.transfers if r["message_size"] == "3 KB" and r["pinned"] == "n"), "a small copy")
    layers = architecture("LLaMA-3 70B").layers
    source = f"2 copies for each of {layers} layers at the latency of a small copy; {latency['source_url']}"
    return {
        "link_in": _transfer(label, "H2D", "y", found),
        "link_out": _transfer(label, "D2H", "y", found),
        "restore": _transfer(label, "H2D", "n", found),
        "save": _transfer(label, "D2H", "n", found),
        "copy_s": Number(2 * layers * number(latency, "seconds"), "s", "predicted", source),
    }


def _transfer(label: str, direction: str, pinned: str, found: Evidence) -> Number:
    """Copy rate: the GPU's own rows, else the same link on other GPUs, else the pinned rate times a usual ratio."""
    rows = [r for r in found.transfers if r["direction"] == direction and r["pinned"] == pinned and r["gb_per_s"]]
    link = found.specs[label]["link"]
    own = [r for r in rows if _same_gpu(r["gpu"], label)]
    same_link = [r for r in rows if link in (r["link"], _link_of(r["gpu"], found))]
    for chosen, provenance in ((own, "imported"), (same_link, "predicted")):
        if chosen:
            rate = float(np.median([number(r, "gb_per_s") for r in chosen])) * 1e9
            gpus = " and ".join(sorted({r["gpu"] for r in chosen}))
            return Number(rate, "B/s", provenance, f"{gpus}, {link}; {chosen[0]['source_url']}")
    full = _transfer(label, direction, "y", found)
    ratio = _pageable_share(direction, found)
    return Number(
        ratio * full.value, "B/s", "predicted", f"{ratio:.0%} of the pinned rate, as on other GPUs: {full.source}"
    )


def _pageable_share(direction: str, found: Evidence) -> float:
    """Median over GPUs of pageable over pinned copy rate."""
    rates: dict[str, dict[str, list[float]]] = {}
    for row in found.transfers:
        if row["direction"] == direction and row["gb_per_s"]:
            rates.setdefault(row["gpu"], {}).setdefault(row["pinned"], []).append(number(row, "gb_per_s"))
    shares = [np.median(r["n"]) / np.median(r["y"]) for r in rates.values() if {"y", "n"} <= set(r)]
    return float(np.median(shares))


def _same_gpu(table_name: str, label: str) -> bool:
    return table_name == label or (label == "H100 PCIe" and table_name.startswith("H100"))


def _link_of(table_name: str, found: Evidence) -> str:
    return found.specs[table_name]["link"] if table_name in found.specs else ""


def _loading(found: Evidence) -> dict[str, Number]:
    start_s, load = found.load
    fixed, rate = found.unload
    ends = "two ends of the paper's range taken as its 3B and 14B F16 models, and one Ollama load on an RTX 4090"
    bound = f"upper bound: all of the paper's preemption time that is not reload (under 1.5 %); {PAPER}"
    return {
        "start_s": Number(start_s, "s", "fitted", f"{ends}; {PAPER}"),
        "vocab_s": Number(found.vocab_s, "s", "fitted", f"tokenizer share of warm loads; {OWN_CPU}"),
        "load": Number(load, "B/s", "fitted", f"{ends}; shared by all GPUs: the host's side binds; {PAPER}"),
        "unload_s": Number(fixed, "s", "predicted", bound),
        "unload": Number(rate, "B/s", "predicted", bound),
    }


def _gpu_errors(label: str, found: Evidence) -> dict[str, FitError]:
    own = {}
    if label in found.decode_errors:
        own = {"decode": found.decode_errors[label], "prefill": found.prefill_errors[label]}
    return {**own, **found.shared_errors}
