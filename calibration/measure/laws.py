"""What each operation's seconds follow (docs/cost_model.md): its work by kind, from the figures of a machine measured here."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from mmsched_env.costmodel import roofline
from mmsched_env.costmodel.number import Curve
from mmsched_env.costmodel.profile import ModelProfile

from .least_squares import NARROWEST, WIDEST, Fit, Observation, Terms, fit
from .points import ALL
from .rows import Figures, of_operation

VOCAB_S = 2.091e-06
"""seconds of tokenizer set-up per entry where a single model cannot tell it from the rest: own measurement, llama.cpp
on one thread of an AMD EPYC Zen 4, models of 0.1-3 B"""

NO_POWER = 1e-3
"""width exponent where models of one width alone were measured"""

Ratios = dict[int, list[float]]
"""batch -> how many times as long as alone what is read of the weights took, one entry a model, depth and residency"""


def decode_terms(model: ModelProfile, layers: int, context: float) -> Terms:
    """Work of one decode step of one sequence."""
    on_gpu = roofline.units(model) if layers == ALL else layers
    gpu, cpu = roofline.sides(model, on_gpu)
    kv_gpu, kv_cpu = roofline.kv_bytes(model, on_gpu)
    terms = {
        "layer_s": float(gpu.launched),
        "hybrid_s": float(0 < on_gpu < roofline.units(model)),
        "cpu_only_s": float(on_gpu == 0),
        f"read.{model.quant}": gpu.read + gpu.head,
        "host.read": cpu.read + cpu.head,
        "kv_read": kv_gpu * context,
        "host.kv_read": kv_cpu * context,
    }
    return {name: work for name, work in terms.items() if work > 0}


def fit_decode(found: Iterable[Figures]) -> Fit:
    """Of single sequences at all depths and residencies."""
    single = [(one, model) for one, model in of_operation(found, "decode") if one.point.batch == 1]
    observations = [
        Observation(decode_terms(model, one.point.n_gpu_layers, _depth(one)), one.seconds, model.name)
        for one, model in single
    ]
    if len({model.name for _, model in single}) == 1:  # its layers and its bytes say the same
        for observation in observations:
            observation.terms.pop("layer_s", None)
    return fit(observations)


def batch_curve(ratios: Ratios, source: str) -> Curve:
    """Growth of the weights' part of a step with the batch: mean over models and depths, never falling; with its relative deviation."""
    curve = [(1.0, 1.0)]
    for batch in sorted(ratios):
        curve.append((float(batch), max(curve[-1][1], statistics.mean(ratios[batch]))))
    parts = [statistics.stdev(r) / statistics.mean(r) for r in ratios.values() if len(r) > 1]
    spread = float(np.clip(statistics.mean(parts), NARROWEST, WIDEST)) if parts else WIDEST
    knots = tuple(curve) if len(curve) > 1 else ((1.0, 1.0), (2.0, 2.0))
    return Curve(knots, "relative", "fitted", source, spread)


def device_ratios(found: Iterable[Figures], decode: Fit) -> Ratios:
    """Of models wholly on the device."""
    ratios: Ratios = {}
    for one, model in _batches(found, whole=True):
        read = roofline.sides(model, roofline.units(model))[0].read * decode.values[f"read.{model.quant}"]
        _add_ratio(ratios, one, read, decode.seconds(decode_terms(model, ALL, one.point.batch * _depth(one))))
    return ratios


def host_ratios(found: Iterable[Figures], decode: Fit, device: Curve) -> Ratios:
    """Of the layers left on the host; those on the device grow as `device` says."""
    ratios: Ratios = {}
    for one, model in _batches(found, whole=False):
        here, there = roofline.sides(model, one.point.n_gpu_layers)
        alone = decode.seconds(decode_terms(model, one.point.n_gpu_layers, one.point.batch * _depth(one)))
        growth = roofline.batch_table(device, one.point.batch)[-1] - 1
        alone += growth * here.read * decode.values.get(f"read.{model.quant}", 0.0)
        _add_ratio(ratios, one, there.read * decode.values.get("host.read", 0.0), alone)
    return ratios


def _batches(found: Iterable[Figures], whole: bool) -> list[tuple[Figures, ModelProfile]]:
    pairs = of_operation(found, "decode")
    return [(one, m) for one, m in pairs if one.point.batch > 1 and (one.point.n_gpu_layers == ALL) == whole]


def _add_ratio(ratios: Ratios, one: Figures, part: float, alone: float) -> None:
    """`part` of the seconds `alone` is what grows."""
    if part > 0:
        ratios.setdefault(one.point.batch, []).append((one.seconds - alone) / part + 1)


def fit_prefill(found: Iterable[Figures], decode: Fit) -> Fit:
    """Of whole models on the device, beyond what a decode step takes anyway: tokens of each model, and pairs of tokens."""
    prompts = of_operation(found, "prefill")
    lengths = len({one.point.tokens for one, _ in prompts})
    observations = []
    for one, model in prompts:
        if one.point.n_gpu_layers != ALL:
            continue
        arch, tokens = model.architecture, one.point.tokens
        step = decode.seconds(decode_terms(model, ALL, 0.0))
        terms = {model.name: arch.layers * arch.layer_flops * tokens}
        if lengths > 1:
            terms["attention"] = arch.layers * arch.attention_flops * tokens**2 / 2
        observations.append(Observation(terms, max(one.seconds - step, 0.1 * one.seconds), model.name))
    return fit(observations)


