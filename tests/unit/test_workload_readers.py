"""Readers of recorded traces on small files made here: mapping, cuts, limits, and every broken input."""

import builtins
import os
from pathlib import Path

import numpy as np
import pytest

from mmsched_env.errors import ConfigError, TraceError
from mmsched_env.workload import Arena27Config, AzureTraceConfig, CsvFileConfig, RequestTrace, source_from
from mmsched_env.workload.predict import PredictionConfig

MODELS = ("a", "b", "c")
ARENA = "arrival_s,model_id,prompt_tokens,output_tokens,req_id\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
FILE = "arrival_s,model,prompt_tokens,output_tokens\n"
CONV, CODE = "AzureLLMInferenceTrace_conv.csv", "AzureLLMInferenceTrace_code.csv"


@pytest.fixture
def arena(tmp_path: Path) -> Path:
    path = tmp_path / "arena.csv"
    rows = [(0.0, 5, 10, 4), (1.0, 2, 20, 8), (2.0, 5, 30, 2), (4.0, 0, 40, 6), (8.0, 5, 50, 1), (9.0, 2, 60, 3)]
    path.write_text(ARENA + "".join(f"{t},{m},{p},{o},{i}\n" for i, (t, m, p, o) in enumerate(rows)))
    return path


@pytest.fixture
def azure(tmp_path: Path) -> Path:
    conv = [("18:15:00.5", 100, 30), ("18:15:02.0000001", 200, 60), ("18:15:04.0", 300, 10)]
    code = [("18:15:01.0", 900, 5), ("18:15:04.0", 800, 9)]
    for name, rows in ((CONV, conv), (CODE, code)):
        (tmp_path / name).write_bytes((AZURE + "\r\n".join(f"2023-11-16 {t},{p},{o}" for t, p, o in rows)).encode())
    return tmp_path


def sample(kind: str, path: Path, seed: int = 0, **settings: object) -> RequestTrace:
    return source_from({"kind": kind, "path": str(path), **settings}).sample(seed, MODELS)


def test_arena_maps_ids_by_popularity_rank(arena: Path) -> None:
    trace = sample("arena27", arena)
    assert trace.model.tolist() == [0, 1, 0, 2, 0, 1]  # id 5 three times, id 2 twice, id 0 once
    assert trace.arrival_s.tolist() == [0, 1, 2, 4, 8, 9]
    assert trace.prompt_tokens.tolist() == [10, 20, 30, 40, 50, 60]
    assert trace.output_tokens.tolist() == [4, 8, 2, 6, 1, 3]
    assert set(trace.max_tokens) == {8}
    wrapped = source_from({"kind": "arena27", "path": str(arena)}).sample(0, ("a", "b"))
    assert wrapped.model.tolist() == [0, 1, 0, 0, 0, 1]


def test_arena_maps_ids_by_list(arena: Path) -> None:
    trace = sample("arena27", arena, models_of_ids=["c", "a", "b", "a", "a", "a"])
    assert trace.model.tolist() == [0, 1, 0, 2, 0, 1]
    with pytest.raises(ConfigError, match=r"models_of_ids has 2 names; accepted: 6, one for each id 0\.\.5"):
        sample("arena27", arena, models_of_ids=["a", "b"])
    with pytest.raises(ConfigError, match=r"unknown model in workload\.models_of_ids 'd'"):
        sample("arena27", arena, models_of_ids=["d"] * 6)


def test_seed_drives_only_classes_and_predictions(arena: Path) -> None:
    one, other = (sample("arena27", arena, seed=seed) for seed in (1, 2))
    assert (one.predicted_tokens != other.predicted_tokens).any()
    for name in ("arrival_s", "model", "prompt_tokens", "output_tokens", "max_tokens"):
        assert (getattr(one, name) == getattr(other, name)).all()
    assert (one.predicted_tokens == sample("arena27", arena, seed=1).predicted_tokens).all()


