"""llama-batched-bench ``--output-format jsonl``: prompts and generation of several sequences at once (`pl`)."""

from __future__ import annotations

from ..schema import ALL_LAYERS
from .base import Fields, Importer, Reading, has_keys, json_objects, noted

REASONS = {
    **dict.fromkeys(("t_pp", "t_tg"), "the same figure as speed_pp and speed_tg, as a time"),
    **dict.fromkeys(("t", "speed", "n_kv"), "prompt and generation together: the sum of what is read"),
}


def recognises(text: str) -> bool:
    """By its own words for parallel sequences and speeds."""
    return has_keys(text, "pl", "speed_pp")


def read(text: str) -> Reading:
    """A prefill and a decode row for each line. Raises ConfigError."""
    reading = Reading()
    for fields in json_objects(text, "test"):
        _test(fields, reading)
    return reading


def _test(fields: Fields, reading: Reading) -> None:
    prompt, generated, sequences = (fields.whole(key, low=low) for key, low in (("pp", 0), ("tg", 0), ("pl", 1)))
    columns = {
        "engine": "llama.cpp",
        "n_gpu_layers": max(fields.whole("n_gpu_layers", ALL_LAYERS, low=-2), ALL_LAYERS),
        "ubatch": fields.whole("n_ubatch", None, low=1),
        "unit": "tokens/s",
        "note": noted(
            (key, fields.get(key, None)) for key in ("n_threads", "n_batch", "flash_attn", "n_kv_max", "is_pp_shared")
        ),
    }
    if prompt:
        # A shared prompt is computed, and counted, once.
        at_once = 1 if fields.flag("is_pp_shared", False) else sequences
        value = fields.positive("speed_pp")
        reading.row(fields.where, operation="prefill", tokens=prompt, depth=0, value=value, **columns, batch=at_once)
    if generated:
        reading.row(
            fields.where,
            operation="decode",
            tokens=generated,
            depth=prompt,
            batch=sequences,
            value=fields.positive("speed_tg"),
            **columns,
        )
    fields.get("n_threads_batch", None)
    reading.ignore_rest(fields, REASONS)


IMPORTER = Importer("llama-batched-bench", recognises, read)
