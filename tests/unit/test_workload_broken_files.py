"""Broken trace files, twenty kinds and more, for every reader: one clear error each, quickly and in little memory."""

import gzip
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsched_env.errors import ConfigError, TraceError
from mmsched_env.workload import lines, source_from, table

MODELS = ("a", "b")
OWN = b"arrival_s,model,prompt_tokens,output_tokens\n"
ROW = b"0.5,a,10,5\n"
MOONCAKE = b'{"timestamp": 0, "input_length": 5, "output_length": 7, "hash_ids": [0]}\n'
BURST = b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def gz(content: bytes, cut: int = 0) -> bytes:
    packed = gzip.compress(content, mtime=0)
    return packed[: len(packed) - cut]


KINDS: dict[str, tuple[str, str, bytes, str]] = {
    "not a number": ("file", "x.csv", OWN + ROW + b"1,a,nan,5\n", "row 3: prompt_tokens is 'nan'; accepted: a whole"),
    "infinite": ("file", "x.csv", OWN + ROW + b"inf,a,1,5\n", "row 3: arrival_s is 'inf'; accepted: seconds"),
    "years away": ("file", "x.csv", OWN + ROW + b"1e308,a,1,5\n", "arrival_s is 1e.308; accepted: at most 1e.08 s after"),
    "more than 32 bits": ("file", "x.csv", OWN + b"0,a,3e9,5\n", "'3e9'; accepted: a whole number >= 1, below 2.31"),
    "too large a number": ("file", "x.csv", OWN + b"0,a,1e300,5\n", "row 2: prompt_tokens is '1e300'"),
    "negative": ("file", "x.csv", OWN + ROW + b"1,a,1,-5\n", "row 3: output_tokens is '-5'"),
    "fraction of a token": ("file", "x.csv", OWN + b"0,a,1.5,5\n", "row 2: prompt_tokens is '1.5'"),
    "text in a number": ("file", "x.csv", OWN + ROW + b"1,a,ten,5\n", "row 3: prompt_tokens is 'ten'"),
    "programmers' number": ("file", "x.csv", OWN + ROW + b"1,a,1_0,5\n", "row 3: prompt_tokens is '1_0'"),
    "empty cell": ("file", "x.csv", OWN + ROW + b"1,a,,5\n", "row 3: prompt_tokens is ''"),
    "missing column": ("file", "x.csv", b"arrival_s,model\n0,a\n", "row 1: no column prompt_tokens, output_tokens; found"),
    "wrong delimiter": ("file", "x.csv", (OWN + ROW).replace(b",", b";"), "separated by ';'; accepted: ','"),
    "tabs": ("file", "x.csv", (OWN + ROW).replace(b",", b"\t"), r"separated by '\\t'"),
    "column twice": ("file", "x.csv", b"model," + OWN + b"a,0,a,1,1\n", "row 1: column model twice"),
    "short row": ("file", "x.csv", OWN + ROW + b"1,a,9\n", "row 3: 3 cells; accepted: 4"),
    "blank row": ("file", "x.csv", OWN + ROW + b"\n" + ROW, "row 3: 0 cells; accepted: 4"),
    "UTF-16": ("file", "x.csv", (OWN + ROW).decode().encode("utf-16"), "not a CSV file in UTF-8 .after row 0"),
    "binary": ("file", "x.csv", bytes(range(256)) * 9, "not a CSV file in UTF-8"),
    "zeros": ("file", "x.csv", OWN + b"\0" * 5000, "row 2: 1 cells; accepted: 4"),
    "open quote": ("file", "x.csv", OWN + b'0,"a,1,1\n' + ROW * 20_000, "row 2: .*field larger than field limit"),
    "cell over two lines": ("file", "x.csv", OWN + b'0,"a\nb",1,1\n', "row 2: a cell runs over several lines"),
    "duplicate ids": ("file", "x.csv", b"request_id," + OWN + b"7,0,a,1,1\n8,0,a,1,1\n7,1,a,1,1\n",
                      "row 4: request_id is '7'; accepted: each id once"),
    "unsorted": ("file", "x.csv", OWN + b"5,a,1,1\n" + ROW, "row 3: arrival_s is '0.5'; accepted: times sorted"),
    "empty": ("file", "x.csv", b"", "empty; accepted: a header line"),
    "only blank lines": ("file", "x.csv", b"\n\n\n", "empty; accepted: a header line"),
    "only a header": ("file", "x.csv", OWN, "no requests after the header"),
    "gz cut short": ("file", "x.csv.gz", gz(OWN + ROW * 9, cut=12), "gz file is damaged or ends early .after row"),
    "gz that is none": ("file", "x.csv.gz", OWN + ROW, "gz file is damaged or ends early .after row 0: Not a gzip"),
    "one endless line": ("file", "x.csv", OWN + b"1" * 3_000_000, "row 2: over 1048576 characters"),
    "one endless line in a gz": ("file", "x.csv.gz", gz(OWN + b"1" * 300_000_000), "row 2: over 1048576 characters"),
    "unknown model": ("file", "x.csv", OWN + b"0,c,1,1\n", "row 2: model is 'c'; accepted: a or b"),
    "Parquet that is none": ("file", "x.parquet", OWN + ROW, "x.parquet: not a Parquet file, or damaged"),
    "JSON cut short": ("mooncake", "x.jsonl", MOONCAKE + MOONCAKE[:30], "row 2: not JSON"),
    "JSON without a key": ("mooncake", "x.jsonl", MOONCAKE + b'{"timestamp": 5}\n', "row 2: input_length is missing"),
    "JSON with text": ("mooncake", "x.jsonl", MOONCAKE.replace(b"5", b'"5"'), """row 1: input_length is "5"; accepted"""),
    "JSON with true": ("mooncake", "x.jsonl", MOONCAKE.replace(b"5", b"true"), "row 1: input_length is true"),
    "JSON with NaN": ("mooncake", "x.jsonl", MOONCAKE.replace(b"5", b"NaN"), "row 1: input_length is NaN"),
    "JSON with a huge number": ("mooncake", "x.jsonl", MOONCAKE.replace(b"5", b"9" * 400), "row 1: input_length is 999"),
    "JSON beyond Python's digits": ("mooncake", "x.jsonl", MOONCAKE.replace(b"5", b"9" * 9000), "row 1: not JSON"),
    "JSON list": ("mooncake", "x.jsonl", b"[1, 2]\n", "row 1: no JSON object"),
    "JSON nested deeply": ("mooncake", "x.jsonl", b"[" * 200_000 + b"\n", "row 1: not JSON"),
    "JSON unsorted": ("mooncake", "x.jsonl", MOONCAKE.replace(b"0,", b"9,", 1) + MOONCAKE, "row 2: timestamp is 0; acc"),
    "JSON blank line": ("mooncake", "x.jsonl", MOONCAKE + b"\n" + MOONCAKE, "row 2: blank"),
    "JSON empty": ("mooncake", "x.jsonl", b"", "empty; accepted: one JSON object a line"),
    "BurstGPT text": ("burstgpt", "x.csv", BURST + b"0,G,1,x,1,API log\n", "row 2: Response tokens is 'x'"),
    "BurstGPT all failed": ("burstgpt", "x.csv", BURST + b"0,G,1,0,1,API log\n", "every request has 0 tokens"),
    "BurstGPT nameless": ("burstgpt", "x.csv", BURST + b"0,,1,1,1,API log\n", "row 2: Model is ''; accepted: a name"),
    "arena ids twice": ("arena27", "x.csv", b"arrival_s,model_id,prompt_tokens,output_tokens,req_id\n0,1,1,1,4\n0,1,1,1,4\n",
                        "row 3: req_id is '4'; accepted: each id once"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_broken(kind: str, tmp_path: Path) -> None:
    reader, name, content, message = KINDS[kind]
    path = tmp_path / name
    path.write_bytes(content)
    begun = time.monotonic()
    tracemalloc.start()
    with pytest.raises(TraceError, match=message) as caught:
        source_from({"kind": reader, "path": str(path)}).sample(0, MODELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith(str(path)) and len(str(caught.value)) < 700 and "\n" not in str(caught.value)
    assert peak < 40e6 and time.monotonic() - begun < 10


ACCEPTED: dict[str, Callable[[bytes], bytes]] = {
    "byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "CRLF": lambda content: content.replace(b"\n", b"\r\n"),
    "CR": lambda content: content.replace(b"\n", b"\r"),
    "no newline at the end": lambda content: content[:-1],
    "blank lines at the end": lambda content: content + b"\n\n",
    "quoted cells": lambda content: content.replace(b"a", b'"a"').replace(b'"a"rriv"a"l', b"arrival"),
}


@pytest.mark.parametrize("change", ACCEPTED)
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_harmless(change: str, name: str, tmp_path: Path) -> None:
    content = ACCEPTED[change](OWN + ROW + b"1,b,20,6\n")
    (tmp_path / name).write_bytes(gz(content) if name.endswith("gz") else content)
    trace = source_from({"kind": "file", "path": str(tmp_path / name)}).sample(0, MODELS)
    assert trace.model.tolist() == [0, 1] and trace.prompt_tokens.tolist() == [10, 20]


def test_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_ROWS", 100)
    (tmp_path / "x.csv").write_bytes(OWN + ROW * 200)
    with pytest.raises(TraceError, match="row 101: too many; accepted: at most 100 rows"):
        source_from({"kind": "file", "path": str(tmp_path / "x.csv")}).sample(0, MODELS)


def test_parquet_that_announces_too_much(tmp_path: Path) -> None:
    """Twenty million equal rows are a file of 300 kB: refused by its header, before anything is unpacked."""
    path = tmp_path / "x.parquet"
    count = lines.MAX_ROWS + 1
    zeros = pa.array(np.zeros(count, np.int8))
    columns = {"arrival_s": 1.0, "model": "a", "prompt_tokens": 5, "output_tokens": 5}
    pq.write_table(
        pa.table({name: pa.DictionaryArray.from_arrays(zeros, [value]) for name, value in columns.items()}), path
    )
    assert path.stat().st_size < 400_000
    begun = time.monotonic()
    with pytest.raises(TraceError, match=r"its header announces 20000001 rows.*accepted: at most 20000000 rows"):
        source_from({"kind": "file", "path": str(path)}).sample(0, MODELS)
    assert time.monotonic() - begun < 5


def write_parquet(path: Path, **columns: object) -> None:
    default = {"arrival_s": [0.0, 1.0], "model": ["a", "b"], "prompt_tokens": [3, 4], "output_tokens": [5, 6]}
    pq.write_table(pa.table({k: v for k, v in {**default, **columns}.items() if v is not None}), path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"model": None}, "no column model; found: arrival_s"),
        ({"prompt_tokens": ["3", "4"]}, "prompt_tokens holds string; accepted: numbers"),
        ({"prompt_tokens": [3, None]}, "row 2: prompt_tokens is 'None'"),
        ({"arrival_s": [1.0, 0.5]}, "row 2: arrival_s is '0.5'; accepted: times sorted"),
        ({"model": ["a", "z"]}, "row 2: model is 'z'; accepted: a or b"),
        ({"output_tokens": [1.0, float("inf")]}, "row 2: output_tokens is 'inf'"),
    ],
)
def test_broken_parquet(columns: dict[str, object], message: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", **columns)
    with pytest.raises(TraceError, match=message):
        source_from({"kind": "file", "path": str(tmp_path / "x.parquet")}).sample(0, MODELS)


def test_parquet_damaged_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(path)
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(bytes(content))
    with pytest.raises(TraceError, match="not a Parquet file, or damaged"):
        source_from({"kind": "file", "path": str(path)}).sample(0, MODELS)


def servegen(folder: Path, trace: str, dataset: object) -> None:
    (folder / "chunk-0-trace.csv").write_text(trace)
    (folder / "chunk-0-dataset.json").write_text(dataset if isinstance(dataset, str) else json.dumps(dataset))


GOOD = {"0": {"input_tokens": "{5: 1.0}", "output_tokens": "{7: 0.5, 9: 0.5}"}}


@pytest.mark.parametrize(
    ("trace", "dataset", "message"),
    [
        ("0,-1,1,Gamma,1,1\n", GOOD, "trace.csv: row 1: rate_per_s is '-1'"),
        ("0,1,1,Pareto,1,1\n", GOOD, "row 1: pattern is 'Pareto'; accepted:  or Gamma or Weibull"),
        ("0,1,1,,0,0\n", GOOD, "row 1: pattern is missing"),
        ("0,1,1,Gamma,0,1\n", GOOD, "row 1: p1 is missing"),
        ("0,1,1,Gamma,1\n", GOOD, "row 1: 5 cells; accepted: 6|5 cells"),
        ("7,1,1,Gamma,1,1\n", GOOD, "no multiples of 600 s"),
        ("", GOOD, "empty"),
        ("0,1,1,Gamma,1,1\n", "{", "dataset.json: not a table of histograms"),
        ("0,1,1,Gamma,1,1\n", {"0": {"output_tokens": "{5: x}"}}, "dataset.json: not a table of histograms"),
        ("0,1,1,Gamma,1,1\n", {"0": {"output_tokens": "__import__('os')"}}, "dataset.json: not a table of histograms"),
        ("0,1,1,Gamma,1,1\n", {"0": [1]}, "dataset.json: not a table of histograms"),
        ("0,0,0,,0,0\n", GOOD, "no requests in the part asked for"),
    ],
)
def test_broken_servegen(trace: str, dataset: object, message: str, tmp_path: Path) -> None:
    servegen(tmp_path, trace, dataset)
    with pytest.raises(TraceError, match=message):
        source_from({"kind": "servegen", "path": str(tmp_path)}).sample(0, MODELS)


def test_no_servegen_folder(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"no chunk-<i>-trace\.csv there"):
        source_from({"kind": "servegen", "path": str(tmp_path)}).sample(0, MODELS)
    with pytest.raises(ConfigError, match=r"workload.path is ''"):
        source_from({"kind": "servegen"}).sample(0, MODELS)