def fit_offloaded_prefill(found: Iterable[Figures], decode: Fit, prefill: Fit, streams: bool) -> Fit | None:
    """Of prompts with layers on the host, beyond what the device takes: the host's arithmetic, or the copy of its layers (`streams`).

    None where none was measured.
    """
    observations = []
    for one, model in of_operation(found, "prefill"):
        layers, tokens = one.point.n_gpu_layers, one.point.tokens
        if layers == ALL:
            continue
        here, there = roofline.sides(model, layers)
        flops = here.flops + (there.flops if streams else 0.0)
        terms = decode_terms(model, layers, 0.0)
        step = {name: work for name, work in terms.items() if not (streams and name.startswith("host."))}
        known = decode.seconds(step) + flops * tokens * prefill.values[model.name]
        work = {"stream": there.read} if streams else {"compute": there.flops * tokens}
        observations.append(Observation(work, max(one.seconds - known, 0.1 * one.seconds), model.name))
    return fit(observations) if observations else None


def compute_rates(prefill: Fit, models: Sequence[ModelProfile]) -> tuple[dict[str, float], float]:
    """(FLOP/s at the reference width, by quantisation; power of the width)."""
    logs = [
        (m, np.log(m.architecture.hidden / roofline.REFERENCE_WIDTH), -np.log(max(prefill.values[m.name], 1e-30)))
        for m in models
    ]
    power = 0.0
    if len({round(width, 9) for _, width, _ in logs}) > 1:
        power = max(0.0, float(np.polyfit([width for _, width, _ in logs], [rate for _, _, rate in logs], 1)[0]))
    rates = {
        quant: float(np.exp(statistics.mean(rate - power * width for m, width, rate in logs if m.quant == quant)))
        for quant in sorted({m.quant for m in models})
    }
    return rates, max(power, NO_POWER)


def fit_load(found: Sequence[Figures]) -> Fit:
    """Of whole models from memory: a start, the tokenizer per vocabulary entry, bytes. mmap has no such law: it defers.

    Few models cannot tell all three apart: of one there are bytes alone, of two a start too, the tokenizer's share being known from
    elsewhere; three have none of the start's, whose share is the smallest.
    """
    memory = {one.point.mode for one, _ in of_operation(found, "load")}
    fastest = "pinned" if "pinned" in memory else "pageable"
    loads = [
        (one, model)
        for one, model in of_operation(found, "load")
        if one.point.tier != "disk" and one.point.mode in ("read", fastest) and one.point.n_gpu_layers == ALL
    ]
    engine = any(one.point.mode == "read" for one, _ in loads)  # which has a tokenizer
    models = len({(m.architecture.vocab, one.size_bytes) for one, m in loads})
    observations = []
    for one, model in loads:
        vocab = float(model.architecture.vocab)
        known = min(VOCAB_S * vocab, one.seconds / 2) if models < 3 and engine else 0.0
        terms = {"load": float(one.size_bytes)}
        terms |= {"vocab_s": vocab} if engine and models >= 3 else {}
        terms |= {"start": 1.0} if engine and (models == 2 or models > 3) else {}
        observations.append(Observation(terms, one.seconds - known, model.name))
    return fit(observations)


def fit_sizes(found: Iterable[Figures], operations: Sequence[str]) -> Fit:
    """A fixed part that all share and a rate for each operation."""
    chosen = [one for one in found if one.point.operation in operations and one.seconds > 0]
    fixed = {"fixed": 1.0} if len({one.size_bytes for one in chosen}) > len(operations) else {}
    observations = [
        Observation(fixed | {one.point.operation: float(max(1, one.size_bytes))}, one.seconds, one.point.model)
        for one in chosen
    ]
    return fit(observations)


def _depth(one: Figures) -> float:
    """Mean context of the steps timed."""
    return one.point.depth + one.point.tokens / 2


def disk_rate(found: Iterable[Figures]) -> float | None:
    """Bytes/s that a cold load by read takes longer than a warm one; None where that was not measured."""
    loads = {
        (one.point.model, one.point.tier): one
        for one in found
        if one.point.operation == "load" and one.point.mode == "read"
    }
    pairs = [
        (one, loads[model, "page_cache"])
        for (model, tier), one in loads.items()
        if tier == "disk" and (model, "page_cache") in loads
    ]
    seconds = sum(cold.seconds - warm.seconds for cold, warm in pairs)
    return sum(cold.size_bytes for cold, _ in pairs) / seconds if seconds > 0 else None


def copy_rate(found: Iterable[Figures], operation: str, otherwise: float) -> float:
    """Bytes/s of the quickest copy; `otherwise` where none was measured."""
    rates = [one.size_bytes / one.seconds for one in found if one.point.operation == operation and one.seconds > 0]
    return max(rates, default=otherwise)


def sized(found: Sequence[Figures]) -> list[Figures]:
    """Unloads with the bytes that had been loaded."""
    sizes = {
        (one.point.model, one.point.n_gpu_layers): one.size_bytes for one in found if one.point.operation == "load"
    }
    return [
        dataclasses.replace(one, size_bytes=sizes.get((one.point.model, one.point.n_gpu_layers), 1))
        if one.point.operation == "unload"
        else one
        for one in found
    ]
