"""vLLM: ``vllm bench serve --save-result``, ``vllm bench latency`` and ``vllm bench throughput`` with ``--output-json``.

Serving latencies are milliseconds, all else is seconds. The files name no GPU; those of latency and throughput no model.
"""

from __future__ import annotations

import re
import statistics
from typing import Any

from .base import NO_FIGURE, Fields, Importer, Reading, has_keys, json_objects, noted

LATENCIES = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2el": "e2e"}
"""name in the file -> operation"""

OTHER_STATISTIC = re.compile(r"(?:median|p\d+(?:\.\d+)?)_(?:ttft|tpot|itl|e2el)_ms")
DETAIL = ["input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times"]
SERVE_REASONS = {
    **dict.fromkeys(DETAIL, "each request alone: its mean and standard deviation are read"),
    **dict.fromkeys(["tokenizer_id", "label", "generated_texts", "errors", "endpoint_type"], NO_FIGURE),
    **dict.fromkeys(("duration", "request_throughput"), "follows from the tokens and their rates"),
    **dict.fromkeys(("request_goodput", "request_goodput:"), "depends on the targets it was run with"),
    **dict.fromkeys(("max_output_tokens_per_s", "rtfx"), "a peak, or of audio"),
}


def recognises_serve(text: str) -> bool:
    """By its rates and a latency."""
    return has_keys(text, "output_throughput", "total_output_tokens") and "_ttft_ms" in text


def recognises_latency(text: str) -> bool:
    """By its mean and samples."""
    return has_keys(text, "avg_latency") and has_keys(text, "latencies")


def recognises_throughput(text: str) -> bool:
    """By its rates."""
    return has_keys(text, "tokens_per_second", "requests_per_second")


def read_serve(text: str) -> Reading:
    """Output and total rate, TTFT, TPOT, ITL and E2E of each run. Raises ConfigError."""
    reading = Reading()
    for fields in json_objects(text, "run"):
        _serve(fields, reading)
    return reading


def _serve(fields: Fields, reading: Reading) -> None:
    completed = fields.whole("completed", low=1)
    prompt, output = fields.whole("total_input_tokens", low=1), fields.whole("total_output_tokens", low=1)
    columns = {
        "engine": "vLLM",
        "model": fields.text("model_id", ""),
        "tokens": max(1, round(output / completed)),
        "depth": round(prompt / completed),
        "batch": fields.whole("max_concurrency", None, low=1) or fields.whole("max_concurrent_requests", None, low=1),
        "date": _date(fields),
        "note": noted(
            (key, fields.get(key, None)) for key in ("request_rate", "burstiness", "num_prompts", "failed", "backend")
        ),
    }
    fields.get("max_concurrent_requests", None)
    rates = {"serve": "output_throughput", "throughput": "total_token_throughput"}
    for operation, key in rates.items():
        if key in fields or operation == "serve":
            reading.row(
                fields.where, operation=operation, value=fields.positive(key), unit="tokens/s", repeats=1, **columns
            )
    for name, operation in LATENCIES.items():
        mean = fields.number(f"mean_{name}_ms", None, low=0)
        spread = fields.number(f"std_{name}_ms", None, low=0)
        if mean == 0:
            reading.ignore(f"mean_{name}_ms", "zero: nothing was timed, as without streaming or with one token each")
        elif mean is not None:
            reading.row(
                fields.where,
                operation=operation,
                value=mean / 1e3,
                spread=None if spread is None else spread / 1e3,
                unit="s",
                repeats=None if operation == "itl" else completed,
                **columns,
            )
    statistic = {key: "the mean and standard deviation are read" for key in fields.data if OTHER_STATISTIC.match(key)}
    reading.ignore_rest(fields, {**SERVE_REASONS, **statistic})


def _date(fields: Fields) -> str:
    """``20250530-203806`` -> ``2025-05-30``."""
    text = fields.text("date", "")
    match = re.match(r"(\d{4})(\d\d)(\d\d)-\d{6}$", text)
    if text and match is None:
        raise fields.error("date", "YYYYMMDD-HHMMSS")
    return "-".join(match.groups()) if match else ""


def read_latency(text: str) -> Reading:
    """One row: the time of a whole batch. Raises ConfigError."""
    reading = Reading()
    for fields in json_objects(text, "run"):
        mean, samples = fields.positive("avg_latency"), fields.numbers("latencies")
        if abs(statistics.fmean(samples) / mean - 1) > 1e-3:
            raise fields.error("avg_latency", f"the mean of latencies, {statistics.fmean(samples):g}")
        spread = statistics.stdev(samples) if len(samples) > 1 else None
        reading.row(
            fields.where,
            operation="e2e",
            engine="vLLM",
            value=mean,
            unit="s",
            spread=spread,
            repeats=len(samples),
            note="a whole batch; the file has neither batch size nor lengths",
        )
        # the file's own standard deviation divides by n
        other = dict.fromkeys(("percentiles", "std_latency"), "mean and standard deviation are taken from latencies")
        reading.ignore_rest(fields, other)
    return reading


def read_throughput(text: str) -> Reading:
    """One row: prompt and output tokens of a run over its time. Raises ConfigError."""
    reading = Reading()
    for fields in json_objects(text, "run"):
        seconds, tokens, value = (
            fields.positive(key) for key in ("elapsed_time", "total_num_tokens", "tokens_per_second")
        )
        if abs(tokens / seconds / value - 1) > 1e-3:
            raise fields.error("tokens_per_second", f"total_num_tokens / elapsed_time, {tokens / seconds:g}")
        columns: dict[str, Any] = {
            "engine": "vLLM",
            "note": noted([("num_requests", fields.get("num_requests", None))]),
        }
        reading.row(fields.where, operation="throughput", value=value, unit="tokens/s", repeats=1, **columns)
        reading.ignore_rest(fields, {"requests_per_second": "follows from num_requests and elapsed_time"})
    return reading


SERVE = Importer("vllm bench serve", recognises_serve, read_serve)
LATENCY = Importer("vllm bench latency", recognises_latency, read_latency)
THROUGHPUT = Importer("vllm bench throughput", recognises_throughput, read_throughput)
