"""Host profiles out of the evidence: which figure each number is, and where it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmsched_env.costmodel.number import Curve, Number
from mmsched_env.costmodel.profile import FitError, HostProfile

from .evidence import Evidence
from .sources import GIB, OWN_CPU, SWEEP_4090


@dataclass(frozen=True)
class Box:
    """A host whose sweep was published: the machine of the fit, and what else is known of it."""

    box: str
    ram_gib: int
    what: str


BOXES = {
    "desktop-ddr4": Box("S05 RTX 5060 Ti", 64, "host not named, its rate is that of 2-channel DDR4"),
    "desktop-ddr5": Box("S06 RTX 4090", 64, "i5-13600K"),
    "desktop-gtx1060": Box("S11 GTX 1060", 32, "host not named"),
    "laptop-7940hs": Box("S08 RX 7700S", 32, "Framework 16 laptop, Ryzen 7940HS"),
    "desktop-i9-14900k": Box("i9-14900K Arc Pro B70", 96, "i9-14900K, one row of a 70B model"),
}
"""profile -> machine"""

PEAK_READ = {"threadripper-pro-5995wx": 204.8e9, "desktop-ddr5": 89.6e9}
"""8 channels of DDR4-3200; 2 channels of DDR5-5600 (the fastest an i5-13600K takes by its data sheet)"""
CORES = {"threadripper-pro-5995wx": 64, "desktop-ddr5": 14}


def host_profiles(found: Evidence, errors: dict[str, dict[str, FitError]]) -> list[HostProfile]:
    """The measured machines, and the source paper's workstation, predicted from one of them."""
    measured = [_measured(name, box, found, errors.get(box.box, {})) for name, box in BOXES.items()]
    return [*measured, _paper(found)]


def _read(found: Evidence, box: str) -> tuple[float, float]:
    value, spread = found.decode.log(((("host", box), 1.0),))
    return math.exp(value), spread


def _source(found: Evidence, box: str) -> str:
    return next(item.row.source for item in found.decodes if item.box == box)


def _measured(name: str, box: Box, found: Evidence, errors: dict[str, FitError]) -> HostProfile:
    rate, spread = _read(found, box.box)
    read = Number(rate, "B/s", "fitted", f"{box.what}; {_source(found, box.box)}", spread)
    flops, flops_spread = found.cpu_flops
    reference, _ = _read(found, BOXES["desktop-ddr5"].box)
    if name == "desktop-ddr5":
        compute = Number(
            flops, "FLOP/s", "fitted", f"sweep with CPU layers computed on the CPU; {SWEEP_4090}", flops_spread
        )
    else:
        compute = Number(
            flops * rate / reference, "FLOP/s", "assumed", "the DDR5 desktop's, scaled by memory rate: no data"
        )
    return _host(found, name, box.ram_gib, read, compute, errors)


def _paper(found: Evidence) -> HostProfile:
    name, flops = "threadripper-pro-5995wx", found.cpu_flops[0]
    rate, _ = _read(found, BOXES["desktop-ddr5"].box)
    ratio = PEAK_READ[name] / PEAK_READ["desktop-ddr5"]
    share = "nobody published this host: the DDR5 desktop's share of its peak (89.6 GB/s) times 204.8 GB/s"
    cores = CORES[name] / CORES["desktop-ddr5"]
    scaled = "the DDR5 desktop's, scaled by 64 / 14 cores: no measurement"
    return _host(
        found,
        name,
        256,
        Number(rate * ratio, "B/s", "assumed", share),
        Number(flops * cores, "FLOP/s", "assumed", scaled),
        {},
    )


def _host(
    found: Evidence, name: str, ram_gib: int, read: Number, compute: Number, errors: dict[str, FitError]
) -> HostProfile:
    disk = next(
        r
        for r in found.rows
        if r.operation == "disk_read" and r.tier == "disk" and r.unit == "B/s" and "cold" in r.note
    )
    disk_source = f"an NVMe drive of another host, cold copying read: no host here has one; {disk.source}"
    share, share_spread = found.decode.log(((("cpu kv share",), 1.0),))
    kv_source = f"{math.exp(share):.0%} of the weight rate: two depth series of other hosts (S21d; {OWN_CPU})"
    linear, linear_spread = found.decode.log(((("cpu linear layer",), 1.0),))
    batch, batch_spread = found.batch_cpu
    slope_source = "slope of cold loads over model size less the GPU copy: https://arxiv.org/abs/2401.14351, 2505.23072"
    return HostProfile(
        name=name,
        ram=Number(ram_gib * GIB, "B", "assumed", "a usual size for such a host; no source states it"),
        read=read,
        linear_layer_s=Number(
            math.exp(linear) * 40e9 / read.value,
            "s",
            "assumed",
            "two sweeps of Qwen3.5 on other hosts (S16, S21), scaled by memory rate",
            linear_spread,
        ),
        kv_read=Number(math.exp(share) * read.value, "B/s", "assumed", kv_source, share_spread),
        compute=compute,
        batch=Curve(
            tuple(batch.items()),
            "relative",
            "assumed",
            f"one 135M model on one thread, carried over to every model and host; {OWN_CPU}",
            batch_spread,
        ),
        disk=Number(disk.value, "B/s", "assumed", disk_source),
        disk_load=Number(
            found.loads.disk_rate, "B/s", "assumed", f"other hosts, all loads bound alike; {slope_source}"
        ),
        interference=Number(0.0, "share", "assumed", "nobody published two busy devices of one host"),
        errors=errors,
    )
