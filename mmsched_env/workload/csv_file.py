"""Reader of our own CSV format, the one `RequestTrace.write_csv` writes (columns: docs/workload.md)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .checks import require, require_models
from .replay import ReplayConfig
from .table import Stamp, file_stamp, read_table
from .trace import CLASS_NAMES, COLUMNS, RequestTrace

REQUIRED = ("arrival_s", "model", "prompt_tokens", "output_tokens")


@dataclass(frozen=True)
class CsvFileConfig(ReplayConfig):
    """Requests from a file; a `TraceSource`.

    ``path`` is the file. Columns it lacks are filled in: classes and prediction errors drawn by the seed,
    ``max_tokens`` as configured, everything else as in `RequestTrace.from_columns`. Columns it has are used as they
    are.

    Raises
    ------
    ConfigError
        A value that cannot be used, with its full key and what is accepted.
    """

    class_names: tuple[str, ...] = CLASS_NAMES
    """names in the slo_class column; the first has the interactive defaults, the others the batch ones"""

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = len(self.class_names) >= 1 and len(set(self.class_names)) == len(self.class_names)
        require(ok, "workload.class_names", self.class_names, "at least one name, none twice")

    def sample(self, seed: int, model_names: tuple[str, ...]) -> RequestTrace:
        """The requests of the file; see `TraceSource.sample`."""
        require_models(model_names)
        path = self.folder_or_file("a CSV file of requests")
        columns = _read(path, file_stamp(path), model_names, self.class_names, self.min_tokens)
        return self.replay(seed, model_names, str(path), dict(columns), self.class_names)


@lru_cache(maxsize=8)
def _read(
    path: Path, stamp: Stamp, model_names: tuple[str, ...], class_names: tuple[str, ...], min_tokens: int
) -> dict[str, NDArray[Any]]:
    """The columns of the file; a changed file has another stamp and is read anew."""
    table = read_table(path, REQUIRED)
    columns: dict[str, NDArray[Any]] = {}
    for name in COLUMNS:
        if name not in table.columns:
            continue
        if name in ("model", "slo_class"):
            columns[name] = table.indices(name, model_names if name == "model" else class_names)
        elif name in ("prompt_tokens", "output_tokens"):
            columns[name] = table.tokens(name, min_tokens)
        else:
            columns[name] = table.numbers(name)
    table.refuse_unsorted("arrival_s", columns["arrival_s"])
    return columns
