"""`RequestTrace` -> the kernel's REQUEST records."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..costmodel.latency import unloaded_latency
from ..costmodel.tables import CostTables
from ..errors import TraceError
from ..workload.trace import RequestTrace
from .state import REQUEST, Dims, zeros

COPIED = (
    "arrival_s",
    "weight",
    "model",
    "slo_class",
    "tenant",
    "prompt_tokens",
    "image_tokens",
    "max_tokens",
    "output_tokens",
    "predicted_tokens",
)


MOST_CLASSES = np.iinfo(np.int8).max + 1


def make_requests(trace: RequestTrace, tables: CostTables, dims: Dims, ubatch_tokens: int) -> Any:
    """REQUEST records of shape (len(trace),), in their state before arrival.

    Raises
    ------
    TraceError
        More classes than the records can tell apart.
    """
    if len(trace.class_names) > MOST_CLASSES:
        raise TraceError(f"the trace has {len(trace.class_names)} classes; accepted: at most {MOST_CLASSES}")
    records = zeros(REQUEST, dims, len(trace))
    for name in COPIED:
        records[name] = getattr(trace, name)
    for name in ("dispatch_s", "first_token_s", "finish_s", "charged_until_s"):
        records[name] = -1.0
    for name in ("instance", "level", "saved_host", "previous", "next"):
        records[name] = -1

    # true and predicted lengths in one go: of so short arrays, calls cost more than values
    columns = (trace.model, trace.prompt_tokens, trace.image_tokens)
    model, prompt, image = (np.tile(column, 2).astype(np.int64) for column in columns)
    outputs = np.concatenate([trace.output_tokens, np.maximum(1, np.round(trace.predicted_tokens))]).astype(np.int64)
    alone = unloaded_latency(tables, model, prompt, image, outputs, ubatch_tokens)
    both_ttft_s, both_s = (seconds.reshape(2, -1) for seconds in alone)
    ttft_s, predicted_ttft_s = both_ttft_s
    records["unloaded_s"], records["predicted_unloaded_s"] = both_s
    for target, given, seconds in (
        ("slo_ttft_s", trace.slo_ttft_s, ttft_s),
        ("slo_e2e_s", trace.slo_e2e_s, records["unloaded_s"]),
        ("predicted_slo_ttft_s", trace.slo_ttft_s, predicted_ttft_s),
        ("predicted_slo_e2e_s", trace.slo_e2e_s, records["predicted_unloaded_s"]),
    ):
        records[target] = np.where(np.isnan(given), trace.slo_scale * seconds, given)
    return records


def check_servable(trace: RequestTrace, tables: CostTables, kv_swap_fraction: float) -> None:
    """Every request must fit somewhere with nothing else there, or the episode could never end.

    Raises
    ------
    TraceError
        The first request that fits nowhere.
    """
    columns = (trace.prompt_tokens, trace.image_tokens, trace.max_tokens)
    reserved = np.sum([np.asarray(column, np.int64) for column in columns], axis=0)
    too_long = reserved > tables.most_tokens(kv_swap_fraction).max(axis=(1, 2))[trace.model]
    if too_long.any():
        row = int(np.argmax(too_long))
        raise TraceError(
            f"request {row} of model '{trace.model_names[trace.model[row]]}' reserves KV cache for {reserved[row]} tokens "
            "and fits on no GPU of the cluster at any offload level; accepted: shorter prompts or max_tokens, "
            "or more memory"
        )
