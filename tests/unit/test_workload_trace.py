"""RequestTrace: what it accepts, refuses, and keeps."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mmsched_env.errors import ConfigError, TraceError
from mmsched_env.workload import CsvFileConfig, GeneratorConfig, RequestTrace, summary
from mmsched_env.workload.stats import fano, window_counts
from mmsched_env.workload.trace import COLUMNS

MODELS = ("small", "large")
GOOD = {
    "arrival_s": [0.0, 1.5, 1.5],
    "model": [0, 1, 0],
    "prompt_tokens": [10, 20, 30],
    "output_tokens": [5, 6, 7],
    "max_tokens": [8, 8, 8],
}


def trace(**changes: object) -> RequestTrace:
    return RequestTrace.from_columns(MODELS, **{**GOOD, **changes})


def same_bits(one: RequestTrace, other: RequestTrace) -> bool:
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in COLUMNS)


def test_columns_and_fields_agree() -> None:
    fields = [field.name for field in dataclasses.fields(RequestTrace)]
    assert fields[: len(COLUMNS)] == list(COLUMNS)


def test_doc_page_lists_the_columns() -> None:
    page = Path(__file__).parents[2] / "docs" / "workload.md"
    rows = [line.split("|")[1:3] for line in page.read_text().splitlines() if line.startswith("| `")]
    listed = {name.strip().strip("`"): dtype.strip() for name, dtype in rows}
    assert {name: listed.get(name) for name in COLUMNS} == {
        name: np.dtype(column.dtype).name for name, column in COLUMNS.items()
    }


def test_defaults() -> None:
    made = RequestTrace.from_columns(MODELS, arrival_s=[0, 1], output_tokens=[3, 9], slo_class=[0, 1])
    assert len(made) == 2
    for name, column in COLUMNS.items():
        assert getattr(made, name).dtype == column.dtype
    assert made.max_tokens.tolist() == [9, 9]
    assert made.predicted_tokens.tolist() == [9, 9]
    assert made.slo_scale.tolist() == [5, 20]
    assert made.prompt_tokens.tolist() == [1, 1]
    assert made.weight.tolist() == [1, 1]
    assert np.isnan(made.slo_ttft_s).all() and np.isnan(made.slo_e2e_s).all()


def test_columns_are_copied() -> None:
    arrival_s = np.array([0.0, 1.5, 1.5])
    made = trace(arrival_s=arrival_s)
    arrival_s[0] = 99
    assert made.arrival_s[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrival_s": [0.0, 2.0, 1.0]}, "row 2: arrival_s is 1.0; accepted: times sorted"),
        ({"arrival_s": [-1.0, 0.0, 1.0]}, "row 0: arrival_s is -1.0; accepted: seconds >= 0"),
        ({"arrival_s": [0.0, np.nan, 1.0]}, "row 1: arrival_s is nan"),
        ({"arrival_s": [0.0, 1.0, np.inf]}, "row 2: arrival_s is inf"),
        ({"model": [0, 2, 0]}, "row 1: model is 2; accepted: 0..1, an index into model_names"),
        ({"model": [0, 1, -1]}, "row 2: model is -1"),
        ({"prompt_tokens": [10, 0, 30]}, "row 1: prompt_tokens is 0; accepted: a whole number >= 1"),
        ({"prompt_tokens": [10, 20, -3]}, "row 2: prompt_tokens is -3"),
        ({"prompt_tokens": [10, 20.5, 3]}, "row 1: prompt_tokens is 20.5"),
        ({"prompt_tokens": [10, np.nan, 3]}, "row 1: prompt_tokens is nan"),
        ({"prompt_tokens": [10, 2**31, 3]}, "row 1: prompt_tokens is 2147483648"),
        ({"prompt_tokens": [10, 20]}, r"prompt_tokens has shape \(2,\); accepted: \(3,\)"),
        ({"prompt_tokens": ["a", "b", "c"]}, "prompt_tokens holds <U1; accepted: numbers"),
        ({"image_tokens": [0, 0, -1]}, "row 2: image_tokens is -1"),
        ({"output_tokens": [5, 0, 7]}, "row 1: output_tokens is 0"),
        ({"output_tokens": [5, 9, 7]}, "row 1: max_tokens is 8; accepted: a whole number >= output_tokens"),
        ({"predicted_tokens": [5, 0.5, 7]}, "row 1: predicted_tokens is 0.5"),
        ({"predicted_tokens": [5, 1e39, 7]}, r"row 1: predicted_tokens is 1e\+39"),
        ({"slo_class": [0, 1, 2]}, "row 2: slo_class is 2; accepted: 0..1, an index into class_names"),
        ({"weight": [1, 0, 1]}, "row 1: weight is 0; accepted: a number > 0"),
        ({"weight": [1, np.inf, 1]}, "row 1: weight is inf"),
        ({"tenant": [0, 0, -1]}, "row 2: tenant is -1"),
        ({"slo_scale": [5, 5, 0]}, "row 2: slo_scale is 0"),
        ({"slo_ttft_s": [1, np.nan, 0]}, "row 2: slo_ttft_s is 0"),
        ({"slo_e2e_s": [1, np.inf, 1]}, "row 1: slo_e2e_s is inf"),
        ({"arrival_s": []}, "no requests; accepted: at least one"),
    ],
)
def test_refuses(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(**changes)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("weight", np.ones(2, np.float32), r"weight has shape \(2,\)"),
        ("weight", np.ones(3, np.float64), "weight is float64; accepted: float32"),
        ("weight", np.zeros(3, np.float32), r"week\.csv: row 2: weight is 0\.0"),
        ("arrival_s", np.zeros(0), "no requests"),
    ],
)
def test_validate_looks_at_traces_made_by_hand(name: str, values: object, message: str) -> None:
    broken = dataclasses.replace(trace(), **{name: values})
    with pytest.raises(TraceError, match=message):
        broken.validate("week.csv", first_row=2)


def test_unknown_and_missing_columns() -> None:
    with pytest.raises(ConfigError, match="did you mean 'prompt_tokens'"):
        trace(prompt_token=[1, 2, 3])
    with pytest.raises(TraceError, match="column output_tokens is missing"):
        RequestTrace.from_columns(MODELS, arrival_s=[0.0])


def test_select() -> None:
    assert trace().select([0, 2]).prompt_tokens.tolist() == [10, 30]
    assert trace().select(slice(1, None)).arrival_s.tolist() == [1.5, 1.5]
    assert trace().select(np.array([False, True, False])).model.tolist() == [1]
    with pytest.raises(TraceError, match="sorted"):
        trace().select([1, 0])
    with pytest.raises(TraceError, match="no requests"):
        trace().select(slice(0, 0))


def test_rescale_and_shift_time() -> None:
    assert trace().rescale_time(2).arrival_s.tolist() == [0, 3, 3]
    assert trace().shift_time(1).arrival_s.tolist() == [1, 2.5, 2.5]
    for factor in (0, -1, np.inf, np.nan):
        with pytest.raises(ConfigError, match="time factor"):
            trace().rescale_time(factor)
    with pytest.raises(TraceError, match="row 0: arrival_s"):
        trace().shift_time(-1)


def test_csv_keeps_every_bit(tmp_path) -> None:
    made = GeneratorConfig(num_requests=500, multimodal=("large",)).sample(3, MODELS)
    targets = np.where(made.model == 0, np.nan, 1 / 3)
    made = dataclasses.replace(made, slo_ttft_s=targets, slo_e2e_s=targets[::-1].copy())
    made.write_csv(tmp_path / "trace.csv")
    read = CsvFileConfig(path=str(tmp_path / "trace.csv")).sample(99, MODELS)
    assert same_bits(made, read)
    assert (read.model_names, read.class_names) == (made.model_names, made.class_names)


def test_summary_by_hand() -> None:
    made = RequestTrace.from_columns(
        MODELS,
        arrival_s=[2.0, 2.5, 4.0, 6.0],
        model=[0, 1, 1, 0],
        prompt_tokens=[1, 2, 3, 4],
        image_tokens=[0, 0, 0, 8],
        output_tokens=5,
    )
    figures = summary(made)
    assert (figures["num_requests"], figures["span_s"], figures["rate_per_s"]) == (4, 4.0, 1.0)
    gaps = np.array([0.5, 1.5, 2.0])
    assert figures["cv"] == pytest.approx(gaps.std() / gaps.mean())
    counts = window_counts(made.arrival_s, 1)
    assert counts.tolist() == [2, 0, 1, 0]  # the request at 6.0 opens a window that never closes
    assert window_counts(made.arrival_s, 1, partial=True).tolist() == [2, 0, 1, 0, 1]
    assert fano(made, 1) == pytest.approx(np.var([2, 0, 1, 0]) / 0.75)
    assert figures["model_shares"] == {"small": 0.5, "large": 0.5}
    assert figures["switch_share"] == pytest.approx(2 / 3)
    assert figures["image_share"] == 0.25
    assert figures["prompt_tokens"]["p50"] == 2.5 and figures["output_tokens"]["max"] == 5


def test_summary_of_one_request_has_no_rate() -> None:
    figures = summary(RequestTrace.from_columns(MODELS, arrival_s=3.0, output_tokens=5))
    assert figures["num_requests"] == 1
    assert all(np.isnan(figures[name]) for name in ("rate_per_s", "cv", "fano_1s", "peak_60s", "switch_share"))
