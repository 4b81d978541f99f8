"""GPU profiles out of the evidence: which figure each number is, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from mmsched_env.costmodel.number import Curve, Number
from mmsched_env.costmodel.profile import FitError, GpuProfile, load_model
from mmsched_env.costmodel.shapes import RECIPES

from . import decode, prefill
from .evidence import Evidence, has_rows
from .expert_batches import SOURCE as EXPERT_BATCHES
from .loglinear import Factors
from .names import Spec, gpu_of
from .schema import Measurement
from .sources import BATCH_SOURCES, GIB, OWN_CPU, PAPER, SWEEP_4090
from .work import Work

NOT_PROFILED = ("unified",)
"""kinds of memory: a GPU that shares its memory with the CPU has neither a link nor a load of its own"""

PREDICTED_ONLY = ("rtx-3060-12gb",)
"""profiled from the data sheet alone"""

GRAPHS_ON = "builds since 2024-06: recorded launches, flash attention"
GRAPHS_OFF = "builds before 2024-06"

BIG_COPY = 1e8
"""bytes; copies of less are bound by latency and say nothing about a rate"""


def profiled(found: Evidence) -> list[str]:
    """Names of the GPUs that get a profile: measured ones, and those asked for."""
    measured = [g for g, spec in found.specs.items() if spec.memory not in NOT_PROFILED and has_rows(g, found.decodes)]
    return sorted({*measured, *PREDICTED_ONLY})


def gpu_profile(name: str, found: Evidence, errors: dict[str, FitError]) -> GpuProfile:
    """Profile of one GPU."""
    spec = found.specs[name]
    return GpuProfile(
        name=name,
        capacity=Number(spec.gpu_mem_gb * GIB, "B", "imported", spec.source_url),
        reserve=Number(
            0.75 * GIB,
            "B",
            "assumed",
            "driver, display and the contexts of a few engine processes; nobody published it",
        ),
        read={quant: _read(name, quant, found) for quant in RECIPES},
        kv_read=_kv_read(name, found),
        **_launches(name, found),
        **_constants(found),
        batch=_batch(found),
        expert_reach=Number(
            found.expert_reach[0],
            "relative",
            "fitted",
            f"shared by all GPUs: batches of {found.expert_reach[2]} mixtures of experts; {EXPERT_BATCHES}",
            found.expert_reach[1],
        ),
        compute={quant: _compute(name, quant, found) for quant in RECIPES},
        expert_compute=_exp(
            found.prefill.log(((("experts",), 1.0),)), "relative", "fitted", "mixtures of experts, all GPUs"
        ),
        width_exponent=_width(found),
        attention=_attention(name, False, found),
        attention_eager=_attention(name, True, found),
        stream=_stream(name, found),
        stream_min_tokens=Number(32, "tokens", "imported", "llama.cpp's rule: smaller batches stay on the CPU"),
        **_link(name, found),
        **_loading(found),
        operation_share=Number(
            0.0, "share", "assumed", "copies run beside kernels; nobody published by how much they do not"
        ),
        errors=errors,
    )


def _exp(log: tuple[float, float], unit: str, provenance: str, source: str, sign: float = 1.0) -> Number:
    """A figure whose logarithm was fitted, with its relative standard error."""
    value, spread = log
    return Number(math.exp(sign * value), unit, provenance, source, spread)


def _rate(
    factors: Factors, offset: float, fitted: bool, unit: str, source: str, found_log: tuple[float, float]
) -> Number:
    """A rate out of the logarithm of its inverse."""
    return _exp((found_log[0] + offset, found_log[1]), unit, "fitted" if fitted else "predicted", source, -1.0)


def sources(name: str, items: Iterable[Work]) -> str:
    """Where a GPU's rows come from: their number, and the sources that have most of them."""
    rows = [item.row.source for item in items if item.gpu == name]
    often = sorted(set(rows), key=lambda source: (-rows.count(source), source))
    return f"{len(rows)} rows; {' ; '.join(often[:3])}"


def _read(name: str, quant: str, found: Evidence) -> Number:
    term = decode.read_term(1.0, name, quant, "", found.specs)
    own = has_rows(name, found.decodes, quant)
    if own:
        source = sources(name, [i for i in found.decodes if i.quant == quant])
    elif has_rows(name, found.decodes):
        source = f"its other quantisations, and {quant.upper()} on other GPUs; {sources(name, found.decodes)}"
    else:
        source = f"data sheet ({found.specs[name].gb_per_s:g} GB/s), other GPUs; {found.specs[name].source_url}"
    return _rate(term.factors, term.offset, own, "B/s", source, found.decode.log(term.factors))


