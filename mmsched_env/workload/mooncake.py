"""Reader of the Mooncake traces (Apache-2.0; Qin et al., Mooncake, FAST 2025).

One JSON object a line: timestamp (ms), input_length, output_length and hash_ids, the 512-token blocks of the prompt
(equal ids: KV cache that could be used again; the simulator shares no prefixes, so they are only counted).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import require_models
from .jsonl import json_objects, read_jsonl
from .lines import Stamp, file_stamp
from .mapping import MappingConfig
from .replay import ReplayConfig
from .trace import COLUMNS, Column, RequestTrace

MILLISECONDS = Column(np.float64, 0, "milliseconds >= 0")


@dataclass(frozen=True)
class MooncakeConfig(ReplayConfig):
    """The recorded requests, models drawn by share (the record names none); a `TraceSource`. ``path`` is the file.

    Raises
    ------
    ConfigError
        A value that cannot be used, with its full key and what is accepted.
    """

    tick_s: float | None = 3.0
    """the published times are quantised to 3 s"""
    mapping: MappingConfig = field(default_factory=lambda: MappingConfig(rule="share"))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mapping.check("workload.mapping")

    def sample(self, seed: int, model_names: tuple[str, ...]) -> RequestTrace:
        """The recorded requests; see `TraceSource.sample`."""
        require_models(model_names)
        path = self.folder_or_file("a Mooncake JSONL file")
        columns = _read(path, file_stamp(path), self.min_tokens)
        labels = np.zeros(len(columns["arrival_s"]), np.int64)
        model = self.mapping.assign(seed, labels, ("mooncake",), model_names, "workload.mapping")
        return self.replay(seed, model_names, str(path), {**columns, "model": model}, first_row=1)


@lru_cache(maxsize=8)
def _read(path: Path, stamp: Stamp, min_tokens: int) -> dict[str, NDArray[Any]]:
    """The columns of the file; a changed file has another stamp and is read anew."""
    tokens = Column(np.int32, 0 if min_tokens else 1, COLUMNS["prompt_tokens"].accepted)
    columns = {"timestamp": MILLISECONDS, "input_length": tokens, "output_length": tokens}
    read = read_jsonl(path, columns, rising="timestamp")
    return {
        "arrival_s": read["timestamp"] / 1e3,
        "prompt_tokens": read["input_length"],
        "output_tokens": read["output_length"],
    }


def repeated_block_share(path: Path) -> float:
    """Share of the prompts' 512-token blocks that an earlier prompt (or an earlier block of the same) had too."""
    seen: set[int] = set()
    blocks = 0
    for entry in json_objects(path):
        blocks += len(entry["hash_ids"])
        seen.update(entry["hash_ids"])
    return 1 - len(seen) / blocks
