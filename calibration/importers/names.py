"""How tools write names of GPUs, models and quantisations, brought to one form."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath

QUANT = re.compile(
    r"(?:UD-)?(?:I?Q\d(?:_(?:K_(?:XXS|XS|S|M|L|XL)|K|NL|XXS|XS|S|M|L|\d(?:_\d)*))?"
    r"|TQ\d_\d|BF16|F16|F32|FP16|FP8|MXFP4(?:_MOE)?|NVFP4)",
    re.IGNORECASE,
)
VENDORS = re.compile(r"^(?:NVIDIA|AMD|ATI|Intel)(?:\(R\))?\s+(?:GeForce\s+|Radeon\s+(?=RX\b))?")
SIZES = {"Small": "S", "Medium": "M", "Large": "L"}
SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def gpu_name(text: str) -> str:
    """``NVIDIA GeForce RTX 3090`` -> ``RTX 3090``; what a driver adds in brackets goes."""
    plain = re.sub(r"\((?:R|TM)\)", "", VENDORS.sub("", text.strip()))
    return " ".join(re.sub(r"\s*\((?:RADV|AMD|NVIDIA|LLVM|0000)[^)]*\)", "", plain).split())


def model_of_file(path: str) -> tuple[str, str]:
    """(model, quantisation) by a GGUF file's name; empty where the name does not tell."""
    name = PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name
    stem = SHARD.sub("", name.removesuffix(".gguf"))
    found = re.search(rf"[-._]({QUANT.pattern})$", stem, re.IGNORECASE)
    model, quant = (stem[: found.start()], found[1].upper()) if found else (stem, "")
    return ("" if model in ("ggml-model", "model") else model), quant


def model_of_type(text: str) -> tuple[str, str]:
    """(model, quantisation) by llama.cpp's description: ``qwen2 7B Q4_K - Medium`` -> ``qwen2 7B``, ``Q4_K_M``."""
    found = re.search(rf"\s(?:mostly\s|all\s)?({QUANT.pattern})(?=\s|$)(?: - (\w+))?", text, re.IGNORECASE)
    if found is None:
        return text.strip(), ""
    quant, size = found[1].upper(), SIZES.get(found[2] or "", "")
    return text[: found.start()].strip(), quant if not size or quant == "Q2_K" else f"{quant}_{size}"


def model_of_tag(text: str) -> tuple[str, str]:
    """(model, quantisation) by a name and tag: ``llama3.1:8b-instruct-q4_K_M``."""
    found = re.search(rf"[-:.]({QUANT.pattern})(?:\.gguf)?$", text, re.IGNORECASE)
    return (text[: found.start()], found[1].upper()) if found else (text, "")