def _kv_read(name: str, found: Evidence) -> Number:
    term = decode.kv_term(1.0, name, "", found.specs)
    contexts = {i.context for i in found.decodes if i.gpu == name}
    own = len(contexts) > 1
    source = (
        f"growth with context; {sources(name, found.decodes)}" if own else "share of the memory's rate on other GPUs"
    )
    return _rate(term.factors, term.offset, own, "B/s", source, found.decode.log(term.factors))


def _launches(name: str, found: Evidence) -> dict[str, Number]:
    own = has_rows(name, found.decodes)

    def layer(eager: bool) -> Number:
        log = found.decode.log(decode.launch_factors(name, "", eager, found.specs))
        rows = sources(name, found.decodes) if own else "other GPUs"
        return _exp(log, "s", "fitted" if own else "predicted", f"{GRAPHS_OFF if eager else GRAPHS_ON}; {rows}")

    every = "all GPUs together"
    return {
        "layer_s": layer(False),
        "layer_eager_s": layer(True),
        "linear_launch": _exp(
            found.decode.log(((("linear layer",), 1.0),)), "relative", "fitted", f"Qwen3.5 and 3.6, {every}"
        ),
        "expert_launch": _exp(
            found.decode.log(((("expert layer",), 1.0),)), "relative", "fitted", f"mixtures of experts, {every}"
        ),
    }


def _constants(found: Evidence) -> dict[str, Number]:
    def constant(*key: str) -> tuple[float, float]:
        return found.decode.log(((key, 1.0),))

    sweeps = "sweeps of dense models over n_gpu_layers, all machines; hardly separable from the machine's rate"
    experts = "sweeps over n_cpu_moe, all machines; hardly separable from the machine's rate"
    return {
        "hybrid_s": _exp(constant("hybrid", "layers"), "s", "fitted", sweeps),
        "expert_entry_s": _exp(constant("hybrid", "experts"), "s", "fitted", experts),
        "cpu_only_s": _exp(constant("cpu only"), "s", "fitted", f"intercept over model size; {OWN_CPU}"),
    }


def _batch(found: Evidence) -> Curve:
    table, spread = found.batch_gpu
    return Curve(
        tuple(table.items()), "relative", "fitted", f"shared by all GPUs: mean of three series; {BATCH_SOURCES}", spread
    )


def _compute(name: str, quant: str, found: Evidence) -> Number:
    factors, offset = prefill.arithmetic(name, quant, found.specs)
    own = has_rows(name, found.prefills, quant)
    if own:
        source = sources(name, [i for i in found.prefills if i.quant == quant])
    elif has_rows(name, found.prefills):
        source = f"its other quantisations, and {quant.upper()} on other GPUs"
    else:
        source = (
            f"data sheet ({found.specs[name].fp32_tflops:g} TFLOP/s at F32), other GPUs; {found.specs[name].source_url}"
        )
    return _rate(factors, offset, own, "FLOP/s", source, found.prefill.log(factors))


def _width(found: Evidence) -> Number:
    value, error = found.prefill.log(((("width",), 1.0),))
    # The fit holds the exponent itself, not its logarithm.
    return Number(value, "relative", "fitted", "models of several widths on the GPUs that ran them", error / value)


def _attention(name: str, eager: bool, found: Evidence) -> Number:
    factors, offset = prefill.attention(name, eager, found.specs)
    own = len({i.tokens + (i.row.depth or 0) for i in found.prefills if i.gpu == name}) > 1
    what = "growth with length" if own else "data sheet, other GPUs"
    return _rate(
        factors,
        offset,
        own,
        "FLOP/s",
        f"{what}; {GRAPHS_OFF if eager else GRAPHS_ON}",
        found.prefill.log(factors),
    )


def _stream(name: str, found: Evidence) -> Number:
    if name in found.stream:
        rate, spread = found.stream[name]
        return Number(rate, "B/s", "fitted", f"slope of prefill time over CPU layers; {SWEEP_4090}", spread)
    logs = [math.log(rate / _transfer(gpu, "copy_h2d", True, found).value) for gpu, (rate, _) in found.stream.items()]
    link = _transfer(name, "copy_h2d", True, found)
    share = math.exp(float(np.mean(logs)))
    source = f"{share:.0%} of the pinned link rate: mean of the two GPUs measured; {SWEEP_4090}"
    return Number(share * link.value, "B/s", "predicted", source, float(np.std(logs, ddof=1)))


