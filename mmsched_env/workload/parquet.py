"""Parquet files as columns of checked numbers, by the rules of table.py. Needs pyarrow (``pip install 'mmsched-env[cli]'``).

Rows are counted from 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.errors import ConfigError, TraceError

from .lines import MAX_ROWS, file_stamp
from .table import BLOCK, Field, Numbers, shown

MAX_BYTES = 4 * 2**30
"""of a file, uncompressed as its header states it"""


def read_parquet(path: Path, fields: Mapping[str, Field], optional: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    """Columns [N] of a Parquet file that has at least the names in `fields` that are not `optional`.

    Raises
    ------
    TraceError
        No file, not Parquet or damaged, no rows, more announced than `MAX_ROWS` or `MAX_BYTES`, a column missing, a cell
        that its field refuses.
    ConfigError
        pyarrow is not installed.
    """
    file_stamp(path)
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise ConfigError(f"{path}: Parquet needs pyarrow; run: pip install 'mmsched-env[cli]'") from None
    try:
        with pq.ParquetFile(path) as file:
            _refuse_size(path, file.metadata)
            names = file.schema_arrow.names
            missing = [name for name in fields if name not in optional and name not in names]
            if missing:
                raise TraceError(f"{path}: no column {', '.join(missing)}; found: {shown(', '.join(names), 300)}")
            used = {name: field for name, field in fields.items() if name in names}
            parts: dict[str, list[NDArray[Any]]] = {name: [] for name in used}
            for first_row, batch in _batches(file, list(used)):
                for name, field in used.items():
                    parts[name].append(_column(path, first_row, name, field, batch.column(name)))
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{path}: not a Parquet file, or damaged ({' '.join(str(error).split())[:160]})") from error
    return {name: np.concatenate(values) for name, values in parts.items()}


def write_parquet(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns as one Parquet file, atomically.

    Raises
    ------
    ConfigError
        pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise ConfigError(f"{path}: Parquet needs pyarrow; run: pip install 'mmsched-env[cli]'") from None
    part = path.with_name(path.name + ".part")
    pq.write_table(pa.table(dict(columns)), part, compression="zstd")
    part.replace(path)


def _refuse_size(path: Path, metadata: Any) -> None:
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if metadata.num_rows == 0:
        raise TraceError(f"{path}: no requests; accepted: at least one")
    if metadata.num_rows > MAX_ROWS or size > MAX_BYTES:
        raise TraceError(
            f"{path}: its header announces {metadata.num_rows} rows, {size / 1e9:.1f} GB; "
            f"accepted: at most {MAX_ROWS} rows, {MAX_BYTES / 1e9:.1f} GB, in several files"
        )


def _batches(file: Any, names: Sequence[str]) -> Iterator[tuple[int, Any]]:
    row = 1
    for batch in file.iter_batches(BLOCK, columns=names):
        yield row, batch
        row += len(batch)


def _column(path: Path, first_row: int, name: str, field: Field, column: Any) -> NDArray[Any]:
    """Numbers are taken as they are, names as text; a null is NaN or the empty name."""
    import pyarrow as pa

    kind = column.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if isinstance(field, Numbers):
        if not numeric:
            raise TraceError(f"{path}: {name} holds {kind}; accepted: numbers, {field.accepted}")
        values, bad = field.check(np.asarray(column.to_numpy(zero_copy_only=False), np.float64))
    else:
        values, bad = field.parse(["" if cell is None else str(cell) for cell in column.to_pylist()])
    if bad.any():
        i = int(bad.argmax())
        cell = shown(str(column[i].as_py()))
        raise TraceError(f"{path}: row {first_row + i}: {name} is '{cell}'; accepted: {field.accepted}")
    return values
