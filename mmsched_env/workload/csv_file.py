"""Reader of our own format, CSV (also ``.csv.gz``) or Parquet: what `RequestTrace` writes (columns: docs/workload.md)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .checks import require, require_models
from .lines import Stamp, file_stamp
from .parquet import read_parquet
from .replay import ReplayConfig
from .table import Field, Ids, Indices, number_field, read_columns, token_field
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
        path = self.folder_or_file("a CSV or Parquet file of requests")
        columns = _read(path, file_stamp(path), model_names, self.class_names, self.min_tokens)
        first_row = 1 if path.suffix == ".parquet" else 2
        return self.replay(seed, model_names, str(path), dict(columns), self.class_names, first_row=first_row)


@lru_cache(maxsize=8)
def _read(
    path: Path, stamp: Stamp, model_names: tuple[str, ...], class_names: tuple[str, ...], min_tokens: int
) -> dict[str, NDArray[Any]]:
    """The columns of the file; a changed file has another stamp and is read anew."""
    fields: dict[str, Field] = {name: number_field(name) for name in COLUMNS}
    fields |= {
        "arrival_s": number_field("arrival_s", rising=True),
        "model": Indices(model_names),
        "slo_class": Indices(class_names),
        "prompt_tokens": token_field(min_tokens),
        "output_tokens": token_field(min_tokens),
        "request_id": Ids(),
    }
    optional = [name for name in fields if name not in REQUIRED]
    columns = (read_parquet if path.suffix == ".parquet" else read_columns)(path, fields, optional)
    columns.pop("request_id", None)
    return columns
