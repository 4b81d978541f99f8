"""Measurements -> GPU and host profiles.

Reads mmsched_env/data/measurements, writes mmsched_env/data/profiles/{gpus,hosts}, prints what it fitted with the error
on measurements left out of the fit. Same tables in, same bytes out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmsched_env.costmodel.number import Curve, Number
from mmsched_env.costmodel.profile import PROFILES, FitError, GpuProfile, HostProfile
from mmsched_env.files import usable_folder

from .atomic import write_atomic
from .evidence import (
    Error,
    Evidence,
    architecture,
    batch_series,
    decode_left_out,
    gather,
    prefill_left_out,
    repeats,
)
from .gpus import gpu_profile, profiled
from .hosts import BOXES, host_profiles
from .work import Work

MEASUREMENTS = PROFILES.parent / "measurements"


def main(argv: Sequence[str] | None = None) -> int:
    """Fit every profile and write it. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="mmsched calibrate fit", description=__doc__)
    parser.add_argument("--measurements", type=Path, default=MEASUREMENTS, help="folder of measurement tables (CSV)")
    parser.add_argument("--out", type=Path, default=PROFILES, help="folder to write gpus/ and hosts/ into")
    args = parser.parse_args(argv)
    out = usable_folder(args.out, "--out")
    for kind, profile in fit_all(args.measurements):
        path = out / f"{kind}s" / f"{profile.name}.yaml"
        write_atomic(path, to_yaml(kind, profile))
        print(summary(profile))
    return 0


def fit_all(measurements: Path) -> list[tuple[str, GpuProfile | HostProfile]]:
    """(kind, profile) of every GPU and host.

    Raises
    ------
    ConfigError
        A measurement table that is missing, empty or has a cell that cannot be used.
    """
    found = gather(measurements)
    by_gpu, by_box = gpu_errors(found), host_errors(found)
    gpus = [("gpu", gpu_profile(name, found, by_gpu.get(name, {}))) for name in profiled(found)]
    hosts = [("host", profile) for profile in host_profiles(found, by_box)]
    return [*gpus, *hosts]


def gpu_errors(found: Evidence) -> dict[str, dict[str, FitError]]:
    """Stated errors of every measured GPU: its rows of one model, predicted from its other models and the other GPUs."""

    def pair(item: Work) -> object:
        return (item.gpu, architecture(item)) if item.gpu and item.resident else None

    shared = {"batch": _batch_error(found), "load": found.loads.error}
    errors: dict[str, dict[str, FitError]] = {}
    for law, left, inside in (
        ("decode", decode_left_out(found, found.decodes, pair), found.decode_seconds),
        ("prefill", prefill_left_out(found, found.prefills, pair), found.prefill_seconds),
    ):
        for gpu in dict.fromkeys(item.gpu for item, _ in left):
            own = [(item, error) for item, error in left if item.gpu == gpu]
            models = len({architecture(item) for item, _ in own})
            what = "one model on this GPU" if models > 1 else "its only model: predicted from the data sheet"
            assert gpu
            errors.setdefault(gpu, {})[law] = _error(own, [inside(i) / i.seconds - 1 for i, _ in own], what)
    return {gpu: laws | shared for gpu, laws in errors.items()}


def host_errors(found: Evidence) -> dict[str, dict[str, FitError]]:
    """Stated errors of every machine with a profile: each setting of its sweep left out."""
    boxes = {box.box for box in BOXES.values()}

    def setting(item: Work) -> object:
        row = item.row
        return (item.box, row.n_gpu_layers) if item.box in boxes else None

    left = repeats(decode_left_out(found, found.decodes, setting))
    errors = {}
    for box in dict.fromkeys(item.box for item, _ in left):
        own = [(item, error) for item, error in left if item.box == box]
        inside = [found.decode_seconds(i) / i.seconds - 1 for i, _ in own]
        errors[box] = {"decode": _error(own, inside, "one n_gpu_layers setting")}
    return errors


def _error(left: Sequence[Error], inside: Sequence[float], what: str) -> FitError:
    absolute = np.abs([error for _, error in left])
    return FitError(
        len(left), float(np.median(np.abs(inside))), float(np.median(absolute)), float(absolute.max()), what
    )


def _batch_error(found: Evidence) -> FitError:
    """Each series' step times from the mean of the others, where they have the batch size."""
    series = batch_series(found.rows, found.decode, found.specs)
    table = found.batch_gpu[0]
    inside = [table[b] / t - 1 for s in series for b, t in s.items() if b > 1]
    left = []
    for one in series:
        for batch, step in one.items():
            others = [np.log(s[batch]) for s in series if s is not one and batch in s]
            if batch > 1 and others:
                left.append(float(np.exp(np.mean(others)) / step - 1))
    rows = sum(len(s) for s in series)
    return FitError(
        rows,
        float(np.median(np.abs(inside))),
        float(np.median(np.abs(left))),
        float(np.max(np.abs(left))),
        "one series",
    )


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
        lines.append(f"  {key}: {_stated(error)}")
    return "\n".join(lines) + "\n"


def _inline(number: Number | Curve) -> str:
    if isinstance(number, Curve):
        value = "[" + ", ".join(f"[{int(b)}, {_digits(t)}]" for b, t in number.value) + "]"
    else:
        value = _digits(number.value)
    source = number.source.replace('"', "'")
    spread = "" if number.spread is None else f", spread: {number.spread:.3f}"
    return f'{{value: {value}, unit: {number.unit}, provenance: {number.provenance}, source: "{source}"{spread}}}'


def _stated(error: FitError) -> str:
    shares = ", ".join(f"{key}: {getattr(error, key):.4f}" for key in ("in_sample", "leave_out", "worst"))
    return f'{{rows: {error.rows}, {shares}, left_out: "{error.left_out}"}}'


def _digits(value: float) -> str:
    """Four digits: more than any of these figures deserves, few enough to be equal on every machine. Whole numbers (tokens,
    bytes) are exact; above 1e12 a fitted one is whole by chance of its last bits."""
    if value == int(value) and abs(value) < 1e12:
        return str(int(value))
    return f"{value:.3e}" if not 1e-2 <= abs(value) < 1e4 else f"{float(f'{value:.4g}')}"
