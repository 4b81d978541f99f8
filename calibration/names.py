"""What measurement files call models, quantisations and GPUs -> what profiles and data sheets call them."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmsched_env.costmodel.profile import PROFILES, ModelProfile, catalogue, load_model
from mmsched_env.costmodel.shapes import RECIPES
from mmsched_env.errors import ConfigError

from .schema import Measurement

SAME_SHAPE = (
    (r"llama-?3(\.1)?-(8|70)b", r"llama-3-\2b"),
    (r"^(?:code)?llama-(?:family-)?(7|13)b", r"llama-2-\1b"),
    (r"^llama-8b", "llama-3-8b"),
    (r"r1-distill-llama-(8|70)b", r"llama-3-\1b"),
    (r"qwen3\.6", "qwen3.5"),
    (r"^qwen2-(\d+\.?\d*b)", r"qwen2.5-\1"),
    (r"r1-distill-qwen-(1\.5|7|14|32)b", r"qwen2.5-\1b"),
    (r"^qwen3moe-(\d+b)\.(a\d+b)", r"qwen3-\1-\2"),
    (r"qwen3\.5-(35b)(?:-a3b.*)?$", "qwen3.5-35b-a3b"),
    (r"mistral-small-3(\.\d)?-24b", "mistral-small-24b"),
    (r"^gemma3-(\d+b)", r"gemma-3-\1"),
    (r"^llama3\.2", "llama-3.2"),
    (r"^phi-?4(?!-14b)", "phi-4-14b"),
    (r"meta-llama-3", "llama-3"),
    (r"^qwythos-9b", "qwen3.5-9b"),  # its source names the family, not the shape
)
"""names of models whose shape is that of one in the catalogue, applied in this order"""

VARIANTS = re.compile(r"-(coder|math|instruct|chat|it|base|thinking|2507|2512|0924|v0\.\d|hf|gguf)(?=-|$)")

QUANTS = {
    "bf16": "f16",
    "fp16": "f16",
    "f16": "f16",
    "bf16/fp16": "f16",
    "q4_k": "q4_k_m",
    "q4_k - medium": "q4_k_m",
    "q5_k - medium": "q5_k_m",
    "mxfp4 moe": "mxfp4",
    "iq4_xs - 4.25 bpw": "iq4_xs",
    # Close relatives: a few tensors differ, files are within some percent.
    "ud-q4_k_xl": "q4_k_m",
    "q4_k_xl": "q4_k_m",
    "ud-q4_k_xl or mxfp4": "q4_k_m",
    "ollama default": "q4_k_m",
}


@dataclass(frozen=True)
class Spec:
    """Data-sheet figures of one GPU."""

    gpu: str
    gpu_mem_gb: float
    vendor: str
    memory: str
    """gddr, hbm, or pascal: gddr and hbm cards of that generation, without fast integer dot products in every one"""
    gb_per_s: float
    multiprocessors: int
    boost_ghz: float
    fp32_tflops: float
    link: str
    source_url: str
    note: str

    @property
    def profile(self) -> str:
        """Name of its profile: rtx-4090-24gb."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        return f"{plain}-{self.gpu_mem_gb:g}gb"


def read_specs(folder: Path) -> dict[str, Spec]:
    """Data sheets by profile name. Raises ConfigError for a missing file or a cell that is no number."""
    path = folder / "gpu_specs.csv"
    if not path.is_file():
        raise ConfigError(f"{path}: no such table of data sheets")
    specs: dict[str, Spec] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                spec = Spec(
                    row["gpu"],
                    float(row["gpu_mem_gb"]),
                    row["vendor"],
                    row["memory"],
                    float(row["gb_per_s"]),
                    int(row["multiprocessors"]),
                    float(row["boost_ghz"]),
                    float(row["fp32_tflops"]),
                    row["link"],
                    row["source_url"],
                    row["note"],
                )
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"{path}: row {number}: {error}; accepted: a number in each column of figures"
                ) from None
            specs[spec.profile] = spec
    return specs


