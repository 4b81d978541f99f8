"""What the shipped profiles say of a measurement: seconds, the stated uncertainty, or why they say nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from mmsched_env.costmodel import roofline
from mmsched_env.costmodel.number import Number
from mmsched_env.costmodel.profile import GpuProfile, HostProfile, catalogue, load_gpu, load_host
from mmsched_env.costmodel.roofline import REFERENCE_WIDTH, UBATCH

from .gpus import BIG_COPY
from .hosts import BOXES
from .names import Spec, architecture_of, gpu_of, model_of
from .schema import BYTE_RATE, CPU_ONLY, RATE, Measurement
from .work import Unusable, Work, work

ENGINES = ("llama.cpp", "ik_llama.cpp", "Ollama", "")
"""whose loads the profiles hold; an empty name is not stated"""

USUAL_HOST = "desktop-ddr5"
"""host of a row that names none"""

HOSTS_APART = 0.45
"""standard deviation of the logarithm of the measured hosts' rates: what a host that is not known may be off by"""

NORMAL = 1.48
"""standard deviation over median absolute value, of a normal error"""

Part = tuple[float, float]
"""seconds, relative standard error"""


@dataclass(frozen=True)
class Prediction:
    """A measurement beside what the profiles say."""

    row: Measurement
    predicted: float
    """in the row's unit"""
    spread: float
    """relative standard error that the profiles state"""
    gpu: str
    host: str
    """profiles used; empty: none"""
    kind: str

    @property
    def error(self) -> float:
        """Relative error on time: positive is predicted slower than measured."""
        ratio = self.row.value / self.predicted
        return ratio - 1 if self.row.unit in (RATE, BYTE_RATE) else 1 / ratio - 1


def predict(row: Measurement, specs: Mapping[str, Spec], host: str | None = None) -> Prediction:
    """Prediction of one row; `host` is the host profile of rows that use the CPU.

    Raises
    ------
    Unusable
        No profile says anything about it, and why.
    """
    if row.operation in ("decode", "prefill"):
        return _rate(row, dict(specs), host)
    if row.operation in ("load", "unload"):
        return _load(row, dict(specs), host)
    if row.operation in ("copy_h2d", "copy_d2h", "save", "restore"):
        return _copy(row, dict(specs))
    raise Unusable(f"{row.operation}: no law, a table (mmsched calibrate validate)")


def _gpu(row: Measurement, specs: dict[str, Spec]) -> GpuProfile:
    name = gpu_of(row, specs)
    profile = _profile(name) if name else None
    if profile is None:
        raise Unusable(f"no profile of the GPU {row.gpu}")
    return profile


@lru_cache(maxsize=256)
def _profile(name: str) -> GpuProfile | None:
    return load_gpu(name) if name in catalogue()["gpu"] else None


@lru_cache(maxsize=256)
def _host(name: str) -> HostProfile:
    return load_host(name)


def host_of(row: Measurement, given: str | None) -> tuple[HostProfile, bool]:
    """The host profile named, or that of the row's machine (True), or a usual one (False)."""
    machine = next((name for name, box in BOXES.items() if box.box.split()[0] == row.series.rstrip("bcd")), None)
    named = next((name for name, box in BOXES.items() if row.host and row.host in box.what), None)
    known = given or named or machine
    return _host(known or USUAL_HOST), known is not None


# -- decode and prefill ------------------------------------------------------------------------------------------------


def _rate(row: Measurement, specs: dict[str, Spec], given: str | None) -> Prediction:
    batch = row.batch or 1
    item = work(row, specs, any_batch=True)
    if item.kv_in_ram:
        raise Unusable("KV cache in host RAM")
    if row.num_gpus > 1 and row.operation == "prefill" and item.tokens > UBATCH:
        raise Unusable("chunks pipelined over several GPUs")
    if row.gpu == CPU_ONLY:
        raise Unusable("no GPU: host profiles are of layers beside one")
    gpu, (host, known) = _gpu(row, specs), host_of(row, given)
    on_gpu, on_cpu = (_decode_parts if row.operation == "decode" else _prefill_parts)(item, gpu, host, batch)
    seconds = sum(part for part, _ in on_gpu + on_cpu)
    # What the law itself misses of this GPU's measurements, and a host that may be any other.
    law = NORMAL * gpu.errors[row.operation].leave_out if row.operation in gpu.errors else 0.0
    guess = 0.0 if known else HOSTS_APART * sum(part for part, _ in on_cpu) / seconds
    spread = math.hypot(law, guess, *[part * error / seconds for part, error in on_gpu + on_cpu])
    tokens = batch if row.operation == "decode" else item.tokens
    kind = f"{row.operation}, {'resident' if item.resident else 'offloaded'}"
    return Prediction(row, tokens / seconds, spread, gpu.name, "" if item.resident else host.name, kind)


Parts = tuple[list[Part], list[Part]]
"""of the GPU with its constants, of the host"""


def _decode_parts(item: Work, gpu: GpuProfile, host: HostProfile, batch: int) -> Parts:
    """Terms of a decode step of `batch` requests, as in CostTables."""
    arch, here, there = item.model.architecture, item.here, item.there
    on_gpu, on_cpu = (float(table[-1]) for table in roofline.batch_tables(item.model, gpu, host, batch))
    read, kv = gpu.read[item.quant], arch.kv_layer_bytes * item.context * batch
    wider = gpu.batch.spread or 0.0 if batch > 1 else 0.0
    return [
        (here.read * on_gpu / read.value, math.hypot(_spread(read), wider)),
        (here.head / read.value, _spread(read)),
        (here.attention * kv / gpu.kv_read.value, _spread(gpu.kv_read)),
        *_constants(item, gpu),
    ], [
        (there.read * on_cpu / host.read.value, _spread(host.read)),
        (there.head / host.read.value, _spread(host.read)),
        (there.attention * kv / host.kv_read.value, _spread(host.kv_read)),
        (there.linear * host.linear_layer_s.value, _spread(host.linear_layer_s)),
    ]


