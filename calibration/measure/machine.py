"""The box in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_name() -> str:
    """As the processor calls itself."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def ram_bytes() -> int:
    """Of the whole machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def host() -> str:
    """CPU, cores and memory, as the schema's column says."""
    return f"{cpu_name()}, {os.cpu_count()} cores, {ram_bytes() / 2**30:.0f} GB"


def description() -> dict[str, str]:
    """What to know about the box beside its figures."""
    flags = next((line.split(":", 1)[1].split() for line in _lines("/proc/cpuinfo") if line.startswith("flags")), [])
    vector = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if flag in flags]
    return {
        "host": host(),
        "vector": " ".join(vector),
        "l3": _text("/sys/devices/system/cpu/cpu0/cache/index3/size"),
        "virtual": "yes" if "hypervisor" in flags else "no",
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    return _text(path).splitlines()


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
