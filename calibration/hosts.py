"""Host profiles out of the evidence: which figure each number is, and where it comes from."""

from __future__ import annotations

from mmsched_env.costmodel.number import Curve, Number
from mmsched_env.costmodel.profile import FitError, HostProfile

from .evidence import Evidence
from .measurements import first, number
from .sources import GIB, KV_SWEEP, OWN_CPU, SWEEP_4090, SWEEP_5060TI

PEAK_READ = {"threadripper-pro-5995wx": 204.8e9, "desktop-ddr5": 89.6e9}
"""8 channels of DDR4-3200; 2 channels of DDR5-5600 (the fastest an i5-13600K takes by its data sheet)"""
CORES = {"threadripper-pro-5995wx": 64, "desktop-ddr5": 14}


def host_profiles(found: Evidence) -> list[HostProfile]:
    """The measured desktop, the second desktop, and the source paper's workstation, predicted from the first."""
    ddr5, ddr4 = (1 / found.sweep.coefficients[f"host {box}"] for box in ("desktop-ddr5", "desktop-ddr4"))
    ratio = PEAK_READ["threadripper-pro-5995wx"] / PEAK_READ["desktop-ddr5"]
    cores = CORES["threadripper-pro-5995wx"] / CORES["desktop-ddr5"]
    measured = Number(found.cpu_flops, "FLOP/s", "fitted", f"sweep with CPU layers computed on the CPU; {SWEEP_4090}")
    return [
        _host(
            found,
            "desktop-ddr5",
            64,
            Number(ddr5, "B/s", "fitted", f"i5-13600K, Qwen2.5-32B sweeps; {SWEEP_4090}"),
            measured,
            {"decode": found.sweep_errors["desktop-ddr5"], "prefill_cpu": found.cpu_flops_error},
        ),
        _host(
            found,
            "desktop-ddr4",
            64,
            Number(
                ddr4,
                "B/s",
                "fitted",
                f"host not named in the source, its rate is that of 2-channel DDR4; {SWEEP_5060TI}",
            ),
            Number(
                found.cpu_flops * ddr4 / ddr5, "FLOP/s", "assumed", "the DDR5 desktop's, scaled by memory rate: no data"
            ),
            {"decode": found.sweep_errors["desktop-ddr4"]},
        ),
        _host(
            found,
            "threadripper-pro-5995wx",
            256,
            Number(
                ddr5 * ratio,
                "B/s",
                "assumed",
                "nobody published this host: the DDR5 desktop's share of its peak (89.6 GB/s) times 204.8 GB/s",
            ),
            Number(
                found.cpu_flops * cores,
                "FLOP/s",
                "assumed",
                "the DDR5 desktop's, scaled by 64 / 14 cores: no measurement",
            ),
            {},
        ),
    ]


def _host(
    found: Evidence, name: str, ram_gib: int, read: Number, compute: Number, errors: dict[str, FitError]
) -> HostProfile:
    disk = first((r for r in found.transfers if r["link"] == "NVMe copying read"), "a disk read")
    disk_source = f"an NVMe drive of another host, cold copying read: no host here has one; {disk['source_url']}"
    share = found.kv_cpu * found.sweep.coefficients["host desktop-ddr5"]
    kv_source = f"{share:.0%} of the weight rate: a DDR5 desktop at 15k tokens, model shape assumed; {KV_SWEEP}"
    batch_source = f"one 135M model on one thread, carried over to every model and host; {OWN_CPU}"
    slope_source = "slope of cold loads over model size less the GPU copy: https://arxiv.org/abs/2401.14351, 2505.23072"
    return HostProfile(
        name=name,
        ram=Number(ram_gib * GIB, "B", "assumed", "a usual size for such a host; no source states it"),
        read=read,
        kv_read=Number(share * read.value, "B/s", "assumed", kv_source),
        compute=compute,
        batch=Curve(tuple(found.batch_cpu.items()), "relative", "assumed", batch_source),
        disk=Number(number(disk, "gb_per_s") * 1e9, "B/s", "assumed", disk_source),
        disk_load=Number(found.disk_load, "B/s", "assumed", f"other hosts, all loads bound alike; {slope_source}"),
        errors=errors,
    )
