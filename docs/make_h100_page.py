"""Writes the tables of docs/h100.md, between its marks: what was measured on an H100, and what the profiles had predicted.

``python docs/make_h100_page.py``; the samples are those of mmsched_env/data/measured/.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmsched_env.calibration import validate
from mmsched_env.calibration.measure import command, results
from mmsched_env.calibration.measure.points import ALL, Point
from mmsched_env.calibration.measure.rows import Figures, figures
from mmsched_env.costmodel.profile import PROFILES, load_model

PAGE = Path(__file__).with_name("h100.md")
MEASURED = PROFILES.parent / "measured"
TORCH, LLAMA = "h100-sxm-80gb-torch", "h100-sxm-80gb-llama-cpp"
F16 = ("qwen2.5-3b-f16", "llama-3-8b-f16", "qwen2.5-14b-f16")
Q4 = ("qwen2.5-3b-q4_k_m", "llama-3-8b-q4_k_m", "qwen2.5-14b-q4_k_m")
CACHE = 2048
"""tokens of the KV cache in the preemption table"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text()))


def page(text: str) -> str:
    """The page with its tables."""
    torch, llama = found(TORCH), found(LLAMA)
    tables = {
        "preemption": preemption(torch),
        "residency": residency(torch),
        "batches": batches(torch),
        "llama.cpp": served(llama),
        "predicted": predicted(),
    }
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(begin)
        text = before + begin + table + end + rest.split(end)[1]
    return text


def found(name: str) -> dict[Point, Figures]:
    """The figures of a shipped measurement."""
    return {one.point: one for one in figures(results.read(MEASURED / name / results.NAME)[1])}


def preemption(measured: dict[Point, Figures]) -> str:
    """What a preemption is made of."""
    lines = []
    for model in F16:
        seconds = {
            "pinned": measured[Point(model, "load", tier="ram", mode="pinned")].seconds,
            "pageable": measured[Point(model, "load", tier="ram", mode="pageable")].seconds,
            "unload": measured[Point(model, "unload")].seconds,
        }
        copies = [measured[Point(model, op, tokens=CACHE, tier="ram")] for op in ("save", "restore")]
        cache = sum(copy.seconds for copy in copies)
        shares = [cache / (cache + seconds["unload"] + seconds[mode]) for mode in ("pinned", "pageable")]
        lines.append(
            [f"`{model}`", *(f"{1e3 * x:.0f}" for x in seconds.values()), f"{copies[0].size_bytes / 1e6:.0f}"]
            + [f"{1e3 * copy.seconds:.1f}" for copy in copies]
            + [f"{x:.1%}" for x in shares]
        )
    head = ["model", "load, page-locked, ms", "load, pageable, ms", "unload, ms", "KV, MB", "save, ms", "restore, ms"]
    return markdown([*head, "KV's share", "the same, pageable"], lines)


def residency(measured: dict[Point, Figures]) -> str:
    """A decode step by layers on the GPU."""
    lines = []
    for model in F16:
        units = load_model(model).architecture.layers + 1
        for depth in (0, 3072):
            steps = [measured[step(measured, model, layers, depth)].seconds for layers in levels(units)]
            lines.append([f"`{model}`", str(depth), *(f"{1e3 * s:.1f}" for s in steps)])
    return markdown(["model", "depth", "all", "75 %", "50 %", "25 %", "none"], lines)


def levels(units: int) -> list[int]:
    """Layers on the GPU, as measured."""
    return [ALL, *(round(share * units) for share in (0.75, 0.5, 0.25, 0.0))]


def step(measured: Iterable[Point], model: str, layers: int, depth: int, batch: int = 1) -> Point:
    """The decode point of these."""
    return next(
        point
        for point in measured
        if (point.model, point.operation, point.n_gpu_layers, point.depth, point.batch)
        == (model, "decode", layers, depth, batch)
    )


def batches(measured: dict[Point, Figures]) -> str:
    """A decode step by batch, and beside a load."""
    lines = []
    for model in F16:
        steps = [measured[step(measured, model, ALL, 1024, batch)].seconds for batch in (1, 2, 4, 8, 16)]
        alone = measured[step(measured, model, ALL, 0)].seconds
        beside = next(one for p, one in measured.items() if (p.model, p.operation) == (model, "decode_beside_load"))
        lines.append([f"`{model}`", *(f"{1e3 * s:.2f}" for s in steps), f"{beside.seconds / alone - 1:+.1%}"])
    return markdown(["model", "1", "2", "4", "8", "16", "beside a load"], lines)


def served(measured: dict[Point, Figures]) -> str:
    """llama.cpp, whole and half on the GPU."""
    lines = []
    for model in Q4:
        half = round(0.5 * (load_model(model).architecture.layers + 1))
        milliseconds = [
            measured[step(measured, model, ALL, 0)],
            measured[step(measured, model, ALL, 0, 4)],
            measured[step(measured, model, half, 0)],
            measured[step(measured, model, half, 0, 4)],
            measured[Point(model, "prefill", tokens=384)],
            measured[Point(model, "load", tier="page_cache", mode="mmap")],
            measured[Point(model, "load", tier="page_cache", mode="read")],
            measured[Point(model, "load", tier="page_cache", mode="read", n_gpu_layers=half)],
        ]
        lines.append([f"`{model}`", *(f"{1e3 * one.seconds:.4g}" for one in milliseconds)])
    head = ["model, ms", "decode", "batch 4", "half on the GPU", "the same, batch 4", "prefill 384"]
    return markdown([*head, "load, mmap", "load, read", "load, half"], lines)


def predicted() -> str:
    """Errors of `h100-sxm-80gb`, which knew nothing of this, by kind."""
    with tempfile.TemporaryDirectory() as folder:
        validate.main([f"against={MEASURED / LLAMA / command.SAVED}", f"out={folder}"])
        errors = json.loads((Path(folder) / "measurements.against.json").read_text())["summary"]
    lines = [
        [e["kind"], str(e["rows"]), *(f"{e[key]:.0%}" for key in ("median", "p90", "max")), f"{e['bias']:+.0%}"]
        for e in errors
    ]
    return markdown(["kind", "rows", "median", "p90", "max", "bias"], lines)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    main()
