"""Writes docs/observation.md from the observation's field table: ``python docs/make_observation_page.py``."""

from __future__ import annotations

from pathlib import Path

from mmsched_env.config import LimitsConfig
from mmsched_env.observation import TABLE, block_shape, block_width
from mmsched_env.sim.state import Dims

PAGE = Path(__file__).parent / "observation.md"
HEAD = """# What a policy observes

Written by `docs/make_observation_page.py` from `mmsched_env.observation.TABLE`; do not edit.

A `Dict` of float32 arrays in plain units, and `action_mask` (A,), int8, 1 where an action is legal. True output lengths
and future arrivals are not observed. Letters: Q queue slots, G GPUs, S slots a GPU, I = G S instances, M models,
K offload levels; shapes in brackets are those of the default configuration. Rows beyond what is there are zero.
"""


def page() -> str:
    """The page's text."""
    dims = Dims.of(LimitsConfig())
    parts = [HEAD]
    for block, (letters, row, fields) in TABLE.items():
        shape = (*block_shape(block, dims), block_width(block, dims))
        parts.append(
            f"\n## `{block}` ({letters}, fields) = {shape}: {row}\n\n| field | unit | meaning |\n|---|---|---|\n"
        )
        for name, extra, unit, meaning in fields:
            label = f"`{name}`" + (f" ({extra} values)" if extra else "")
            parts.append(f"| {label} | {unit} | {meaning} |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
