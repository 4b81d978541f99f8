"""Reader of the BurstGPT traces (CC-BY 4.0; Wang et al., arXiv 2401.17644; GitHub repository HPMLL/BurstGPT).

Columns Timestamp (whole seconds from midnight of the first day), Model, Request tokens, Response tokens, Total tokens,
Log Type; later releases add Session ID and Elapsed time. Written from that documentation; failed requests have no
response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import TraceError

from .checks import require_models
from .lines import Stamp, file_stamp
from .mapping import MappingConfig
from .replay import ReplayConfig
from .table import Field, Names, Numbers, number_field, read_columns
from .trace import Column, RequestTrace

TOKENS = Column(np.int32, 0, "a whole number >= 0")


@dataclass(frozen=True)
class BurstGptConfig(ReplayConfig):
    """The recorded requests with each model name mapped to a served model; a `TraceSource`. ``path`` is the file.

    ``tenant`` is the log type, in the order of first appearance.

    Raises
    ------
    ConfigError
        A value that cannot be used, with its full key and what is accepted.
    """

    tick_s: float | None = 1.0
    """the published times are whole seconds"""
    mapping: MappingConfig = field(default_factory=MappingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mapping.check("workload.mapping")

    def sample(self, seed: int, model_names: tuple[str, ...]) -> RequestTrace:
        """The recorded requests that did not fail; see `TraceSource.sample`."""
        require_models(model_names)
        path = self.folder_or_file("a BurstGPT CSV file")
        columns, labels, names, failed = _read(path, file_stamp(path))
        model = self.mapping.assign(seed, labels, names, model_names, "workload.mapping")
        notes = [f"{failed} of {failed + len(labels)} requests without a response left out"] if failed else []
        return self.replay(seed, model_names, str(path), {**columns, "model": model}, notes=notes)


@lru_cache(maxsize=4)
def _read(path: Path, stamp: Stamp) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64], tuple[str, ...], int]:
    """Columns, model labels, their names, failures; a changed file has another stamp and is read anew."""
    models, kinds = Names(), Names()
    fields: dict[str, Field] = {
        "Timestamp": number_field("arrival_s", rising=True),
        "Model": models,
        "Request tokens": Numbers(TOKENS),
        "Response tokens": Numbers(TOKENS),
        "Log Type": kinds,
    }
    read = read_columns(path, fields)
    served = (read["Request tokens"] > 0) & (read["Response tokens"] > 0)
    if not served.any():
        raise TraceError(f"{path}: every request has 0 tokens; accepted: at least one that was served")
    columns = {
        "arrival_s": read["Timestamp"],
        "prompt_tokens": read["Request tokens"],
        "output_tokens": read["Response tokens"],
        "tenant": read["Log Type"],
    }
    kept = {name: values[served] for name, values in columns.items()}
    return kept, read["Model"][served], tuple(models.names), int((~served).sum())
