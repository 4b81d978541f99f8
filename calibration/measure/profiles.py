"""Measured figures to a GPU and a host profile, in the cost model's own terms (docs/cost_model.md).

The measured device is the profile's GPU, whatever it is: a processor core that computes on its own is one too, with
the memory it was given and copies of its memory as its link. Every coefficient is a time per unit of work and cannot be negative:
non-negative least squares on relative errors.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from mmsched_env.costmodel import roofline
from mmsched_env.costmodel.number import Curve, Number
from mmsched_env.costmodel.profile import FitError, GpuProfile, HostProfile, ModelProfile
from mmsched_env.costmodel.shapes import RECIPES
from mmsched_env.errors import ConfigError

from ..atomic import write_atomic
from ..fit import to_yaml
from ..schema import Measurement
from . import machine
from .points import ALL, BESIDE_DEVICE, BESIDE_LOAD
from .rows import Figures, profile_of, slowdowns

VOCAB_S = 2.091e-06
"""seconds of tokenizer set-up per entry where a single model cannot tell it from the rest: own measurement, llama.cpp
on one thread of an AMD EPYC Zen 4, models of 0.1-3 B"""

FASTEST = 1e14
"""rate of what took no measurable time"""

NARROWEST, WIDEST = 0.001, 0.99
"""relative standard errors stated at least and at most"""

OTHER_QUANTISATION = 0.3
"""spread of a rate taken over from another quantisation: one rate for all of them was off by 12 % in the mean, 41 % at worst
(own measurement, llama.cpp on one thread of an AMD EPYC Zen 4, nine files)"""

NO_POWER = 1e-3
"""width exponent where models of one width alone were measured"""

NEVER = 10**9
"""prompts this long do not exist"""

STREAMED_FROM = 32
"""tokens from which llama.cpp copies the host's layers to a GPU for a prompt, its own constant"""

Terms = dict[str, float]


@dataclass(frozen=True)
class Maker:
    """Profile numbers of one origin."""

    provenance: str
    source: str

    def __call__(self, value: float, unit: str, spread: float | None = None) -> Number:
        return Number(float(value), unit, self.provenance, self.source, spread)


NO_TOKENIZER = Maker("assumed", "weights alone were loaded, no engine started")(0.0, "s")

FEW_MODELS = Maker("assumed", "fewer than three models were measured; own measurement, llama.cpp on an AMD EPYC Zen 4")(
    VOCAB_S, "s"
)


STREAMS = Maker("assumed", "llama.cpp's own constant")

SMALL_START = Maker("assumed", "too few models to tell it from the rest")(1e-3, "s")


@dataclass(frozen=True)
class Device:
    """What the profiles describe."""

    name: str
    mem_bytes: int | None
    """None: all of the machine's"""
    streams: bool = False
    """for a prompt the engine copies the host's layers to the device, as llama.cpp does to a GPU; else the host computes them"""


@dataclass(frozen=True)
class Fit:
    """Seconds per unit of work, by term."""

    values: Terms
    in_sample: float
    leave_out: float
    worst: float
    rows: int
    left_out: str
    spreads: Terms
    """relative standard errors of the values"""

    def seconds(self, terms: Terms) -> float:
        """What the fit says of some work."""
        return sum(work * self.values.get(name, 0.0) for name, work in terms.items())

    def error(self) -> FitError:
        """As a profile states it."""
        return FitError(self.rows, self.in_sample, self.leave_out, self.worst, self.left_out)


@dataclass(frozen=True)
class Observation:
    """Work of each kind, and the seconds it took."""

    terms: Terms
    seconds: float
    group: str
    """left out together"""


def fit(observations: Sequence[Observation]) -> Fit:
    """Non-negative seconds per unit of each term, least squares of relative errors; each group left out once."""
    values = _solve(observations)
    inside = [abs(_seconds(values, o.terms) / o.seconds - 1) for o in observations]
    groups = sorted({o.group for o in observations})
    outside: list[float] = []
    for group in groups if len(groups) > 1 else []:
        rest = _solve([o for o in observations if o.group != group])
        known = [o for o in observations if o.group == group and all(name in rest for name in o.terms)]
        outside += [abs(_seconds(rest, o.terms) / o.seconds - 1) for o in known]
    left = outside or inside
    alone = "nothing: one model alone was measured" if len(groups) == 1 else "nothing: each model has a rate of its own"
    what = "one model" if outside else alone
    errors = statistics.median(inside), statistics.median(left), max(left)
    return Fit(values, *errors, len(observations), what, _jackknife(observations, values))


