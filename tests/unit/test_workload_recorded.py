"""The real traces, where a user has them: MMSCHED_TEST_DATA names a folder with ``traces/`` in it.

Expected figures are those published with the files. Their Fano factors count the cut-off last window, their
peak-to-mean ratios do not; both are reproduced as printed. One figure differs: the merged rate is published as 8.023,
which is 28,185 requests over the rounded span of 3,513.2 s; over the span itself it is 8.022.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from mmsched_env.workload import Arena27Config, AzureTraceConfig, RequestTrace, summary
from mmsched_env.workload.stats import fano

DATA = os.environ.get("MMSCHED_TEST_DATA", "")
AZURE = Path(DATA, "traces", "azure_llm_2023")
ARENA = Path(DATA, "traces", "arena27_slora_vtc_prism", "arena27_requests.csv")
IDS = tuple(f"id-{i}" for i in range(27))


def needs(path: Path) -> pytest.MarkDecorator:
    found = bool(DATA) and path.exists()
    return pytest.mark.skipif(not found, reason=f"MMSCHED_TEST_DATA={DATA!r}: no {path} there")


def printed(value: float, text: str) -> bool:
    """Whether `value` rounds to the digits of `text`."""
    decimals = len(text.partition(".")[2])
    return abs(value - float(text)) <= 0.5000001 * 10**-decimals


def check(trace: RequestTrace, expected: dict[str, str]) -> None:
    figures: dict[str, Any] = summary(trace)
    figures |= {f"fano_{w}s": fano(trace, w, partial=True) for w in (1, 60)}
    for name, text in expected.items():
        column, _, figure = name.partition(".")
        value = figures[column][figure] if figure else figures[column]
        assert printed(value, text), f"{name} is {value}, published: {text}"


AZURE_PUBLISHED = {
    "conv": ("19366 3501.7 5.530 1.09 1.39 20.6 1.52", "1154.7 1020 2734.5 4083 4142", "211.1 129 424 451 601"),
    "code": ("8819 3435.9 2.567 13.15 13.2 160.5 4.18", "2047.8 1469 5187.6 7303 7436", "27.9 13 55 90 251.5"),
    "both": ("28185 3513.2 8.022 1.33 5.1 64.1 1.78", "", ""),
}
LOAD = ("num_requests", "span_s", "rate_per_s", "cv", "fano_1s", "fano_60s", "peak_60s")
LENGTHS = ("mean", "p50", "p90", "p95", "p99")


@needs(AZURE)
@pytest.mark.parametrize("service", AZURE_PUBLISHED)
def test_azure_figures(service: str) -> None:
    left_out = {"conv": {"code_file": ""}, "code": {"conv_file": ""}, "both": {}}[service]
    trace = AzureTraceConfig(path=str(AZURE), **left_out).sample(0, ("a", "b"))
    load, prompt, output = (text.split() for text in AZURE_PUBLISHED[service])
    expected = dict(zip(LOAD, load, strict=True))
    for column, texts in (("prompt_tokens", prompt), ("output_tokens", output)):
        expected |= {f"{column}.{name}": text for name, text in zip(LENGTHS, texts, strict=False)}
    check(trace, expected)
    if service == "both":
        assert printed(100 * (trace.tenant == 0).mean(), "68.7")
        assert (trace.max_tokens[trace.tenant == 0] == 1000).all()
        assert (trace.max_tokens[trace.tenant == 1] == 1899).all()


@needs(ARENA)
def test_arena_figures() -> None:
    trace = Arena27Config(path=str(ARENA), models_of_ids=IDS).sample(0, IDS)
    load = dict(zip(LOAD[:-1], ["1500", "600", "2.5", "1.10", "1.39", "16.0"], strict=True))
    prompt = dict(zip(LENGTHS, ["136.3", "40", "432", "653", "902"], strict=True))
    output = dict(zip(LENGTHS, ["256.2", "211", "513", "513", "785"], strict=True))
    lengths = {f"prompt_tokens.{k}": v for k, v in prompt.items()} | {
        f"output_tokens.{k}": v for k, v in output.items()
    }
    check(trace, load | lengths)
    figures = summary(trace)
    shares = {2: "19.7", 10: "17.5", 0: "13.3", 5: "8.0", 6: "4.5", 4: "4.4", 7: "3.7", 15: "3.1", 20: "2.1"}
    assert all(printed(100 * figures["model_shares"][f"id-{i}"], text) for i, text in shares.items())
    assert printed(sum(sorted(figures["model_shares"].values())[-5:]) * 100, "62.9")
    assert printed(figures["switch_share"], "0.83")


@needs(ARENA)
def test_arena_by_rank() -> None:
    by_rank = Arena27Config(path=str(ARENA)).sample(0, IDS)
    shares = list(summary(by_rank)["model_shares"].values())
    assert shares == sorted(shares, reverse=True)
    onto_seven = Arena27Config(path=str(ARENA), rate_per_s=0.5, num_requests=300).sample(0, IDS[:7])
    assert (onto_seven.model == by_rank.model[:300] % 7).all()
    assert summary(onto_seven)["rate_per_s"] == pytest.approx(0.5)