def gpu_of(row: Measurement, specs: dict[str, Spec]) -> str | None:
    """Profile name of a row's GPU: by name, and by memory where several share the name; None: no data sheet."""
    return _gpu(row.gpu, row.gpu_mem_gb, tuple((name, spec.gpu, spec.gpu_mem_gb) for name, spec in specs.items()))


@lru_cache(maxsize=1024)
def _gpu(gpu: str, memory: float | None, sheets: tuple[tuple[str, str, float], ...]) -> str | None:
    stated = re.search(r"(\d+) ?GB", gpu)
    size = memory if memory is not None else (float(stated[1]) if stated else None)
    found = [(name, gb) for name, known, gb in sheets if _plain(known) == _plain(gpu)]
    exact = [name for name, gb in found if size is not None and abs(gb - size) < 1]
    if exact:
        return exact[0]
    # A version with other memory is another card, but the same chip: all that a rate depends on but its capacity.
    return found[-1][0] if found else None


SAME_CARD = (
    (r"h100 80 ?gb hbm3", "h100 sxm"),
    (r"h200 nvl|h200 pcie.*", "h200 nvl"),
    (r"h200$", "h200 sxm"),
    (r"sxm\d", "sxm"),
    (r"p100[- ]pcie", "p100"),
)
"""drivers' names of cards -> data sheets'"""


def _plain(gpu: str) -> str:
    text = gpu.lower()
    for pattern, card in SAME_CARD:
        text = re.sub(pattern, card, text)
    text = re.sub(r"nvidia|geforce|amd|radeon|intel|tesla|graphics|generation|laptop gpu|\d+ ?gb|\(.*?\)", "", text)
    return re.sub(r"[^a-z0-9]", "", text)


def quant_of(text: str) -> str | None:
    """Quantisation as the recipes call it; None: no recipe."""
    name = text.strip().lower()
    name = QUANTS.get(name, name)
    return name if name in RECIPES else None


@lru_cache(maxsize=1024)
def architecture_of(model: str, params_b: float | None = None) -> str | None:
    """Architecture in the catalogue that a measurement's model has; None: none of them."""
    name = re.sub(r"\.gguf$", "", model.lower().split("/")[-1])
    name = re.sub(r"[^a-z0-9.]+", "-", name).strip("-")
    name = VARIANTS.sub("", name)
    for pattern, shape in SAME_SHAPE:
        name = re.sub(pattern, shape, name)
    known = sorted(architectures(), key=len, reverse=True)
    for arch in known:
        if re.search(rf"(^|-){re.escape(arch)}(?![a-z0-9.])(?!-(a\d+b|vl))", name):
            return arch
    # llama-bench states the exact count, which is that of one shape.
    close = [a for a in known if params_b and abs(architectures()[a] / (params_b * 1e9) - 1) < 1e-4]
    return close[0] if len(close) == 1 else None


@lru_cache(maxsize=1)
def architectures() -> dict[str, int]:
    """Parameters of every architecture of the catalogue."""
    return {arch: load_model(name).params for arch, name in offered().items()}


@lru_cache(maxsize=1)
def offered() -> dict[str, str]:
    """One model profile of every architecture."""
    return {name.rsplit("-", 1)[0]: name for name in catalogue()["model"]}


@lru_cache(maxsize=1024)
def model_of(model: str, quant: str, params_b: float | None) -> ModelProfile | None:
    """Model profile of a measurement, also in a quantisation that the catalogue does not offer; None: unknown."""
    arch, recipe = architecture_of(model, params_b), quant_of(quant)
    if arch is None or recipe is None:
        return None
    base = load_model(offered()[arch], PROFILES)
    return ModelProfile(
        f"{arch}-{recipe}",
        recipe,
        base.architecture,
        base.vision,
        base.published_params,
        base.provenance,
        base.source,
    )
