"""The fit: recovers known coefficients, shrugs off an outlier, writes the shipped files byte for byte."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmsched_env.calibration import evidence, expert_batches, fit, loading, schema
from mmsched_env.calibration.atomic import write_atomic
from mmsched_env.calibration.loglinear import Key, Line, Prior, Term
from mmsched_env.calibration.loglinear import fit as fit_lines
from mmsched_env.costmodel import profile
from mmsched_env.errors import ConfigError


def wide(key: Key) -> Prior:
    return Prior(0.0, 10.0)


def lines(noise: float = 0.0) -> list[Line]:
    """Seconds of const + bytes * rate, with rate exp(-2) and const exp(-4)."""
    random = np.random.default_rng(0)
    sizes = np.geomspace(0.01, 4, 60)
    return [
        Line(
            (math.exp(-4) + size * math.exp(-2)) * math.exp(noise * random.standard_normal()),
            (Term(1.0, ((("const",), 1.0),)), Term(float(size), ((("rate",), -1.0),))),
        )
        for size in sizes
    ]


def test_known_coefficients_come_back() -> None:
    found = fit_lines(lines(), wide)
    assert found.log(((("const",), 1.0),))[0] == pytest.approx(-4, abs=1e-3)
    assert found.log(((("rate",), 1.0),))[0] == pytest.approx(2, abs=1e-3)


def test_one_outlier_does_not_move_the_fit() -> None:
    rows = lines()
    rows[30] = Line(3 * rows[30].seconds, rows[30].terms)
    assert fit_lines(rows, wide).log(((("rate",), 1.0),))[0] == pytest.approx(2, abs=0.02)


def test_standard_error_is_that_of_repeated_experiments() -> None:
    """Noise of 3 % on 60 lines: the stated error is near the scatter of many fits."""
    values, stated = [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        noisy = [Line(line.seconds * math.exp(0.03 * random.standard_normal()), line.terms) for line in lines()]
        value, error = fit_lines(noisy, wide).log(((("rate",), 1.0),))
        values.append(value)
        stated.append(error)
    assert np.mean(stated) == pytest.approx(np.std(values), rel=0.5)


def test_what_is_not_measured_stays_at_its_prior() -> None:
    prior = {("const",): Prior(-4.0, 0.5), ("rate",): Prior(0.0, 10.0), ("other",): Prior(0.3, 0.2)}
    found = fit_lines(lines(), prior.__getitem__)
    assert found.log(((("other",), 2.0),)) == pytest.approx((0.6, 0.4))


def test_shipped_profiles_are_what_the_fit_writes(tmp_path: Path) -> None:
    assert fit.main(["--out", str(tmp_path)]) == 0
    for kind in ("gpus", "hosts"):
        every = sorted((profile.PROFILES / kind).glob("*.yaml"))
        shipped = [
            p for p in every if "calibrate measure" not in p.read_text().splitlines()[0]
        ]  # test_measure.py has those
        assert [p.name for p in shipped] == sorted(p.name for p in (tmp_path / kind).iterdir())
        for path in shipped:
            assert (tmp_path / kind / path.name).read_bytes() == path.read_bytes(), f"{path.name}: run the fit again"


def test_a_changed_measurement_changes_its_gpu_and_hardly_another() -> None:
    """Decode of one GPU 1.2 times as fast: its read rates rise, another GPU's stay within what is shared."""
    before = evidence.gather(fit.MEASUREMENTS)
    rows = evidence.read_tables(fit.MEASUREMENTS)
    faster = [
        schema.Measurement(**(vars(r) | {"value": 1.2 * r.value}))
        if (r.gpu, r.operation) == ("RTX 4090", "decode")
        else r
        for r in rows
    ]
    decodes, _, _ = evidence.sort_out(faster, before.specs)
    after = evidence.decode.fit_decode(decodes, before.specs)
    for gpu, low, high in (("rtx-4090-24gb", 1.1, 1.3), ("rtx-3090-24gb", 0.95, 1.05)):
        term = evidence.decode.read_term(1.0, gpu, "f16", "", before.specs)
        ratio = math.exp(before.decode.log(term.factors)[0] - after.log(term.factors)[0])
        assert low < ratio < high, gpu


def test_batches_of_experts_are_predicted_from_other_models() -> None:
    """The power fitted to two models predicts the third within 40 %; taken as dense they are 38 to 75 % too fast."""
    found = evidence.gather(fit.MEASUREMENTS)
    rows = schema.read(fit.MEASUREMENTS / expert_batches.TABLE)
    errors = expert_batches.left_out(rows, found.decode, found.specs)
    assert len(errors) == 3 and all(len(e) == 5 for e in errors.values())
    every = np.abs(np.concatenate(list(errors.values())))
    assert np.median(every) < 0.15 and every.max() < 0.4
    dense, experts = expert_batches.split(expert_batches.series(rows, found.decode, found.specs))
    as_dense = [
        one.predicted(np.interp(one.batch, *np.array(dense.value).T))[1:] / one.seconds[1:] - 1 for one in experts
    ]
    assert np.max(as_dense) < -0.35


def test_loads_of_nine_models_are_predicted_from_the_other_eight() -> None:
    """The law of warm reads: tokenizer by vocabulary, bytes, and the repacking of Q4_0."""
    rows = loading.own_loads(evidence.read_tables(fit.MEASUREMENTS), "page_cache", "read")
    errors = np.abs(loading.leave_one_out(rows))
    assert len(errors) == 9 and errors.mean() <= 0.09


def test_bad_cell_is_named(tmp_path: Path) -> None:
    tables = tmp_path / "measurements"
    shutil.copytree(fit.MEASUREMENTS, tables)
    path = tables / "load_times.csv"
    path.write_text(path.read_text().replace(",7.3,", ",fast,"))
    with pytest.raises(ConfigError, match=r"load_times\.csv: row \d+: value is 'fast'"):
        fit.main(["--measurements", str(tables), "--out", str(tmp_path / "out")])
    path.unlink()
    with pytest.raises(ConfigError, match=r"load_times\.csv: cannot be read"):
        fit.main(["--measurements", str(tables), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "gpus" / "x.yaml", "a: 1\n")
    write_atomic(tmp_path / "gpus" / "x.yaml", "a: 2\n")
    assert [p.read_text() for p in (tmp_path / "gpus").iterdir()] == ["a: 2\n"]
