"""Reading the measurement tables and giving each row the work it timed."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mmsched_env.costmodel.profile import PROFILES, load_model
from mmsched_env.costmodel.roofline import REFERENCE_WIDTH, UBATCH
from mmsched_env.costmodel.shapes import Architecture
from mmsched_env.errors import ConfigError

MODELS = {
    "LLaMA-3 8B": "llama-3-8b-f16",
    "LLaMA-3 70B": "llama-3-70b-q4_k_m",
    "llama 8B": "llama-3-8b-f16",
    "Qwen2.5-Coder-14B": "qwen2.5-14b-f16",
    "Qwen2.5-32B": "qwen2.5-32b-q4_k_m",
    "Qwen2.5-7B": "qwen2.5-7b-f16",
    "SmolLM2-135M": "smollm2-135m-f16",
    "SmolLM2-360M": "smollm2-135m-f16",  # same tokenizer, all that is used of it
    "Qwen2.5-0.5B": "qwen2.5-0.5b-f16",
    "Llama-3.2-1B": "llama-3.2-1b-f16",
    "Qwen2.5-3B": "qwen2.5-3b-f16",
}
"""model in the tables -> a profile with its shape (the row's own quantisation is used)"""

Row = dict[str, str]
Item = TypeVar("Item")


def read_rows(folder: Path, name: str) -> list[Row]:
    """Rows of ``<folder>/<name>.csv``. Raises ConfigError when the file is missing or empty."""
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise ConfigError(f"{path}: no such measurement table")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ConfigError(f"{path}: no rows; accepted: one measurement a row below the header")
    return rows


def architecture(model: str) -> Architecture:
    """Shape of a model as the tables name it."""
    return load_model(MODELS[model], PROFILES).architecture


def first(found: Iterator[Item], what: str) -> Item:
    """The first one. Raises ConfigError when the tables hold none."""
    for item in found:
        return item
    raise ConfigError(f"no measurement of {what}; accepted: at least one row in the tables")


def number(row: Row, column: str) -> float:
    """A cell as a positive number. Raises ConfigError naming column and row."""
    try:
        value = float(row[column])
    except (KeyError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"measurement {column} is {row.get(column)!r} in {row}; accepted: a number > 0")
    return value


@dataclass(frozen=True)
class Decode:
    """One decode measurement on a GPU holding the whole model: seconds per token and the work in a token."""

    gpu: str
    model: str
    quant: str
    tokens: int
    seconds: float
    layers: int
    weight_bytes: float
    kv_bytes: float
    """KV cache read by the average token: generation starts from an empty context"""


@dataclass(frozen=True)
class Prefill:
    """One prefill measurement on a GPU holding the whole model: seconds and work of the whole prompt."""

    gpu: str
    model: str
    quant: str
    tokens: int
    seconds: float
    chunks: int
    layers: int
    width: float
    """hidden size over that of the reference model"""
    weight_bytes: float
    """read once per chunk"""
    flops: float
    attention_flops: float


@dataclass(frozen=True)
class Split:
    """One row of an offload sweep: layers and bytes on each side."""

    series: str
    seconds: float
    tokens: int
    units_on_gpu: int
    gpu_layers: int
    cpu_layers: int
    gpu_bytes: float
    cpu_bytes: float
    cpu_layer_bytes: float
    cpu_layer_flops: float


def decode(row: Row, model: str, arch: Architecture) -> Decode:
    """Work of a `tg` row."""
    quant, tokens = row["quant"].lower(), int(row["n_tokens"])
    weights = arch.layers * arch.layer_bytes(quant) + arch.head_bytes(quant)
    cache = arch.layers * arch.kv_layer_bytes * (tokens + 1) / 2
    return Decode(row["gpu"], model, quant, tokens, 1 / number(row, "tokens_per_s"), arch.layers, weights, cache)


def prefill(row: Row, model: str, arch: Architecture) -> Prefill:
    """Work of a `pp` row: chunks of UBATCH tokens; the attention of all chunks together is tokens^2 / 2 pairs."""
    quant, tokens = row["quant"].lower(), int(row["n_tokens"])
    return Prefill(
        gpu=row["gpu"],
        model=model,
        quant=quant,
        tokens=tokens,
        seconds=tokens / number(row, "tokens_per_s"),
        chunks=-(-tokens // UBATCH),
        layers=arch.layers,
        width=arch.hidden / REFERENCE_WIDTH,
        weight_bytes=arch.layers * arch.layer_bytes(quant) + arch.head_bytes(quant),
        flops=float(tokens * arch.layers * arch.layer_flops),
        attention_flops=arch.layers * arch.attention_flops * tokens**2 / 2,
    )


def split(row: Row, arch: Architecture) -> Split:
    """Work of a sweep row: llama.cpp offloads layers first and the output head last (n_gpu_layers = layers + 1)."""
    quant = row["quant"].lower()
    on_gpu = min(int(row["n_gpu_layers"]), arch.layers + 1)
    gpu_layers = min(on_gpu, arch.layers)
    head_on_gpu = on_gpu > arch.layers
    layer, head = arch.layer_bytes(quant), arch.head_bytes(quant)
    cpu_layers = arch.layers - gpu_layers
    tokens = int(row["n_tokens"]) if row["n_tokens"] else 1
    return Split(
        series=row["series_id"],
        seconds=1 / number(row, "tokens_per_s"),
        tokens=tokens,
        units_on_gpu=on_gpu,
        gpu_layers=gpu_layers,
        cpu_layers=cpu_layers,
        gpu_bytes=gpu_layers * layer + head_on_gpu * head,
        cpu_bytes=cpu_layers * layer + (not head_on_gpu) * head,
        cpu_layer_bytes=cpu_layers * layer,
        cpu_layer_flops=float(cpu_layers * arch.layer_flops),
    )
