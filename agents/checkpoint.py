"""Checkpoint files: one .zip of JSON and safetensors, nothing in it is executed.

``checkpoint.json``       format, layout signature, configuration, step counts, library versions
``policy.safetensors``    the network's weights
``resume.safetensors``, ``resume.json``    only in the latest one of a run: what it takes to go on (resume.py)
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from mmsched_env.errors import ConfigError

FORMAT = "mmsched checkpoint 2"
ACCEPTED = "a .zip that `mmsched train` wrote"
META, POLICY = "checkpoint.json", "policy.safetensors"
RESUME_META, RESUME = "resume.json", "resume.safetensors"
UNREADABLE = (zipfile.BadZipFile, SafetensorError, KeyError, TypeError, ValueError, EOFError)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory."""

    layout: dict[str, Any]
    """`mmsched_env.observation.layout_signature` of the training environments"""
    envs: list[dict[str, Any]]
    """their configurations, for the record"""
    agent: dict[str, Any]
    """`AgentConfig` values"""
    seed: int
    num_steps: int
    num_updates: int
    versions: dict[str, str]
    policy: dict[str, Tensor]
    """weights by name"""
    resume: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    """see resume.py"""

    def save(self, path: Path) -> None:
        """Write the file completely or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        meta = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("policy", "resume")}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with zipfile.ZipFile(temporary, "w") as archive:
                archive.writestr(META, json.dumps(as_json({"format": FORMAT} | meta), indent=1))
                archive.writestr(POLICY, safetensors.torch.save(self.policy))
                if self.resume is not None:
                    arrays, values = self.resume
                    archive.writestr(RESUME, safetensors.torch.save(arrays), zipfile.ZIP_DEFLATED, 1)
                    archive.writestr(RESUME_META, json.dumps(values))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint file.

    Raises
    ------
    ConfigError
        There is no such file, or it is not a checkpoint.
    """
    path = Path(path)
    if path.suffix != ".zip" or not path.is_file():
        what = "no such file" if path.suffix == ".zip" else "not a .zip file"
        raise ConfigError(f"checkpoint {path}: {what}; accepted: {ACCEPTED}")
    try:
        with zipfile.ZipFile(path) as archive:
            meta = json.loads(archive.read(META))
            if meta.pop("format") != FORMAT:
                raise KeyError("format")
            policy = safetensors.torch.load(archive.read(POLICY))
            resume = None
            if RESUME in archive.namelist():
                resume = safetensors.torch.load(archive.read(RESUME)), json.loads(archive.read(RESUME_META))
        return Checkpoint(**meta, policy=policy, resume=resume)
    except UNREADABLE as error:
        raise ConfigError(f"checkpoint {path}: not of format '{FORMAT}'; accepted: {ACCEPTED}") from error


def layout_difference(saved: Mapping[str, Any], now: Mapping[str, Any], fixed: str = "QGHMSBK") -> str:
    """What differs between two layout signatures, in words; empty if nothing does. `fixed`: sizes that must agree."""
    parts = [
        f"size {letter} is {saved['sizes'].get(letter)} in the checkpoint, {size} here"
        for letter, size in now["sizes"].items()
        if letter in fixed and saved["sizes"].get(letter) != size
    ]
    for block, names in now["fields"].items():
        old = saved["fields"].get(block, [])
        gone, new = [n for n in old if n not in names], [n for n in names if n not in old]
        if gone:
            parts.append(f"fields of {block} only in the checkpoint: {', '.join(gone)}")
        if new:
            parts.append(f"fields of {block} only here: {', '.join(new)}")
        if old != names and not gone and not new:
            parts.append(f"the fields of {block} are in another order")
    return "; ".join(parts)


def require_layout(path: str | Path, saved: Mapping[str, Any], now: Mapping[str, Any], fixed: str = "QGHMSBK") -> None:
    """Raise unless the checkpoint's observation layout is the environment's, as far as the network depends on it."""
    difference = layout_difference(saved, now, fixed)
    if difference:
        raise ConfigError(
            f"checkpoint {path} is of another observation layout ({difference}); accepted: one trained with this one"
        )


def as_json(value: Any) -> Any:
    """As JSON can hold it: tuples as lists, infinity as text."""
    if isinstance(value, Mapping):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)
