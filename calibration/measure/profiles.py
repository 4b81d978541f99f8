"""Measured figures to a GPU and a host profile, in the cost model's own terms (docs/cost_model.md).

The measured device is the profile's GPU, whatever it is: a processor core that computes on its own is one too, with
the memory it was given and copies of its memory as its link. Every coefficient is a time per unit of work and cannot be negative:
non-negative least squares on relative errors.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmsched_env.costmodel.number import Curve, Number
from mmsched_env.costmodel.profile import GpuProfile, HostProfile
from mmsched_env.costmodel.shapes import RECIPES
from mmsched_env.errors import ConfigError

from ..atomic import write_atomic
from ..fit import to_yaml
from ..schema import Measurement
from . import machine
from .laws import (
    NO_POWER,
    VOCAB_S,
    batch_curve,
    compute_rates,
    copy_rate,
    device_ratios,
    disk_rate,
    fit_decode,
    fit_load,
    fit_offloaded_prefill,
    fit_prefill,
    fit_sizes,
    host_ratios,
    sized,
)
from .least_squares import NARROWEST, WIDEST, Fit
from .points import ALL, BESIDE_DEVICE, BESIDE_LOAD
from .rows import Figures, of_operation, slowdowns

FASTEST = 1e14
"""rate of what took no measurable time"""

OTHER_QUANTISATION = 0.3
"""spread of a rate taken over from another quantisation: one rate for all of them was off by 12 % in the mean, 41 % at worst
(own measurement, llama.cpp on one thread of an AMD EPYC Zen 4, nine files)"""

NEVER = 10**9
"""prompts this long do not exist"""

STREAMED_FROM = 32
"""tokens from which llama.cpp copies the host's layers to a GPU for a prompt, its own constant"""


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


def write(
    folder: Path, device: Device, rows: Sequence[Measurement], found: Sequence[Figures], source: str
) -> list[Path]:
    """Write ``gpus/<name>.yaml`` and ``hosts/<name>.yaml``. Nothing without a catalogue model measured whole.

    Raises
    ------
    ConfigError
        The folder cannot be written.
    """
    if not all(of_operation(found, operation) for operation in ("decode", "prefill", "load", "save")):
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
    models = sorted({m.name: m for _, m in of_operation(found, "decode")}.values(), key=lambda m: m.name)
    decode = fit_decode(found)
    prefill = fit_prefill(found, decode)
    compute, power = compute_rates(prefill, models)
    offloaded = fit_offloaded_prefill(found, decode, prefill, device.streams)
    load = fit_load(found)
    caches = fit_sizes(found, ("save", "restore"))
    unload = fit_sizes(sized(found), ("unload",))
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
        link_in=link(copy_rate(found, "copy_h2d", rate), "B/s"),
        link_out=link(copy_rate(found, "copy_d2h", rate), "B/s"),
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
    quant = next(iter(sorted({m.quant for _, m in of_operation(found, "decode")})))
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
    arithmetic = statistics.mean(m.architecture.layer_flops / m.layer_bytes for _, m in of_operation(found, "decode"))
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
