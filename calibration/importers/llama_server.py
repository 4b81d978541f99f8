"""llama-server: the `timings` of its replies (one, several, or a saved stream), and of saving and restoring a slot.

The first token comes out of the last step of the prompt, so that n tokens take n - 1 steps in `predicted_ms`. Older
servers divide n by it, newer ones n - 1: the rate is taken from count and time, not from `predicted_per_second`.
"""

from __future__ import annotations

import json

from mmsched_env.errors import ConfigError

from .base import NO_FIGURE, Fields, Importer, Reading, bad_json, has_keys, json_objects
from .names import model_of_file

REPLY = [
    "index",
    "content",
    "tokens",
    "id_slot",
    "stop",
    "generation_settings",
    "prompt",
    "has_new_line",
    "truncated",
    "stop_type",
    "stopping_word",
    "id",
    "choices",
    "object",
    "created",
    "usage",
    "system_fingerprint",
    "tokens_predicted",
    "tokens_evaluated",
    "tokens_cached",
    "slot_id",
    "stopped_eos",
    "stopped_limit",
    "stopped_word",
    "multimodal",
    "oaicompat_token_ctr",
    "filename",
    "service_tier",
    "__verbose",
]
RATES = ["prompt_per_token_ms", "prompt_per_second", "predicted_per_token_ms", "predicted_per_second"]
REASONS = {
    **dict.fromkeys(REPLY, NO_FIGURE),
    **dict.fromkeys(RATES, "follows from counts and times (older servers count the first token as a step)"),
    **dict.fromkeys(("draft_n", "draft_n_accepted"), "speculative decoding"),
}


def recognises(text: str) -> bool:
    """By the names of its timings."""
    return has_keys(text, "timings") and (
        has_keys(text, "predicted_n") or has_keys(text, "save_ms") or has_keys(text, "restore_ms")
    )


def read(text: str) -> Reading:
    """Prefill and decode of each reply, save and restore of a slot. Raises ConfigError."""
    reading = Reading()
    for reply in _stream(text) if "data:" in text[:200] else json_objects(text, "reply"):
        timings = reply.inner("timings")
        if "save_ms" in timings or "restore_ms" in timings:
            _slot(reply, timings, reading)
        else:
            _reply(reply, timings, reading)
    return reading


def _stream(text: str) -> list[Fields]:
    """The last event with timings before each end of stream: earlier ones hold what was done until then."""
    found: list[Fields] = []
    last = None
    for number, line in enumerate([*text.splitlines(), "data: [DONE]"], start=1):
        payload = line.removeprefix("data:").strip()
        if not line.startswith("data:"):
            continue
        if payload == "[DONE]":
            found += [last] if last else []
            last = None
            continue
        try:
            event = json.loads(payload)
        except json.JSONDecodeError as error:
            raise bad_json(error, number) from None
        if isinstance(event, dict) and "timings" in event:
            last = Fields(event, f"line {number}")
    if not found:
        raise ConfigError("no event has timings; accepted: a stream to its end")
    return found


def _reply(reply: Fields, timings: Fields, reading: Reading) -> None:
    cached = timings.whole("cache_n", None)
    prompt = timings.whole("prompt_n")
    generated = timings.whole("predicted_n", 0)
    whole_prompt = _prompt_tokens(reply, prompt, cached)
    columns = {**_model(reply), "unit": "tokens/s", "engine": "llama.cpp"}
    columns["engine_version"] = reply.text("system_fingerprint", "")
    if prompt:
        seconds = timings.positive("prompt_ms") / 1e3
        depth = whole_prompt - prompt
        reading.row(reply.where, operation="prefill", tokens=prompt, depth=depth, value=prompt / seconds, **columns)
    if "draft_n" in timings:
        timings.get("predicted_ms")
        reading.ignore("decode with draft tokens", "speculative decoding: its steps are not known")
    elif generated < 2:
        timings.get("predicted_ms", None)
        reading.ignore("decode of one token", "the first token is the prompt's")
    else:
        seconds = timings.positive("predicted_ms") / 1e3
        steps = generated - 1
        value = steps / seconds
        reading.row(reply.where, operation="decode", tokens=steps, depth=whole_prompt, value=value, **columns)
    reading.ignore_rest(timings, REASONS)
    reading.ignore_rest(reply, REASONS)


def _prompt_tokens(reply: Fields, processed: int, cached: int | None) -> int:
    """Length of the whole prompt: servers before 2025-09 do not say how much of it was cached."""
    if cached is not None:
        return processed + cached
    usage = reply.inner("usage") if "usage" in reply else Fields({}, reply.where)
    told = reply.whole("tokens_evaluated", None) or usage.whole("prompt_tokens", None)
    return max(processed, told or 0)


def _slot(reply: Fields, timings: Fields, reading: Reading) -> None:
    save = "save_ms" in timings
    tokens, size = ("n_saved", "n_written") if save else ("n_restored", "n_read")
    reading.row(
        reply.where,
        operation="save" if save else "restore",
        tier="disk",
        tokens=reply.whole(tokens, low=1),
        size_bytes=reply.whole(size, low=1),
        value=timings.positive("save_ms" if save else "restore_ms") / 1e3,
        unit="s",
        engine="llama.cpp",
        note="a file, as like as not in the page cache",
        **_model(reply),
    )
    reading.ignore_rest(reply, REASONS)


def _model(reply: Fields) -> dict[str, str]:
    name = reply.text("model", "")
    model, quant = model_of_file(name)
    return {"model": model or name, "quant": quant}


IMPORTER = Importer("llama-server replies", recognises, read)
