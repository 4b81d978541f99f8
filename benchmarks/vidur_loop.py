"""Requests per second of Vidur's event loop, to compare `mmsched bench parts=[requests]` with.

For an environment of its own, as Vidur brings much along:

    python -m venv vidur && vidur/bin/pip install vidur==0.0.26 && vidur/bin/python benchmarks/vidur_loop.py 2000 38

Its times come from models fitted to profiles that it downloads. Here its look-up tables are filled by a law instead (a step of
about 10 ms), so that the loop and its look-ups are what it does, and the simulated latencies mean nothing. One Llama-3-8B,
vLLM's scheduler, Poisson arrivals, 512 tokens in and 128 out in the mean; it serves 48 requests/s so.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from vidur.config import SimulationConfig
from vidur.execution_time_predictor.sklearn_execution_time_predictor import SklearnExecutionTimePredictor as Predictor
from vidur.simulator import Simulator
from vidur.utils.random import set_seeds

BY_TOKEN_MS = 1.5e-4
SETTINGS = {
    "replica_config_device": "h100",
    "replica_config_model_name": "meta-llama/Llama-3-8B",
    "replica_config_num_pipeline_stages": "1",
    "replica_config_tensor_parallel_size": "1",
    "replica_scheduler_config_type": "vllm",
    "request_generator_config_type": "synthetic",
    "length_generator_config_type": "uniform",
    "uniform_request_length_generator_config_min_tokens": "256",
    "uniform_request_length_generator_config_max_tokens": "1024",
    "uniform_request_length_generator_config_prefill_to_decode_ratio": "4",
    "interval_generator_config_type": "poisson",
    "random_forrest_execution_time_predictor_config_prediction_max_tokens_per_request": "4096",
    "random_forrest_execution_time_predictor_config_prediction_max_batch_size": "128",
}
OFF = ("store_plots", "enable_chrome_trace", "write_json_trace")


class Law:
    """Milliseconds of an operation, linear in what it depends on."""

    def __init__(self, base_ms: float, **per: float) -> None:
        self.base_ms, self.per = base_ms, per

    def predict(self, features: pd.DataFrame) -> Any:
        """As a fitted model would."""
        return self.base_ms + sum(slope * features[name].to_numpy(float) for name, slope in self.per.items())


def laws(_: Predictor) -> dict[str, Law]:
    """In the place of the models that Vidur fits."""
    large = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
    small = ("mlp_act", "input_layernorm", "post_attention_layernorm", "attn_rope", "add", "attn_kv_cache_save")
    return {
        **{name: Law(0.02, num_tokens=BY_TOKEN_MS) for name in large},
        **{name: Law(0.004, num_tokens=1e-6) for name in small},
        "attn_prefill": Law(0.01, prefill_chunk_size=2e-5, kv_cache_size=1e-6),
        "attn_decode": Law(0.01, batch_size=3e-4, kv_cache_size=2e-6),
    }


def without_downloads() -> None:
    """Let Vidur fill its tables from `laws`."""

    def none_here(_: Predictor) -> None:
        raise RuntimeError("tables are filled by a law")

    def table(_: Predictor, name: str, kind: Any, model: Law, features: pd.DataFrame) -> dict[tuple[float, ...], float]:
        return dict(zip(map(tuple, features.to_numpy()), np.asarray(model.predict(features)), strict=True))

    Predictor._load_predictions_from_hf = none_here
    Predictor._train_models = laws
    Predictor._get_model_prediction = table


def simulator(requests: int, per_s: float, folder: str) -> Simulator:
    """Ready to run."""
    numbers = {
        "synthetic_request_generator_config_num_requests": str(requests),
        "poisson_request_interval_generator_config_qps": str(per_s),
        "metrics_config_output_dir": folder,
    }
    sys.argv = ["vidur", *(f"--no-metrics_config_{name}" for name in OFF)]
    sys.argv += [word for name, value in (SETTINGS | numbers).items() for word in (f"--{name}", value)]
    config = SimulationConfig.create_from_cli_args()
    set_seeds(config.seed)
    made = Simulator(config)
    made._write_output = lambda: None
    return made


def main(arguments: Sequence[str]) -> None:
    """Time one run: Vidur counts its replicas over a process, so there can be no second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=int)
    parser.add_argument("per_s", type=float, help="arrivals per second")
    args = parser.parse_args(arguments)
    logging.disable(logging.INFO)
    without_downloads()
    with tempfile.TemporaryDirectory() as folder:
        ready = simulator(args.requests, args.per_s, folder)
        begun, used = time.perf_counter(), time.process_time()
        ready.run()
        wall, cpu = time.perf_counter() - begun, time.process_time() - used
    print(f"{args.requests / cpu:,.0f} requests/s of processor time, {args.requests / wall:,.0f} by the clock")


if __name__ == "__main__":
    main(sys.argv[1:])
