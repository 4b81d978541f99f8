"""Ollama's server log: how long each model took to load, and what it says of model, GPU and layers.

Lines may stand behind a prefix (journalctl, docker). A load runs from its "starting runner" to its "runner started".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from mmsched_env.errors import ConfigError

from ..schema import CPU_ONLY
from .base import Importer, Reading
from .names import gpu_name, model_of_type

STARTED = re.compile(r"llama runner started in (\S+) seconds")
STARTING = re.compile(r'msg="starting (?:runner|llama server)".*--model ')
VERSION = re.compile(r"Listening on .*\(version ([^)]+)\)")
COMPUTE = re.compile(r'msg="inference compute".*?\blibrary=(\S+).*? name=("[^"]*"|\S+)(?: description=("[^"]*"|\S+))?')
FACTS = {
    "time": re.compile(r"\btime=(\d{4}-\d\d-\d\d)T"),
    "offloaded": re.compile(r"offloaded (\d+)/(\d+) layers to GPU"),
    "name": re.compile(
        r'(?:general\.name\s+(?:str\s+)?= |architecture=\S+ .*?\bname=)("[^"]*"|[^\n"]*?)(?= description=|$)'
    ),
    "type": re.compile(r"print_info: file type\s+= (.+?)\s*$|architecture=\S+ file_type=(\S+)"),
    "params": re.compile(r"model params\s+= (\d+(?:\.\d+)?) B"),
    "size": re.compile(r"file size\s+= (\d+(?:\.\d+)?) GiB"),
}
DEVICE = re.compile(r"using device \S+ \(([^()]+(?:\([^()]*\)[^()]*)*)\)")
PLACED = re.compile(r"Operation:commit .*\bGPULayers:(\S*\[.*?\]) MultiUserCache")
GIN = re.compile(r"^.*\[GIN\].*\|\s*(\d{3})\s*\|.*(?:POST|GET|HEAD|DELETE)", re.MULTILINE)


@dataclass
class _Load:
    """What the log said since the runner was started."""

    facts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    """GPUs the runner names, before it loads"""
    placed: int = 0
    """GPUs that layers were placed on, in the log of newer versions"""
    done: bool = False


def recognises(text: str) -> bool:
    """By lines only its server writes."""
    return STARTED.search(text) is not None or ("[GIN]" in text and "source=routes.go" in text)


def read(text: str) -> Reading:
    """A load row for each runner started. Raises ConfigError."""
    reading = Reading()
    version, computes = "", []
    load = _Load()
    for number, line in enumerate(text.splitlines(), start=1):
        if STARTING.search(line):
            load = _Load()
        version = match[1] if (match := VERSION.search(line)) else version
        if match := COMPUTE.search(line):
            computes.append((match[1], (match[3] or match[2]).strip('"') if match[1] != "cpu" else ""))
        for key, pattern in FACTS.items():
            if key not in load.facts and (match := pattern.search(line)):
                load.facts[key] = tuple(part for part in match.groups() if part is not None)
        if match := DEVICE.search(line):
            load.devices.append(gpu_name(match[1]))
        if match := PLACED.search(line):
            load.placed = match[1].count("ID:")
        if match := STARTED.search(line):
            if not load.done:
                _row(reading, load, number, match[1], version, computes)
            load.done = True
    if GIN.search(text):
        reading.ignore("[GIN] durations", "of whole requests, their tokens not known")
    if not reading.drafts:
        raise ConfigError('no "llama runner started" in it; accepted: a log in which a model is loaded')
    return reading


def _row(reading: Reading, load: _Load, number: int, text: str, version: str, computes: list[tuple[str, str]]) -> None:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"line {number}: runner started in {text!r} seconds; accepted: a number > 0")
    columns: dict[str, Any] = {"engine": "Ollama", "engine_version": version, "note": "start of the runner and load"}
    facts = load.facts
    columns["date"] = facts.get("time", ("",))[0]
    columns["model"] = facts.get("name", ("",))[0].strip().strip('"')
    _, columns["quant"] = model_of_type(f"x {facts['type'][0]}") if "type" in facts else ("", "")
    if "params" in facts:
        columns["params_b"] = float(facts["params"][0])
    if "size" in facts:
        columns["size_bytes"] = round(float(facts["size"][0]) * 2**30)
    if "offloaded" in facts:
        on_gpu, units = (int(part) for part in facts["offloaded"])
        columns.update(n_gpu_layers=on_gpu, num_layers=max(units - 1, 1))
    columns.update(_gpu(load, computes))
    reading.row(f"line {number}", operation="load", value=seconds, unit="s", **columns)


def _gpu(load: _Load, computes: list[tuple[str, str]]) -> dict[str, Any]:
    """What the runner names, else what the server found: if that is of one kind only."""
    names = load.devices or [gpu_name(name) for _, name in computes if name]
    if names and len(set(names)) == 1:
        return {"gpu": names[0], "num_gpus": load.placed or len(load.devices) or 1}
    if computes and all(library == "cpu" for library, _ in computes):
        return {"gpu": CPU_ONLY, "num_gpus": 0}
    return {}


IMPORTER = Importer("Ollama server log", recognises, read)
