"""Measurements -> GPU and host profiles.

Run as ``fit.main([])``. Reads mmsched_env/data/measurements, writes mmsched_env/data/profiles/{gpus,hosts}, prints what
it fitted with the error on measurements left out of the fit. Same tables in, same bytes out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmsched_env.costmodel.number import Curve, Number
from mmsched_env.costmodel.profile import PROFILES, FitError, GpuProfile, HostProfile

from .evidence import gather
from .gpus import gpu_profile
from .hosts import host_profiles

MEASUREMENTS = PROFILES.parent / "measurements"

GPUS = {
    "rtx-a6000-48gb": "RTX A6000",
    "rtx-5000-ada-32gb": "RTX 5000 Ada",
    "rtx-4090-24gb": "RTX 4090",
    "rtx-3090-24gb": "RTX 3090",
    "rtx-5060-ti-16gb": "RTX 5060 Ti",
    "rtx-3060-12gb": "RTX 3060",
    "h100-pcie-80gb": "H100 PCIe",
}
"""profile name -> name in the measurement tables"""


def main(argv: Sequence[str] | None = None) -> int:
    """Fit every profile and write it. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="mmsched calibrate fit", description=__doc__)
    parser.add_argument("--measurements", type=Path, default=MEASUREMENTS, help="folder of measurement tables (CSV)")
    parser.add_argument("--out", type=Path, default=PROFILES, help="folder to write gpus/ and hosts/ into")
    args = parser.parse_args(argv)
    for kind, profile in fit_all(args.measurements):
        path = args.out / f"{kind}s" / f"{profile.name}.yaml"
        write_atomic(path, to_yaml(kind, profile))
        print(summary(profile))
    return 0


def fit_all(measurements: Path) -> list[tuple[str, GpuProfile | HostProfile]]:
    """(kind, profile) of every GPU and host.

    Raises
    ------
    ConfigError
        A measurement table that is missing, empty or has a cell that is no number.
    """
    found = gather(measurements)
    gpus = [("gpu", gpu_profile(name, label, found)) for name, label in GPUS.items()]
    hosts = [("host", profile) for profile in host_profiles(found)]
    return [*gpus, *hosts]


def summary(profile: GpuProfile | HostProfile) -> str:
    """One line: what was fitted, how many rows, error in sample and left out."""
    parts = [
        f"{key} {e.in_sample:.1%} in sample, {e.leave_out:.1%} left out (worst {e.worst:.0%}, {e.rows} rows)"
        for key, e in profile.errors.items()
    ]
    return f"{profile.name}: {'; '.join(parts) if parts else 'nothing measured: predicted and assumed numbers only'}"


def to_yaml(kind: str, profile: GpuProfile | HostProfile) -> str:
    """The profile as text, the same bytes every time: one line a number, in the order of the dataclass."""
    lines = [
        "# Written by `mmsched calibrate fit` from mmsched_env/data/measurements: change those, not this file.",
        f"kind: {kind}",
        f"name: {profile.name}",
        "numbers:",
    ]
    for key, value in vars(profile).items():
        if key in ("name", "errors"):
            continue
        if isinstance(value, dict):
            lines.append(f"  {key}:")
            lines += [f"    {quant}: {_inline(number)}" for quant, number in value.items()]
        else:
            lines.append(f"  {key}: {_inline(value)}")
    lines.append("errors:" if profile.errors else "errors: {}")
    for key, error in profile.errors.items():
        lines.append(f"  {key}: {_error(error)}")
    return "\n".join(lines) + "\n"


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` in one step, so that a reader never sees half a profile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _inline(number: Number | Curve) -> str:
    if isinstance(number, Curve):
        value = "[" + ", ".join(f"[{int(b)}, {_digits(t)}]" for b, t in number.value) + "]"
    else:
        value = _digits(number.value)
    source = number.source.replace('"', "'")
    return f'{{value: {value}, unit: {number.unit}, provenance: {number.provenance}, source: "{source}"}}'


def _error(error: FitError) -> str:
    shares = ", ".join(f"{key}: {getattr(error, key):.4f}" for key in ("in_sample", "leave_out", "worst"))
    return f'{{rows: {error.rows}, {shares}, left_out: "{error.left_out}"}}'


def _digits(value: float) -> str:
    """Four digits: more than any of these figures deserves, few enough to be equal on every machine."""
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.3e}" if not 1e-2 <= abs(value) < 1e4 else f"{float(f'{value:.4g}')}"
