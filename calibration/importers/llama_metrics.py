"""llama-server ``/metrics``: means since its start, from the counters of tokens and seconds.

The counters name neither model nor hardware. Generated tokens include the first of each request, whose time is the
prompt's: a decode rate from here is high by one token in a request's length.
"""

from __future__ import annotations

import re

from mmsched_env.errors import ConfigError

from .base import NO_FIGURE, Fields, Importer, Reading

PREFIX = "llamacpp:"
SAMPLE = re.compile(r"llamacpp:(\w+)(\{[^}]*\})?\s+(\S+)\s*(\d+)?$")
BUSY_SLOTS = 1.02
"""more slots than this at once, on average, and the seconds of several requests overlap"""

REASONS = {
    **dict.fromkeys(("prompt_tokens_seconds", "predicted_tokens_seconds"), "mean since the last query only"),
    **dict.fromkeys(("requests_processing", "requests_deferred", "n_tokens_max", "n_decode_total"), NO_FIGURE),
    **dict.fromkeys(("kv_cache_usage_ratio", "kv_cache_tokens", "prompt_tokens_cached_total"), NO_FIGURE),
}


def recognises(text: str) -> bool:
    """By the prefix of its metrics."""
    return re.search(r"^llamacpp:\w+", text, re.MULTILINE) is not None


def read(text: str) -> Reading:
    """A prefill and a decode row. Raises ConfigError."""
    reading = Reading()
    fields = Fields(_samples(text, reading), "")
    busy = fields.number("n_busy_slots_per_decode", 1.0, low=0)
    overlap = f"{busy:g} slots were busy at once on average: their seconds overlap" if busy > BUSY_SLOTS else ""
    drafts = fields.number("spec_decode_num_draft_tokens_total", 0.0, low=0)
    guessed = "speculative decoding: its steps are not known" if drafts else ""
    _rate(fields, reading, "prefill", "prompt_tokens_total", "prompt_seconds_total", overlap)
    _rate(fields, reading, "decode", "tokens_predicted_total", "tokens_predicted_seconds_total", overlap or guessed)
    reading.ignore_rest(fields, {**REASONS, **{k: "speculative decoding" for k in fields.data if "spec_" in k}})
    return reading


def _rate(fields: Fields, reading: Reading, operation: str, tokens: str, seconds: str, unusable: str) -> None:
    count, time = fields.whole(tokens), fields.number(seconds, low=0)
    if unusable or count == 0:
        reading.ignore(tokens, unusable or "nothing counted yet")
        return
    if time == 0:
        raise fields.error(seconds, f"a number > 0, with {count} in {tokens}")
    note = f"mean over {count} tokens since the server's start"
    if operation == "decode":
        note += ", the first of each request counted without its time"
    reading.row("", operation=operation, batch=1, value=count / time, unit="tokens/s", engine="llama.cpp", note=note)


def _samples(text: str, reading: Reading) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith(PREFIX):
            continue
        match = SAMPLE.match(line.rstrip())
        if match is None:
            raise ConfigError(f"line {number} is {line[:60]!r}; accepted: NAME VALUE")
        if match[2] and match[1].startswith("spec_decode"):
            reading.ignore(match[1], "speculative decoding")
        elif match[1] in found:
            raise ConfigError(f"line {number}: {match[1]} a second time; accepted: the metrics of one server, once")
        else:
            found[match[1]] = match[3]
    return found


IMPORTER = Importer("llama-server /metrics", recognises, read)