def test_window_count_and_rate(arena: Path) -> None:
    whole = sample("arena27", arena)
    part = sample("arena27", arena, start_s=1.0, duration_s=7.0)  # up to, not including, second 8
    assert part.arrival_s.tolist() == [0, 1, 3]
    assert part.predicted_tokens.tolist() == whole.predicted_tokens[1:4].tolist()  # the cut shifts no draw
    assert part.model.tolist() == whole.model[1:4].tolist()  # rank counted over the whole file
    assert set(part.max_tokens) == {8}
    assert sample("arena27", arena, start_s=1.5, num_requests=2).arrival_s.tolist() == [0.5, 2.5]
    faster = sample("arena27", arena, rate_per_s=2.0)
    assert len(faster) / np.ptp(faster.arrival_s) == pytest.approx(2.0)
    assert faster.arrival_s / whole.arrival_s[-1] == pytest.approx(whole.arrival_s / 27)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"start_s": 100.0}, TraceError, "arena.csv: 0 requests from second 100.*arrives at 9; accepted: at least 1"),
        ({"num_requests": 7}, TraceError, "6 requests from second 0.*accepted: at least 7"),
        ({"num_requests": 1, "rate_per_s": 1.0}, ConfigError, "workload.rate_per_s is 1.0; accepted: none"),
        ({"start_s": -1.0}, ConfigError, "workload.start_s is -1.0"),
        ({"duration_s": 0.0}, ConfigError, "workload.duration_s is 0.0"),
        ({"num_requests": 0}, ConfigError, "workload.num_requests is 0"),
        ({"rate_per_s": -2.0}, ConfigError, "workload.rate_per_s is -2.0"),
        ({"min_tokens": -1}, ConfigError, "workload.min_tokens is -1"),
        ({"max_prompt_tokens": 0}, ConfigError, "workload.max_prompt_tokens is 0"),
        ({"min_tokens": 9, "max_tokens": 8}, ConfigError, "workload.max_tokens is 8; accepted: >= min_tokens=9"),
        ({"classes": {"batch_weight": -1}}, ConfigError, "workload.classes.batch_weight is -1"),
        ({"prediction": {"kind": "x"}}, ConfigError, "workload.prediction.kind is 'x'"),
        ({"path": ""}, ConfigError, "workload.path is ''; accepted: the arena27 CSV file"),
    ],
)
def test_refused_settings(arena: Path, settings: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        source_from({"kind": "arena27", "path": str(arena), **settings}).sample(0, MODELS)


def test_clipping_is_counted(arena: Path) -> None:
    trace = sample("arena27", arena, max_prompt_tokens=35, max_tokens=5, min_tokens=2)
    assert trace.prompt_tokens.tolist() == [10, 20, 30, 35, 35, 35]
    assert trace.output_tokens.tolist() == [4, 5, 2, 5, 2, 3]
    assert set(trace.max_tokens) == {5}
    assert trace.notes == (
        "1 of 6 output_tokens raised to min_tokens=2",
        "3 of 6 prompt_tokens clipped to max_prompt_tokens=35",
        "2 of 6 output_tokens clipped to max_tokens=5",
    )
    assert set(sample("arena27", arena, max_tokens=50).max_tokens) == {50}


def test_zero_tokens_are_refused_or_raised(arena: Path) -> None:
    arena.write_text(arena.read_text() + "9.5,1,7,0,6\n")
    with pytest.raises(TraceError, match=r"arena\.csv: row 8: output_tokens is '0'; .*workload\.min_tokens=1"):
        sample("arena27", arena)
    trace = sample("arena27", arena, min_tokens=1)
    assert trace.output_tokens[-1] == 1
    assert trace.notes == ("1 of 7 output_tokens raised to min_tokens=1",)


def test_a_changed_file_is_read_anew(arena: Path) -> None:
    assert len(sample("arena27", arena)) == 6
    arena.write_text(ARENA + "0,0,7,7,0\n")
    assert len(sample("arena27", arena)) == 1


def test_azure_merges_services_by_time(azure: Path) -> None:
    trace = sample("azure2023", azure)
    assert trace.arrival_s.tolist() == [0.0, 0.5, 1.5000001, 3.5, 3.5]
    assert trace.tenant.tolist() == [0, 1, 0, 0, 1]  # at 3.5 s conv stays before code
    assert trace.prompt_tokens.tolist() == [100, 900, 200, 300, 800]
    assert trace.max_tokens.tolist() == [60, 9, 60, 60, 9]


def test_azure_services_on_named_models(azure: Path) -> None:
    trace = sample("azure2023", azure, conv_models=["c"], code_models=["b"])
    assert trace.model.tolist() == [2, 1, 2, 2, 1]
    assert sample("azure2023", azure, conv_file="").tenant.tolist() == [1, 1]
    assert sample("azure2023", azure, conv_file="").arrival_s.tolist() == [0, 3]
    only_b = sample("azure2023", azure, conv_shares=[0, 1, 0], code_models=["a", "c"], code_shares=[0, 2])
    assert only_b.model.tolist() == [1, 2, 1, 1, 2]


def test_azure_shares_are_zipf_by_seed(tmp_path: Path) -> None:
    (tmp_path / CONV).write_text(AZURE + "2023-11-16 18:15:00,5,5\n" * 6000)
    traces = [sample("azure2023", tmp_path, seed=seed, code_file="", zipf_exponent=1.0) for seed in (0, 0, 1)]
    shares = np.bincount(traces[0].model) / 6000
    assert shares == pytest.approx(np.array([6, 3, 2]) / 11, abs=0.025)
    assert (traces[0].model == traces[1].model).all()
    assert (traces[0].model != traces[2].model).any()


def test_azure_services_draw_apart_and_equal_times_keep_their_order(tmp_path: Path) -> None:
    for name, service in ((CONV, 0), (CODE, 1)):
        rows = [f"2023-11-16 18:15:{i // 20:02},{1 + i + 1000 * service},5\n" for i in range(200)]
        (tmp_path / name).write_text(AZURE + "".join(rows))
    trace = sample("azure2023", tmp_path)
    seconds = trace.prompt_tokens.reshape(10, 2, 20)  # in each second, 20 of conv and then 20 of code
    assert (seconds[:, 0].ravel() == np.arange(1, 201)).all() and (seconds[:, 1].ravel() == np.arange(1001, 1201)).all()
    assert (trace.model[trace.tenant == 0] != trace.model[trace.tenant == 1]).any()


def test_azure_min_tokens_above_every_output(azure: Path) -> None:
    trace = sample("azure2023", azure, min_tokens=20)
    assert trace.output_tokens.tolist() == [30, 20, 60, 20, 20]
    assert trace.max_tokens.tolist() == [60, 20, 60, 60, 20]


def test_azure_leaving_a_service_out_shifts_no_draw_of_the_other(azure: Path) -> None:
    both = sample("azure2023", azure, seed=4)
    conv = sample("azure2023", azure, seed=4, code_file="")
    assert conv.model.tolist() == both.model[both.tenant == 0].tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conv_models": ["x"]}, "unknown model in workload.conv_models 'x'"),
        ({"conv_models": ["a", "b"], "conv_shares": [1]}, "workload.conv_shares is .*; accepted: 2 numbers"),
        ({"code_shares": [1, 1]}, "workload.code_shares is .*; accepted: 3 numbers"),
        ({"code_shares": [0, 0, 0]}, "not all 0"),
        ({"code_shares": [1, -1, 1]}, "workload.code_shares"),
        ({"zipf_exponent": -1}, "workload.zipf_exponent is -1"),
        ({"conv_file": "", "code_file": ""}, "at least one file name"),
    ],
)
def test_azure_refused_settings(azure: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample("azure2023", azure, **settings)


def test_azure_missing_file_or_path(azure: Path) -> None:
    (azure / CODE).unlink()
    with pytest.raises(TraceError, match=r"AzureLLMInferenceTrace_code\.csv: does not exist"):
        sample("azure2023", azure)
    with pytest.raises(ConfigError, match=r"workload\.path is ''; accepted: the folder"):
        AzureTraceConfig().sample(0, MODELS)


def test_file_fills_in_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(FILE + "0.5,b,10,3\n0.75,a,20,9\n\n")
    trace = sample("file", path, prediction={"kind": "oracle"}, classes={"interactive_share": 0.0})
    assert trace.model.tolist() == [1, 0]
    assert trace.max_tokens.tolist() == [9, 9]
    assert trace.predicted_tokens.tolist() == [3, 9]
    assert trace.slo_class.tolist() == [1, 1] and trace.weight.tolist() == [0.25, 0.25]


def test_file_uses_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(
        "slo_class,arrival_s,model,prompt_tokens,output_tokens,max_tokens,slo_e2e_s,note\n"
        "gold,0,a,1,2,3,,x\nlead,1,a,1,2,7,4.5,y\n"
    )
    trace = sample("file", path, class_names=["gold", "lead"])
    assert trace.class_names == ("gold", "lead") and trace.slo_class.tolist() == [0, 1]
    assert trace.weight.tolist() == [1.0, 0.25]
    assert trace.max_tokens.tolist() == [3, 7]
    assert np.isnan(trace.slo_e2e_s[0]) and trace.slo_e2e_s[1] == 4.5
    with pytest.raises(TraceError, match=r"row 2: slo_class is 'gold'; accepted: interactive or batch"):
        sample("file", path)
    with pytest.raises(ConfigError, match=r"workload\.class_names"):
        CsvFileConfig(class_names=("a", "a"))


BROKEN_FILE = [
    (FILE + "0,a,10,5\n1,a,0,5\n", "row 3: prompt_tokens is '0'"),
    (FILE + "0,a,10,5\n1,a,-4,5\n", "row 3: prompt_tokens is '-4'"),
    (FILE + "0,a,10,5\n1,a,nan,5\n", "row 3: prompt_tokens is 'nan'"),
    (FILE + "0,a,10,5\n1,a,,5\n", "row 3: prompt_tokens is ''"),
    (FILE + "0,a,10,5\n1,a,many,5\n", "row 3: prompt_tokens is 'many'"),
    (FILE + "0,a,10,5\n1,a,2.5,5\n", "row 3: prompt_tokens is '2.5'"),
    (FILE + "0,a,10,inf\n", "row 2: output_tokens is 'inf'"),
    (FILE + "0,a,10,5\n-1,a,9,5\n", "row 3: arrival_s is '-1'; accepted: seconds >= 0"),
    (FILE + "0,a,10,5\ninf,a,9,5\n", "row 3: arrival_s is 'inf'"),
    (FILE + "0,a,10,5\nsoon,a,9,5\n", "row 3: arrival_s is 'soon'"),
    (FILE + "5,a,10,5\n6,a,9,5\n5.5,a,9,5\n", "row 4: arrival_s is '5.5'; accepted: times sorted"),
    (FILE + "0,a,10,5\n1,z,9,5\n", "row 3: model is 'z'; accepted: a or b or c"),
    (FILE + "0,a,10,5\n\n1,a,9,5\n", "row 3: 0 cells; accepted: 4 as in the header"),
    (FILE + "0,a,10,5\n1,a,9\n", "row 3: 3 cells; accepted: 4"),
    (FILE + "0,a,10,5\n1,a,9,5,5\n", "row 3: 5 cells; accepted: 4"),
    (FILE + '0,"a\nb",10,5\n', "row 2: a cell runs over several lines"),
    (FILE, "no requests after the header"),
    ("", "empty; accepted: a header line"),
    ("arrival_s,model\n0,a\n", "row 1: no column prompt_tokens, output_tokens; found: arrival_s, model"),
    ("model," + FILE + "a,0,a,1,1\n", "row 1: column model twice"),
    (FILE.strip() + ",max_tokens\n0,a,1,1,1\n1,a,10,5,4\n", "row 3: max_tokens is 4; accepted: .*>= output_tokens"),
    (FILE.strip() + ",weight\n0,a,1,1,0\n", "row 2: weight is '0'; accepted: a number > 0"),
    (FILE.strip() + ",slo_e2e_s\n0,a,1,1,none\n", "row 2: slo_e2e_s is 'none'"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN_FILE)
def test_broken_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=r"mine\.csv: " + message):
        sample("file", path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,0,0,5,1", "row 3: prompt_tokens is '0'"),
        ("1,0,5,-5,1", "row 3: output_tokens is '-5'"),
        ("1,x,5,5,1", "row 3: model_id is 'x'; accepted: a whole number >= 0"),
        ("1,-1,5,5,1", "row 3: model_id is '-1'"),
        ("1,0.5,5,5,1", "row 3: model_id is '0.5'"),
        ("nan,0,5,5,1", "row 3: arrival_s is 'nan'"),
        ("0.25,0,5,5,1", "row 3: arrival_s is '0.25'; accepted: times sorted"),
    ],
)
def test_broken_arena(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "arena.csv"
    path.write_text(f"{ARENA}0.5,0,5,5,0\n{row}\n")
    with pytest.raises(TraceError, match=r"arena\.csv: " + message):
        sample("arena27", path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2023-11-16 18:00:01,0,5", "row 3: ContextTokens is '0'"),
        ("2023-11-16 18:00:01,5,inf", "row 3: GeneratedTokens is 'inf'"),
        ("yesterday,5,5", "row 3: TIMESTAMP is 'yesterday'; accepted: a time such as"),
        ("2023-13-16 18:00:01,5,5", "row 3: TIMESTAMP is '2023-13-16"),
        (",5,5", "row 3: TIMESTAMP is ''"),
        ("7.5,5,5", "row 3: TIMESTAMP is '7.5'"),
        ("2023-11-16 17:59:59,5,5", "row 3: TIMESTAMP is '2023-11-16 17:59:59'; accepted: times sorted"),
    ],
)
def test_broken_azure(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / CONV).write_text(f"{AZURE}2023-11-16 18:00:00,5,5\r\n{row}\r\n")
    with pytest.raises(TraceError, match=r"_conv\.csv: " + message):
        sample("azure2023", tmp_path, code_file="")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"gone\.csv: does not exist; accepted: a CSV file"):
        sample("file", tmp_path / "gone.csv")
    with pytest.raises(TraceError, match="is a folder; accepted: a CSV file"):
        sample("file", tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"arrival_s\xff\xfe\n")
    with pytest.raises(TraceError, match=r"bytes\.csv: not a CSV file in UTF-8"):
        sample("file", tmp_path / "bytes.csv")
    for config in (AzureTraceConfig(path="x"), Arena27Config(path="x"), CsvFileConfig(path="x")):
        with pytest.raises(ConfigError, match="at least one model"):
            config.sample(0, ())


def test_home_folder_and_byte_order_mark(arena: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena.write_bytes(b"\xef\xbb\xbf" + arena.read_bytes())
    monkeypatch.setitem(os.environ, "HOME", str(arena.parent))
    assert len(Arena27Config(path="~/arena.csv").sample(0, MODELS)) == 6


def test_readers_need_no_pandas(arena: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_pandas(name: str, *args: object, **kwargs: object) -> object:
        assert name.split(".")[0] != "pandas"
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    assert len(sample("arena27", arena, prediction=vars(PredictionConfig()))) == 6


def test_azure_2024_times(azure: Path) -> None:
    """The files of 2024 have the same columns; their times state their zone."""
    rows = [
        "2024-05-10 00:00:00.009930+00:00,100,5",
        "2024-05-10 00:00:01.509930+00:00,200,6",
        "2024-05-11T00:00:02Z,7,8",
    ]
    (azure / CONV).write_text(AZURE.replace("\r", "") + "\n".join(rows) + "\n")
    trace = sample("azure2023", azure, code_file="")
    assert trace.arrival_s == pytest.approx([0, 1.5, 86401.99007])