def _jackknife(observations: Sequence[Observation], values: Terms) -> Terms:
    """Relative standard errors by leaving out each observation in turn. What came out as zero has none: WIDEST."""
    count = len(observations)
    solved = [_solve([o for o in observations if o is not left]) for left in observations] if count > 1 else []
    spreads = {}
    for name, value in values.items():
        found = [one[name] for one in solved if name in one]
        squares = sum((x - value) ** 2 for x in found) * (count - 1) / count
        spreads[name] = float(np.clip(squares**0.5 / value, NARROWEST, WIDEST)) if value > 0 and found else WIDEST
    return spreads


def _solve(observations: Sequence[Observation]) -> Terms:
    names = sorted({name for o in observations for name in o.terms})
    matrix = np.array([[o.terms.get(name, 0.0) / o.seconds for name in names] for o in observations])
    scale = np.where(matrix.max(axis=0) > 0, matrix.max(axis=0), 1.0)
    found = nnls(matrix / scale, np.ones(len(observations)))[0] / scale
    return dict(zip(names, map(float, found), strict=True))


def _seconds(values: Terms, terms: Terms) -> float:
    return sum(work * values[name] for name, work in terms.items())


# ---------------------------------------------------------------- the laws


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
    single = [(one, model) for one, model in _of(found, "decode") if one.point.batch == 1]
    observations = [
        Observation(decode_terms(model, one.point.n_gpu_layers, _depth(one)), one.seconds, model.name)
        for one, model in single
    ]
    if len({model.name for _, model in single}) == 1:  # its layers and its bytes say the same
        for observation in observations:
            observation.terms.pop("layer_s", None)
    return fit(observations)


Ratios = dict[int, list[float]]
"""batch -> how many times as long as alone what is read of the weights took, one entry a model, depth and residency"""


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
    pairs = _of(found, "decode")
    return [(one, m) for one, m in pairs if one.point.batch > 1 and (one.point.n_gpu_layers == ALL) == whole]


def _add_ratio(ratios: Ratios, one: Figures, part: float, alone: float) -> None:
    """`part` of the seconds `alone` is what grows."""
    if part > 0:
        ratios.setdefault(one.point.batch, []).append((one.seconds - alone) / part + 1)


