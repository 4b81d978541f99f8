"""The fit: recovers known coefficients, shrugs off an outlier, writes the shipped files byte for byte."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from mmsched_env.calibration import fit, laws
from mmsched_env.calibration.measurements import read_rows
from mmsched_env.costmodel import profile
from mmsched_env.errors import ConfigError


def test_known_coefficients_come_back() -> None:
    truth = {"const": 2e-3, "byte": 1 / 5e11}
    rows = [({"const": 1.0, "byte": b}, truth["const"] + b * truth["byte"]) for b in (1e9, 4e9, 1.6e10, 4e10)]
    assert laws.fit_linear(rows).coefficients == pytest.approx(truth, rel=1e-4)


def test_one_outlier_does_not_move_the_fit() -> None:
    rows = [({"const": 1.0, "byte": b * 1e9}, 0.01 + b * 0.002) for b in range(1, 12)]
    rows[5] = (rows[5][0], rows[5][1] * 3)
    assert laws.fit_linear(rows).coefficients["byte"] == pytest.approx(2e-12, rel=0.02)


def test_left_out_error_sees_what_the_fit_does_not() -> None:
    """A curved law fits its own rows better than the ones left out."""

    def work(x: float) -> tuple[dict[str, float], float]:
        return {"const": 1.0, "x": x}, 1 + x**2

    items = [0.1, 1.0, 2.0, 4.0]
    left = laws.errors_left_out(items, work, lambda i: i)
    error = laws.fit_error(items, work, laws.fit_linear([work(i) for i in items]), left, "one point")
    assert error.worst >= error.leave_out > error.in_sample > 0.01


def test_shipped_profiles_are_what_the_fit_writes(tmp_path: Path) -> None:
    assert fit.main(["--out", str(tmp_path)]) == 0
    for kind in ("gpus", "hosts"):
        shipped = sorted((profile.PROFILES / kind).glob("*.yaml"))
        assert [p.name for p in shipped] == sorted(p.name for p in (tmp_path / kind).iterdir())
        for path in shipped:
            assert (tmp_path / kind / path.name).read_bytes() == path.read_bytes(), f"{path.name}: run the fit again"


def test_a_changed_measurement_changes_the_profile(tmp_path: Path) -> None:
    """Twice the decode rates of one GPU: its read rates rise, another GPU's stay within the shared overhead."""
    tables = tmp_path / "measurements"
    shutil.copytree(fit.MEASUREMENTS, tables)
    rows = read_rows(tables, "decode_prefill")
    for row in rows:
        if row["gpu"] == "RTX 4090" and row["test"] == "tg":
            row["tokens_per_s"] = str(1.2 * float(row["tokens_per_s"]))
    with (tables / "decode_prefill.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    fit.main(["--measurements", str(tables), "--out", str(tmp_path / "out")])
    after, before = tmp_path / "out", profile.PROFILES
    faster = profile.load_gpu("rtx-4090-24gb", after).read["f16"].value
    assert faster > 1.1 * profile.load_gpu("rtx-4090-24gb", before).read["f16"].value
    same = profile.load_gpu("rtx-3090-24gb", after).read["f16"].value
    assert same == pytest.approx(profile.load_gpu("rtx-3090-24gb", before).read["f16"].value, rel=0.05)


def test_bad_cell_is_named(tmp_path: Path) -> None:
    tables = tmp_path / "measurements"
    shutil.copytree(fit.MEASUREMENTS, tables)
    path = tables / "load_times.csv"
    path.write_text(path.read_text().replace(",7.3,", ",fast,"))
    with pytest.raises(ConfigError, match="seconds is 'fast'"):
        fit.main(["--measurements", str(tables), "--out", str(tmp_path / "out")])
    path.unlink()
    with pytest.raises(ConfigError, match=r"load_times\.csv: no such measurement table"):
        fit.main(["--measurements", str(tables), "--out", str(tmp_path / "out")])


def test_every_row_has_a_source() -> None:
    for path in sorted(fit.MEASUREMENTS.glob("*.csv")):
        for row in read_rows(fit.MEASUREMENTS, path.stem):
            assert row["source_url"].startswith(("http", "own measurement")), (path.name, row)


def test_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    fit.write_atomic(tmp_path / "gpus" / "x.yaml", "a: 1\n")
    fit.write_atomic(tmp_path / "gpus" / "x.yaml", "a: 2\n")
    assert [p.read_text() for p in (tmp_path / "gpus").iterdir()] == ["a: 2\n"]