def _constants(item: Work, gpu: GpuProfile) -> list[Part]:
    layer = gpu.layer_eager_s if item.eager else gpu.layer_s
    launches = roofline.launch_s(item.here, item.model, gpu) / gpu.layer_s.value * layer.value
    entry = gpu.expert_entry_s if item.model.architecture.experts else gpu.hybrid_s
    alone = gpu.cpu_only_s.value if item.all_cpu else 0.0
    return [
        (launches, _spread(layer)),
        (item.cpu_entries * entry.value, _spread(entry)),
        (alone, _spread(gpu.cpu_only_s)),
    ]


def _prefill_parts(item: Work, gpu: GpuProfile, host: HostProfile, _batch: int) -> Parts:
    """Terms of a prompt cut into chunks; CPU layers streamed to the GPU where chunks are long enough."""
    arch, here, there, row = item.model.architecture, item.here, item.there, item.row
    ubatch = row.ubatch or UBATCH
    chunks = -(-item.tokens // ubatch)
    streamed = min(item.tokens, ubatch) >= gpu.stream_min_tokens.value
    compute, read = gpu.compute[item.quant], gpu.read[item.quant]
    rate = compute.value * (arch.hidden / REFERENCE_WIDTH) ** gpu.width_exponent.value
    rate *= gpu.expert_compute.value if arch.experts else 1.0
    attention = gpu.attention_eager if item.eager else gpu.attention
    pairs = item.tokens * ((row.depth or 0) + item.tokens / 2)
    layers = here.attention + there.attention
    on_gpu = [
        (chunks * (here.read + here.idle + here.head) / read.value, _spread(read)),
        *((chunks * seconds, error) for seconds, error in _constants(item, gpu)),
        (here.flops * item.tokens / rate, _spread(compute)),
        (arch.attention_flops * layers * pairs / attention.value, _spread(attention)),
    ]
    head = (chunks * there.head / host.read.value, _spread(host.read))
    if streamed:
        passes = chunks * (there.read + there.idle) / gpu.stream.value
        on_gpu += [(passes, _spread(gpu.stream)), (there.flops * item.tokens / rate, _spread(compute))]
        return on_gpu, [head]
    return on_gpu, [head, (there.flops * item.tokens / host.compute.value, _spread(host.compute))]


def _spread(number: Number) -> float:
    return number.spread or 0.0


# -- loads and copies --------------------------------------------------------------------------------------------------


def _load(row: Measurement, specs: dict[str, Spec], given: str | None) -> Prediction:
    if not row.engine.startswith(tuple(e for e in ENGINES if e)) and row.engine:
        raise Unusable(f"{row.engine}: profiles hold llama.cpp's loads")
    if row.gpu == CPU_ONLY:
        raise Unusable("no GPU: loads of the CPU have a law of their own (mmsched calibrate validate)")
    gpu, (host, _) = _gpu(row, specs), host_of(row, given)
    if architecture_of(row.model, row.params_b) is None:
        raise Unusable(f"model {row.model} is not in the catalogue")
    model = model_of(row.model, row.quant or "f16", row.params_b)
    size = row.size_bytes or (model.file_bytes if model and row.quant else None)
    if model is None or size is None:
        raise Unusable("size of the file not stated")
    if row.operation == "unload":
        seconds = [(gpu.unload_s.value + size / gpu.unload.value, 0.0)]
    else:
        vocabulary = gpu.vocab_s.value * model.architecture.vocab
        seconds = [
            (gpu.start_s.value, _spread(gpu.start_s)),
            (vocabulary, _spread(gpu.vocab_s)),
            (size / gpu.load.value, _spread(gpu.load)),
            (size / host.disk_load.value if row.tier == "disk" else 0.0, 0.0),
        ]
    total = sum(part for part, _ in seconds)
    spread = math.sqrt(sum((part * error) ** 2 for part, error in seconds)) / total
    return Prediction(row, total, spread, gpu.name, host.name if row.tier == "disk" else "", row.operation)


def _copy(row: Measurement, specs: dict[str, Spec]) -> Prediction:
    gpu = _gpu(row, specs)
    if row.link.startswith("pcie") and row.link not in ("pcie", specs[gpu.name].link):
        raise Unusable(f"{row.link}: the profile is of {specs[gpu.name].link}")
    if (row.size_bytes or BIG_COPY) < BIG_COPY:
        raise Unusable("a small copy, bound by latency")
    inward = row.operation in ("copy_h2d", "restore")
    pinned = gpu.link_in if inward else gpu.link_out
    rate = pinned if row.pinned else (gpu.restore if inward else gpu.save)
    kind = f"{row.operation}, {'pinned' if row.pinned else 'pageable'}"
    if row.unit == BYTE_RATE:
        return Prediction(row, rate.value, _spread(rate), gpu.name, "", kind)
    if row.size_bytes is None:
        raise Unusable("size of the copy not stated")
    fixed = gpu.copy_s.value if row.operation in ("save", "restore") else 0.0
    return Prediction(row, fixed + row.size_bytes / rate.value, _spread(rate), gpu.name, "", kind)
