"""What an episode amounted to: per-request latencies and their summary, in vLLM's words (pure NumPy).

Definitions (docs/architecture.md, Units): TTFT = first output token - arrival, queueing and loading included; E2E =
last token - arrival; TPOT = (E2E - TTFT) / (output tokens - 1), undefined for one token; SLO attainment = share of all
arrived requests that finished and met every target; goodput = such requests per second; slowdown = E2E over E2E alone
on the best GPU with the model loaded. A time is NaN where it never came.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sim.state import DONE, DROPPED, FUTURE

FloatArray = NDArray[np.float64]


def per_request(records: NDArray[np.void]) -> dict[str, NDArray[Any]]:
    """Columns of one row per request (N,), from the kernel's REQUEST records. Times in seconds."""
    arrival = records["arrival_s"]
    ttft = _since(records["first_token_s"], arrival)
    e2e = _since(records["finish_s"], arrival)
    output = records["output_tokens"]
    gaps = np.where(output > 1, output - 1, np.nan)
    queue = _since(records["dispatch_s"], arrival)
    met = (e2e <= records["slo_e2e_s"]) & (ttft <= records["slo_ttft_s"])
    return {
        "request": np.arange(len(records)),
        "model": records["model"].copy(),
        "slo_class": records["slo_class"].copy(),
        "tenant": records["tenant"].copy(),
        "weight": records["weight"].copy(),
        "arrival_s": arrival.copy(),
        "prompt_tokens": records["prompt_tokens"].copy(),
        "image_tokens": records["image_tokens"].copy(),
        "output_tokens": output.copy(),
        "generated_tokens": records["generated"].copy(),
        "arrived": records["phase"] != FUTURE,
        "finished": records["phase"] == DONE,
        "dropped": records["phase"] == DROPPED,
        "queue_s": queue,
        "load_s": records["load_s"].copy(),
        "ttft_s": ttft,
        "tpot_s": (e2e - ttft) / gaps,
        "e2e_s": e2e,
        "slowdown": e2e / records["unloaded_s"],
        "slo_ttft_s": records["slo_ttft_s"].copy(),
        "slo_e2e_s": records["slo_e2e_s"].copy(),
        "slo_met": met,
        "num_preemptions": records["num_preemptions"].copy(),
        "instance": records["instance"].copy(),
        "level": records["level"].copy(),
    }


def weighted_flow_time(records: NDArray[np.void], until_s: float) -> float:
    """Integral of the weighted number of requests in the system from 0 to `until_s`: minus the flow-time return."""
    arrived = records["phase"] != FUTURE
    end = np.where(records["phase"] == DONE, records["finish_s"], until_s)
    end = np.where(records["phase"] == DROPPED, records["charged_until_s"], end)
    return float(np.sum((records["weight"] * (end - records["arrival_s"]))[arrived]))


def charged_mean_e2e_ms(records: NDArray[np.void]) -> float:
    """Weighted mean E2E in ms of all that ended, a dropped request charged as the reward charges it.

    What policies are chosen by: the mean over finished requests alone would praise one that has its long ones dropped.
    """
    dropped = records["phase"] == DROPPED
    ended = dropped | (records["phase"] == DONE)
    end = np.where(dropped, records["charged_until_s"], records["finish_s"])
    weight = records["weight"][ended]
    return 1e3 * _ratio(float((weight * (end - records["arrival_s"])[ended]).sum()), float(weight.sum()))


def summary(records: NDArray[np.void], state: Any, skip: int = 0) -> dict[str, float]:
    """One episode in numbers; `state` is its STATE record. Latencies in ms, as vLLM prints them.

    The first `skip` requests are left out (warm-up). Loads, unloads, preemptions, offloads and busy GPUs are the whole
    episode's, whatever is left out, and `loads_per_100` and `gpu_busy_share` (of the GPUs that were ever busy) go by it.
    """
    whole_count = int((records["phase"] != FUTURE).sum())
    whole_s = float(state["now"]) - float(records["arrival_s"][0]) if whole_count else 0.0
    rows = per_request(records[skip:])
    arrived = rows["arrived"]
    count = int(arrived.sum())
    done = rows["finished"]
    seconds = float(state["now"]) - float(rows["arrival_s"][0]) if count else 0.0
    gpu_busy = np.asarray(state["gpu_busy_s"], np.float64)
    weight = rows["weight"][done]
    out = {
        "num_requests": float(count),
        "completed": float(done.sum()),
        "dropped": float(rows["dropped"].sum()),
        "duration_s": seconds,
        "request_throughput": _ratio(float(done.sum()), seconds),
        "output_throughput": _ratio(float(rows["generated_tokens"].sum()), seconds),
        "request_goodput": _ratio(float(rows["slo_met"].sum()), seconds),
        "slo_attainment": _ratio(float(rows["slo_met"].sum()), count),
        "weighted_mean_e2e_ms": 1e3 * _ratio(float((weight * rows["e2e_s"][done]).sum()), float(weight.sum())),
        "mean_slowdown": _mean(rows["slowdown"][done]),
        "mean_queue_ms": 1e3 * _mean(rows["queue_s"][done]),
        "mean_load_ms": 1e3 * _mean(rows["load_s"][done]),
        "loads": float(state["num_loads"]),
        "loads_per_100": 100 * _ratio(float(state["num_loads"]), whole_count),
        "failed_loads": float(state["num_failed_loads"]),
        "unloads": float(state["num_unloads"]),
        "preemptions": float(state["num_preempted"]),
        "offloads": float(state["num_resizes"]),
        "gpu_busy_share": _ratio(float(gpu_busy.sum()), whole_s * max(1, int(np.count_nonzero(gpu_busy)))),
    }
    for name in ("ttft", "tpot", "e2e"):
        values = 1e3 * rows[f"{name}_s"][done]
        values = values[~np.isnan(values)]
        out[f"mean_{name}_ms"] = _mean(values)
        percentiles = np.percentile(values, (50, 95, 99)) if len(values) else np.full(3, np.nan)
        out |= {f"p{q}_{name}_ms": float(value) for q, value in zip((50, 95, 99), percentiles, strict=True)}
    return out


def _since(times: FloatArray, start: FloatArray) -> FloatArray:
    return np.where(times >= 0, times - start, np.nan)


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else float("nan")
