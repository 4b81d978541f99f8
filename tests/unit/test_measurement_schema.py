"""The schema of measurements: written and read back equal, and refused with row and column."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsched_env.calibration import schema
from mmsched_env.calibration.schema import COLUMNS, CPU_ONLY, Measurement
from mmsched_env.errors import ConfigError

HEADER = (
    "series,gpu,gpu_mem_gb,num_gpus,host,link,engine,engine_version,model,quant,params_b,num_layers,n_gpu_layers,"
    "n_cpu_moe,operation,tier,pinned,tokens,depth,batch,ubatch,size_bytes,value,unit,spread,repeats,date,source,"
    "provenance,note"
)
GOOD: dict[str, Any] = {
    "gpu": "RTX 3090",
    "model": "llama 7B",
    "operation": "decode",
    "value": 100.5,
    "unit": "tokens/s",
    "source": "https://example.org",
    "provenance": "imported",
}


def test_columns() -> None:
    assert ",".join(COLUMNS) == HEADER


def test_a_row_as_it_is_written(tmp_path: Path) -> None:
    row = Measurement(**GOOD, gpu_mem_gb=24.0, pinned=False, tokens=128, spread=0.0, note='a "b", c')
    schema.write(tmp_path / "m.csv", [row])
    lines = (tmp_path / "m.csv").read_text().splitlines()
    assert lines[0] == HEADER
    assert lines[1] == (
        ',RTX 3090,24,1,,,,,llama 7B,,,,,,decode,,n,128,,,,,100.5,tokens/s,0,,,https://example.org,imported,"a ""b"", c"'
    )
    assert schema.read(tmp_path / "m.csv") == [row]


@given(
    value=st.floats(min_value=1e-300, max_value=1e300),
    spread=st.none() | st.floats(min_value=0, max_value=1e300),
    tokens=st.none() | st.integers(1, 10**9),
    pinned=st.sampled_from([None, True, False]),
    note=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).map(str.strip),
)
def test_read_back_equal(tmp_path_factory: pytest.TempPathFactory, **columns: Any) -> None:
    path = tmp_path_factory.mktemp("schema") / "m.csv"
    row = Measurement(**{**GOOD, **columns})
    schema.write(path, [row, row])
    assert schema.read(path) == [row, row]


def test_writing_replaces_the_file_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.csv"
    schema.write(path, [Measurement(**GOOD)])
    schema.write(path, [Measurement(**GOOD), Measurement(**GOOD)])
    assert len(schema.read(path)) == 2
    assert [p.name for p in path.parent.iterdir()] == ["m.csv"]

    def broken() -> Any:
        yield Measurement(**GOOD)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        schema.write(path, broken())
    assert len(schema.read(path)) == 2


REFUSED = {
    "zero": ("value", "0", "value is 0.0; accepted: a finite number > 0"),
    "negative": ("value", "-1", "value is -1.0; accepted: a finite number > 0"),
    "nan": ("value", "nan", "value is nan; accepted: a finite number > 0"),
    "inf": ("value", "inf", "value is inf; accepted: a finite number > 0"),
    "text": ("value", "fast", "value is 'fast'; accepted: a number"),
    "no value": ("value", "", "value is ''; accepted: a value"),
    "no operation": ("operation", "", "operation is ''; accepted: a value"),
    "unknown operation": ("operation", "decod", "unknown operation 'decod' (did you mean 'decode'?)"),
    "unknown unit": ("unit", "ms", "unit is 'ms'; accepted: tokens/s"),
    "unit of another operation": ("operation", "load", "unit is 'tokens/s'; accepted: s"),
    "copies in seconds or bytes": ("operation", "copy_h2d", "unit is 'tokens/s'; accepted: s or B/s"),
    "no model": ("model", " ", "model is ''; accepted: the model, for decode"),
    "no GPU": ("gpu", "", "gpu is ''; accepted: a GPU, or 'none (CPU)'"),
    "CPU with a GPU": ("gpu", CPU_ONLY, "num_gpus is 1; accepted: 0 without a GPU"),
    "no GPUs of a kind": ("num_gpus", "0", "num_gpus is 0; accepted: >= 1"),
    "fraction": ("tokens", "1.5", "tokens is '1.5'; accepted: a whole number"),
    "no tokens": ("tokens", "0", "tokens is 0; accepted: a finite number >= 1"),
    "layers": ("n_gpu_layers", "-2", "n_gpu_layers is -2; accepted: a finite number >= -1"),
    "memory nan": ("gpu_mem_gb", "nan", "gpu_mem_gb is nan; accepted: a finite number > 0"),
    "spread negative": ("spread", "-0.1", "spread is -0.1; accepted: a finite number >= 0"),
    "spread inf": ("spread", "inf", "spread is inf"),
    "pinned": ("pinned", "yes", "pinned is 'yes'; accepted: y, n or nothing"),
    "tier": ("tier", "moon", "tier is 'moon'; accepted: ram, page_cache, disk, network or nothing"),
    "date": ("date", "24.11.2026", "date is '24.11.2026'; accepted: YYYY, YYYY-MM, YYYY-MM-DD or nothing"),
    "month": ("date", "2026-13", "date is '2026-13'"),
    "source": ("source", "", "source is ''; accepted: a value"),
    "provenance": ("provenance", "guessed", "provenance is 'guessed'; accepted: measured or imported"),
}
"""what is wrong -> (column, its cell, what the error says)"""


@pytest.mark.parametrize("case", REFUSED)
def test_refused_cells_name_file_row_and_column(tmp_path: Path, case: str) -> None:
    column, cell, message = REFUSED[case]
    path = tmp_path / "m.csv"
    schema.write(path, [Measurement(**GOOD)] * 2)
    first, second, third = path.read_text().splitlines()
    cells = third.split(",")
    cells[COLUMNS.index(column)] = cell
    path.write_text("\n".join([first, second, ",".join(cells)]) + "\n")
    with pytest.raises(ConfigError) as caught:
        schema.read(path)
    assert str(caught.value).startswith(f"{path}: row 3: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; accepted: a header"),
        (HEADER.replace(",unit", ""), "row 1 lacks unit; accepted: the columns"),
        (HEADER.replace("unit", "units"), "row 1 lacks unit"),
        (HEADER + ",extra", "row 1 has extra; accepted: the columns"),
        (HEADER + ",note", "row 1 has a column twice"),
        (HEADER + "\na,b\n", "row 2 has 2 cells; accepted: 30, as in the header"),
        (HEADER + '\n"a', "is not CSV"),
    ],
)
def test_refused_tables(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        schema.read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        schema.read(tmp_path / "none.csv")


def test_columns_in_another_order_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    names = list(reversed(COLUMNS))
    cells = {**dict.fromkeys(names, ""), **{k: str(v) for k, v in GOOD.items()}}
    path.write_text(",".join(names) + "\n" + ",".join(cells[n] for n in names) + "\n\n", encoding="utf-8-sig")
    assert schema.read(path) == [Measurement(**GOOD)]


def test_what_needs_neither_model_nor_gpu() -> None:
    copy = {**GOOD, "operation": "disk_read", "unit": "B/s", "gpu": "", "model": ""}
    assert Measurement(**copy).value == 100.5
    with pytest.raises(ConfigError, match="gpu is ''"):
        Measurement(**{**copy, "operation": "copy_h2d"})
    assert Measurement(**{**GOOD, "gpu": CPU_ONLY, "num_gpus": 0}).num_gpus == 0


def test_rows_made_in_code_are_checked_too() -> None:
    good = Measurement(**GOOD)
    for change in ({"value": math.nan}, {"unit": "s"}, {"depth": -1}):
        with pytest.raises(ConfigError):
            dataclasses.replace(good, **change)