def fit_prefill(found: Iterable[Figures], decode: Fit) -> Fit:
    """Of whole models on the device, beyond what a decode step takes anyway: tokens of each model, and pairs of tokens."""
    prompts = _of(found, "prefill")
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
    for one, model in _of(found, "prefill"):
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
    memory = {one.point.mode for one, _ in _of(found, "load")}
    fastest = "pinned" if "pinned" in memory else "pageable"
    loads = [
        (one, model)
        for one, model in _of(found, "load")
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


def _of(found: Iterable[Figures], operation: str) -> list[tuple[Figures, ModelProfile]]:
    pairs = [(one, profile_of(one.point.model)) for one in found if one.point.operation == operation]
    return [(one, model) for one, model in pairs if model is not None]


def _depth(one: Figures) -> float:
    """Mean context of the steps timed."""
    return one.point.depth + one.point.tokens / 2


# ---------------------------------------------------------------- the files


def write(
    folder: Path, device: Device, rows: Sequence[Measurement], found: Sequence[Figures], source: str
) -> list[Path]:
    """Write ``gpus/<name>.yaml`` and ``hosts/<name>.yaml``. Nothing without a catalogue model measured whole.

    Raises
    ------
    ConfigError
        The folder cannot be written.
    """
    if not all(_of(found, operation) for operation in ("decode", "prefill", "load", "save")):
        return []
    paths = []
    gpu, host = make(device, found, f"{len(rows)} rows; {source}")
    for kind, profile in (("gpu", gpu), ("host", host)):
        path = folder / "profiles" / f"{kind}s" / f"{device.name}.yaml"
        lines = to_yaml(kind, profile).splitlines()[1:]
        try:
            write_atomic(path, "\n".join(["# Written by `mmsched calibrate measure`.", *lines]) + "\n")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
        paths.append(path)
    return paths


def make(device: Device, found: Sequence[Figures], source: str) -> tuple[GpuProfile, HostProfile]:
    """The GPU and the host profile."""
    models = sorted({m.name: m for _, m in _of(found, "decode")}.values(), key=lambda m: m.name)
    decode = fit_decode(found)
    prefill = fit_prefill(found, decode)
    compute, power = compute_rates(prefill, models)
    offloaded = fit_offloaded_prefill(found, decode, prefill, device.streams)
    load = fit_load(found)
    caches = fit_sizes(found, ("save", "restore"))
    unload = fit_sizes(_sized(found), ("unload",))
    fitted = Maker("fitted", source)
    alone = all(one.point.n_gpu_layers == ALL for one in found)
    assumed = Maker("assumed", "not measured: the device computes every layer itself" if alone else "not measured")
    link = fitted if any(one.point.operation.startswith("copy_") for one in found) else assumed
    rate = max(_rate(load, "load"), _rate(caches, "save"), _rate(caches, "restore"))

    def constant(name: str) -> Number:
        made = fitted if name in decode.values else assumed
        return made(decode.values.get(name, 0.0), "s", decode.spreads.get(name, WIDEST))

    reads = {m.quant: (_rate(decode, f"read.{m.quant}"), decode.spreads[f"read.{m.quant}"]) for m in models}
    computes = {
        quant: (rate, max(prefill.spreads[m.name] for m in models if m.quant == quant))
        for quant, rate in compute.items()
    }
    gpu = GpuProfile(
        name=device.name,
        capacity=Maker("measured", "memory of the device")(device.mem_bytes or machine.ram_bytes(), "B"),
        reserve=Maker("assumed", "what the engine takes beside models, caches and buffers")(256 << 20, "B"),
        read=_by_quantisation(reads, fitted, "B/s"),
        kv_read=fitted(_rate(decode, "kv_read"), "B/s", decode.spreads.get("kv_read")),
        layer_s=constant("layer_s"),
        layer_eager_s=constant("layer_s"),
        linear_launch=assumed(1.0, "relative"),
        expert_launch=assumed(1.0, "relative"),
        hybrid_s=constant("hybrid_s"),
        expert_entry_s=assumed(0.0, "s"),
        cpu_only_s=constant("cpu_only_s"),
        batch=batch_curve(device_ratios(found, decode), source),
        expert_reach=assumed(1.0, "relative"),
        compute=_by_quantisation(computes, fitted, "FLOP/s"),
        expert_compute=assumed(1.0, "relative"),
        width_exponent=(fitted if power > NO_POWER else assumed)(power, "relative"),
        attention=fitted(_rate(prefill, "attention"), "FLOP/s", prefill.spreads.get("attention")),
        attention_eager=assumed(_rate(prefill, "attention"), "FLOP/s"),
        stream=fitted(_rate(offloaded, "stream"), "B/s", offloaded.spreads["stream"])
        if offloaded and device.streams
        else assumed(rate, "B/s"),
        stream_min_tokens=STREAMS(STREAMED_FROM, "tokens") if device.streams else assumed(NEVER, "tokens"),
        link_in=link(_copy_rate(found, "copy_h2d", rate), "B/s"),
        link_out=link(_copy_rate(found, "copy_d2h", rate), "B/s"),
        restore=fitted(_rate(caches, "restore"), "B/s", caches.spreads.get("restore")),
        save=fitted(_rate(caches, "save"), "B/s", caches.spreads.get("save")),
        copy_s=fitted(max(caches.values.get("fixed", 0.0), 1e-6), "s", caches.spreads.get("fixed")),
        start_s=fitted(load.values["start"], "s", load.spreads["start"]) if "start" in load.values else SMALL_START,
        vocab_s=_tokenizer(found, load, fitted),
        load=fitted(_rate(load, "load"), "B/s", load.spreads.get("load")),
        unload_s=fitted(max(unload.values.get("fixed", 0.0), 1e-4), "s", unload.spreads.get("fixed")),
        unload=fitted(_rate(unload, "unload"), "B/s", unload.spreads.get("unload")),
        operation_share=_share(found, BESIDE_LOAD, source),
        errors={"decode": decode.error(), "prefill": prefill.error(), "load": load.error()},
    )
    return gpu, _host(device, found, decode, None if device.streams else offloaded, fitted, gpu)


def _tokenizer(found: Sequence[Figures], load: Fit, fitted: Maker) -> Number:
    if "vocab_s" in load.values:
        return fitted(load.values["vocab_s"], "s", load.spreads["vocab_s"])
    return FEW_MODELS if any(one.point.mode == "read" for one in found) else NO_TOKENIZER


def _host(
    device: Device, found: Sequence[Figures], decode: Fit, prefill: Fit | None, fitted: Maker, gpu: GpuProfile
) -> HostProfile:
    """The CPU side: measured where layers were left on it, else as the device, which is a core of it."""
    same = Maker("assumed", "as the device")
    own = "host.read" in decode.values
    kv = _rate(decode, "host.kv_read") if decode.values.get("host.kv_read") else gpu.kv_read.value
    disk = disk_rate(found)
    rate = fitted(disk, "B/s") if disk else Maker("assumed", "no load from disk was measured")(gpu.load.value, "B/s")
    quant = next(iter(sorted({m.quant for _, m in _of(found, "decode")})))
    ratios = host_ratios(found, decode, gpu.batch)
    batch = (
        batch_curve(ratios, fitted.source) if ratios else Curve(gpu.batch.value, "relative", "assumed", "as the device")
    )
    read = fitted(_rate(decode, "host.read"), "B/s") if own else same(gpu.read[quant].value, "B/s")
    if prefill:
        compute = fitted(_rate(prefill, "compute"), "FLOP/s", prefill.spreads["compute"])
    elif ratios:
        compute = _compute_by_batches(found, read.value, batch)
    else:
        compute = same(gpu.compute[quant].value, "FLOP/s")
    return HostProfile(
        name=device.name,
        ram=Maker("measured", "memory of the machine")(machine.ram_bytes(), "B"),
        read=read,
        linear_layer_s=Maker("assumed", "not measured")(0.0, "s"),
        kv_read=(fitted if own else same)(kv, "B/s"),
        compute=compute,
        batch=batch,
        disk=rate,
        disk_load=rate,
        interference=_share(found, BESIDE_DEVICE, fitted.source),
    )


def _compute_by_batches(found: Sequence[Figures], read: float, batch: Curve) -> Number:
    """Where the device takes the host's layers of a prompt, what the host would compute shows in larger batches alone."""
    (low, before), (high, after) = batch.value[-2:]
    arithmetic = statistics.mean(m.architecture.layer_flops / m.layer_bytes for _, m in _of(found, "decode"))
    slope = max((after - before) / (high - low), 1 / FASTEST)
    return Maker("predicted", "from what one more sequence in a batch takes")(
        min(FASTEST, read * arithmetic / slope), "FLOP/s"
    )


def _share(found: Sequence[Figures], operations: Sequence[str], source: str) -> Number:
    """How much longer things take beside each other: mean over models and operations; one cannot speed up the other."""
    shares = slowdowns(found, operations)
    if not shares:
        return Maker("assumed", "not measured")(0.0, "share")
    mean = max(0.0, statistics.mean(shares))
    deviation = statistics.stdev(shares) / mean if len(shares) > 1 and mean else WIDEST
    return Maker("measured", source)(mean, "share", float(np.clip(deviation, NARROWEST, WIDEST)))


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


def _copy_rate(found: Iterable[Figures], operation: str, otherwise: float) -> float:
    rates = [one.size_bytes / one.seconds for one in found if one.point.operation == operation and one.seconds > 0]
    return max(rates, default=otherwise)


def _sized(found: Sequence[Figures]) -> list[Figures]:
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


def _by_quantisation(rates: dict[str, tuple[float, float]], fitted: Maker, unit: str) -> dict[str, Number]:
    """The rate of every quantisation, from (rate, spread): those not measured as the mean of the others."""
    mean = float(np.exp(np.mean(np.log([rate for rate, _ in rates.values()]))))
    others = Maker("predicted", "mean of the quantisations measured")
    made = {}
    for quant in RECIPES:
        rate, spread = rates.get(quant, (mean, OTHER_QUANTISATION))
        made[quant] = (fitted if quant in rates else others)(rate, unit, spread)
    return made


def _rate(found: Fit, term: str) -> float:
    seconds = found.values.get(term, 0.0)
    return min(FASTEST, 1 / seconds) if seconds > 0 else FASTEST
