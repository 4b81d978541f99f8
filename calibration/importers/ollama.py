"""Ollama ``/api/generate`` and ``/api/chat``: the final object of a reply, saved whole or as a stream of lines.

All durations are nanoseconds; a field that is absent is zero. Generation is timed from the first token on, which is
counted: n tokens take n - 1 steps.
"""

from __future__ import annotations

from .base import NO_FIGURE, Fields, Importer, Reading, has_keys, json_objects
from .names import model_of_tag

NS = 1e-9
RESIDENT_S = 0.5
"""a `load_duration` below this is a model that was loaded already: such replies show some 10-200 ms"""

REASONS = {
    **dict.fromkeys(
        [
            "response",
            "message",
            "done",
            "done_reason",
            "context",
            "thinking",
            "logprobs",
            "remote_model",
            "remote_host",
            "tool_calls",
        ],
        NO_FIGURE,
    ),
    "total_duration": "the sum of load, prompt and generation, and of waiting",
}


def recognises(text: str) -> bool:
    """By the names of its durations."""
    return has_keys(text, "done", "total_duration") or has_keys(text, "eval_duration", "prompt_eval_duration")


def read(text: str) -> Reading:
    """Load, prefill and decode of each reply. Raises ConfigError."""
    reading = Reading()
    final = 0
    for fields in json_objects(text, "reply"):
        if fields.flag("done", True):
            final += 1
            _reply(fields, reading)
    if final == 0:
        raise fields.error("done", "true in the last object: the stream was cut short")
    return reading


def _reply(fields: Fields, reading: Reading) -> None:
    name, quant = model_of_tag(fields.text("model", ""))
    columns = {"model": name, "quant": quant, "engine": "Ollama", "date": fields.text("created_at", "")[:10]}
    _load(fields, reading, columns)
    cached = fields.whole("prompt_eval_cached_count", None)
    prompt = fields.whole("prompt_eval_count", 0)
    prompt_ns = fields.number("prompt_eval_duration", 0.0, low=0)
    processed = prompt - (cached or 0)
    if processed < 0:
        raise fields.error("prompt_eval_cached_count", f"at most prompt_eval_count, {prompt}")
    note = "" if cached is not None else "any cached tokens are counted: this version does not say"
    if processed and prompt_ns:
        rate = processed / (prompt_ns * NS)
        more = {"depth": cached or 0, "note": note, **columns}
        reading.row(fields.where, operation="prefill", tokens=processed, value=rate, unit="tokens/s", **more)
    else:
        reading.ignore("prompt_eval_duration", "no prompt token was computed, or no time given")
    generated = fields.whole("eval_count", 0)
    generated_ns = fields.number("eval_duration", 0.0, low=0)
    if generated < 2:
        reading.ignore("eval_duration", "fewer than two tokens: the first is the prompt's")
    elif generated_ns == 0:
        raise fields.error("eval_duration", f"nanoseconds > 0, with eval_count {generated}")
    else:
        steps = generated - 1
        rate = steps / (generated_ns * NS)
        reading.row(
            fields.where, operation="decode", tokens=steps, depth=prompt, value=rate, unit="tokens/s", **columns
        )
    reading.ignore_rest(fields, REASONS)


def _load(fields: Fields, reading: Reading, columns: dict[str, str]) -> None:
    seconds = fields.number("load_duration", 0.0, low=0) * NS
    if seconds >= RESIDENT_S:
        reading.row(fields.where, operation="load", value=seconds, unit="s", **columns)
    else:
        reading.ignore("load_duration", f"below {RESIDENT_S:g} s: the model was loaded already")


IMPORTER = Importer("Ollama replies", recognises, read)