def _link(name: str, found: Evidence) -> dict[str, Number]:
    small = next(r for r in found.rows if r.operation == "copy_d2h" and r.unit == "s" and not r.pinned)
    layers = load_model("llama-3-70b-f16").architecture.layers
    source = f"2 copies for each of {layers} layers at the latency of a small copy; {small.source}"
    return {
        "link_in": _transfer(name, "copy_h2d", True, found),
        "link_out": _transfer(name, "copy_d2h", True, found),
        "restore": _transfer(name, "copy_h2d", False, found),
        "save": _transfer(name, "copy_d2h", False, found),
        "copy_s": Number(2 * layers * small.value, "s", "predicted", source),
    }


def copies(found: Evidence, operation: str, pinned: bool) -> list[Measurement]:
    """Large copies in one direction, by rate."""
    return [
        row
        for row in found.rows
        if (row.operation, row.unit, row.pinned) == (operation, "B/s", pinned)
        and (row.size_bytes or BIG_COPY) >= BIG_COPY
    ]


def _transfer(name: str, operation: str, pinned: bool, found: Evidence) -> Number:
    """Copy rate: the GPU's own rows, else the same link on other GPUs, else the pinned rate times a usual ratio."""
    rows, link = copies(found, operation, pinned), found.specs[name].link
    of = {row.gpu: gpu_of(row, found.specs) for row in rows}
    own = [row for row in rows if of[row.gpu] == name and row.link in (link, "pcie", "")]
    same = [row for row in rows if _link_of(row, of[row.gpu], found.specs) == link]
    for chosen, provenance in ((own, "imported"), (same, "predicted")):
        if chosen:
            rates = [row.value for row in chosen]
            spread = float(np.std(np.log(rates))) if len(rates) > 1 else None
            gpus = " and ".join(sorted({row.gpu for row in chosen}))
            return Number(float(np.median(rates)), "B/s", provenance, f"{gpus}, {link}; {chosen[0].source}", spread)
    if pinned:
        return _by_width(link, operation, found)
    full = _transfer(name, operation, True, found)
    share, spread = _pageable_share(operation, found)
    source = f"{share:.0%} of the pinned rate, as on other GPUs: {full.source}"
    return Number(share * full.value, "B/s", "predicted", source, spread)


def _link_of(row: Measurement, gpu: str | None, specs: dict[str, Spec]) -> str:
    """Link of a copy; `pcie` alone is that of the GPU's data sheet."""
    return specs[gpu].link if row.link == "pcie" and gpu else row.link


def lanes(link: str) -> float:
    """Bytes/s of a PCI Express link by its standard: pcie4x16 is 31.5e9."""
    generation, width = link.removeprefix("pcie").split("x")
    return {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938}[int(generation)] * 1e9 * int(width)


def _by_width(link: str, operation: str, found: Evidence) -> Number:
    """A link nobody measured in this direction: its standard's rate times the usual share."""
    rows = [row for row in copies(found, operation, True) if row.link.startswith("pcie") and "x" in row.link]
    shares = [math.log(row.value / lanes(row.link)) for row in rows]
    share = math.exp(float(np.median(shares)))
    source = f"{share:.0%} of what the standard of {link} allows, as on other links; {rows[0].source}"
    return Number(share * lanes(link), "B/s", "predicted", source, float(np.std(shares)))


def _pageable_share(operation: str, found: Evidence) -> tuple[float, float]:
    """Median over GPUs of pageable over pinned copy rate, and its relative spread."""
    logs = []
    pinned, pageable = (copies(found, operation, how) for how in (True, False))
    for gpu in dict.fromkeys(row.gpu for row in pageable):
        rates = [[row.value for row in rows if row.gpu == gpu] for rows in (pageable, pinned)]
        if all(rates):
            logs.append(math.log(np.median(rates[0]) / np.median(rates[1])))
    return math.exp(float(np.median(logs))), float(np.std(logs))


def _loading(found: Evidence) -> dict[str, Number]:
    loads = found.loads
    ends = "two ends of the paper's range taken as its 3B and 14B F16 models, and one Ollama load on an RTX 4090"
    bound = f"upper bound: all of the paper's preemption time that is not reload (under 1.5 %); {PAPER}"
    return {
        "start_s": Number(loads.start_s[0], "s", "fitted", f"{ends}; {PAPER}", loads.start_s[1]),
        "vocab_s": Number(loads.vocab_s[0], "s", "fitted", f"warm loads of nine models; {OWN_CPU}", loads.vocab_s[1]),
        "load": Number(
            loads.rate[0], "B/s", "fitted", f"{ends}; shared by all GPUs: the host's side binds; {PAPER}", loads.rate[1]
        ),
        "unload_s": Number(loads.unload_s, "s", "predicted", bound),
        "unload": Number(loads.unload_rate, "B/s", "predicted", bound),
    }
