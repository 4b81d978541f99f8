"""The real traces, where a user has them: MMSCHED_TEST_DATA names a folder with ``traces/`` in it.

Expected figures are those given with the files. Their Fano factors count the cut-off last window, their
peak-to-mean ratios do not; both are reproduced as printed. Three figures differ: Azure's merged rate is published as
8.023, which is 28,185 requests over the rounded span of 3,513.2 s, and over the span itself (3,513.247 s) is 8.0225;
Mooncake's is given as 3.402 and is 12,031 over 3,536.999 s, 3.4015; the largest client of mm-image as 13 % and is 13.5 %.
"""

import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsched_env.workload import Arena27Config, AzureTraceConfig, MooncakeConfig, RequestTrace, ServeGenConfig, summary
from mmsched_env.workload.mooncake import repeated_block_share
from mmsched_env.workload.servegen import Client, read_clients
from mmsched_env.workload.stats import fano

DATA = os.environ.get("MMSCHED_TEST_DATA", "")
AZURE = Path(DATA, "traces", "azure_llm_2023")
ARENA = Path(DATA, "traces", "arena27_slora_vtc_prism", "arena27_requests.csv")
MOONCAKE = Path(DATA, "traces", "mooncake_fast25", "conversation_trace.jsonl")
SERVEGEN = Path(DATA, "traces", "servegen", "raw_windows")
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


@needs(MOONCAKE)
def test_mooncake_figures() -> None:
    as_published = MooncakeConfig(path=str(MOONCAKE), tick_s=None).sample(0, ("a",))
    load = dict(zip((*LOAD[:4], "fano_1s"), ["12031", "3537", "3.4015", "3.03", "7.9"], strict=True))
    prompt = dict(zip(LENGTHS, ["12035", "6909", "27367", "39550", "85400"], strict=True))
    output = dict(zip(LENGTHS, ["342.6", "350", "597", "698", "1118.5"], strict=True))
    lengths = {f"prompt_tokens.{k}": v for k, v in prompt.items()} | {
        f"output_tokens.{k}": v for k, v in output.items()
    }
    check(as_published, load | lengths)
    assert printed(fano(as_published, 60), "2.9")  # 2.85 with the last window, which holds 57 s: 2.8
    assert len(np.unique(as_published.arrival_s)) == 1180
    assert printed(100 * repeated_block_share(MOONCAKE), "36.6")
    spread = MooncakeConfig(path=str(MOONCAKE)).sample(0, ("a",))
    figures = summary(spread)
    assert figures["cv"] == pytest.approx(1, abs=0.03) and figures["fano_1s"] == pytest.approx(1, abs=0.05)
    assert figures["fano_60s"] == pytest.approx(2.9, abs=0.3)  # spreading within 3 s leaves minutes alone


SERVEGEN_PUBLISHED = {
    "deepseek-r1": ("73 16.0 42.5 2.28 1.03 29 68", "1268 208 2092 6714 23423", "1527 792 3432 5701 12607"),
    "mm-image": ("35 9.5 13.3 2.21 1.37 13.5 83", "572 106 1914 2346 3064", "130 100 264 336 587"),
}


@needs(SERVEGEN)
@pytest.mark.parametrize("model", SERVEGEN_PUBLISHED)
def test_servegen_figures(model: str, tmp_path: Path) -> None:
    with tarfile.open(SERVEGEN / f"{model}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = next(tmp_path.rglob("chunk-0-trace.csv")).parent
    clients = read_clients(folder)
    rate, cv = (np.array([client.lines[name] for client in clients]) for name in ("rate_per_s", "cv"))
    by_client = np.sort(rate.sum(axis=1))[::-1] / rate.sum()
    total, bursty = rate.sum(axis=0), float((rate * cv).sum() / rate.sum())
    active = float(np.median(cv[rate > 0]))
    found = [len(clients), total.mean(), total.max(), bursty, active, 100 * by_client[0], 100 * by_client[:10].sum()]
    texts, prompt, output = SERVEGEN_PUBLISHED[model]
    for value, text in zip(found, texts.split(), strict=True):
        assert printed(float(value), text), f"{value}, published: {text}"
    for kinds, published in ((("input_tokens", "text_tokens"), prompt), (("output_tokens",), output)):
        tokens, weights = pooled(clients, kinds)
        reached = np.cumsum(weights) / weights.sum()
        figures = [float(tokens @ weights / weights.sum())]
        figures += [float(tokens[np.searchsorted(reached, q / 100)]) for q in (50, 90, 95, 99)]
        for value, text in zip(figures, published.split(), strict=True):
            assert value == pytest.approx(float(text), rel=0.006, abs=1.01), f"{value}, published: {text}"
    config = ServeGenConfig(path=str(folder), duration_s=None)
    drawn = config.sample(0, ("a",))
    assert len(drawn) / 86_400 == pytest.approx(total.mean(), rel=0.005)
    assert np.median(drawn.output_tokens) == pytest.approx(float(output.split()[1]), rel=0.02)


def pooled(clients: tuple[Client, ...], kinds: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, rising, and the requests that have them, over all clients and windows."""
    parts = []
    for client in clients:
        for t_s, rate in zip(client.lines["t_s"], client.lines["rate_per_s"], strict=True):
            for kind in kinds:
                tokens, weights = client.histogram(float(t_s), kind)
                if rate > 0 and len(tokens):
                    parts.append(np.column_stack([tokens, rate * weights / weights.sum()]))
    both = np.concatenate(parts)
    both = both[np.argsort(both[:, 0], kind="stable")]
    return both[:, 0], both[:, 1]
