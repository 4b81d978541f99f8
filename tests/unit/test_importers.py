"""Importers: every figure of real output files, and one clear line for every broken one."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmsched_env.calibration import import_command, schema
from mmsched_env.calibration.importers import IMPORTERS, detect, load
from mmsched_env.calibration.importers.names import gpu_name, model_of_file, model_of_tag, model_of_type
from mmsched_env.calibration.schema import Measurement
from mmsched_env.errors import ConfigError

DATA = Path(__file__).parents[1] / "data" / "importers"
FILES = sorted(path for path in DATA.glob("*/*") if path.is_file())
GIVEN = {"gpu": "RTX 3090", "model": "m"}
CPU = {"gpu": "none (CPU)", "num_gpus": 0, "n_gpu_layers": 0, "host": "AMD EPYC", "engine": "llama.cpp CPU"}
OWN = {
    **CPU,
    "model": "SmolLM2-135M-Instruct",
    "quant": "Q4_1",
    "params_b": 0.134515008,
    "size_bytes": 96576768,
    "engine_version": "b1-0c1e570",
    "unit": "tokens/s",
    "batch": 1,
    "ubatch": 512,
    "date": "2026-11-24",
}
RTX4080 = {
    "gpu": "RTX 4080",
    "num_gpus": 1,
    "n_gpu_layers": 99,
    "engine": "llama.cpp CUDA",
    "engine_version": "b5163-8cf427ff",
    "model": "Qwen2.5-7B-Instruct",
    "quant": "Q4_K_M",
    "params_b": 7.615616512,
    "size_bytes": 4677120000,
    "host": "AMD Ryzen 7 7800X3D 8-Core Processor",
    "date": "2025-04-24",
    "batch": 1,
    "ubatch": 512,
    "depth": 0,
    "note": "n_threads=8 n_batch=2048 type_k=f16 type_v=f16 flash_attn=0 no_kv_offload=0 split_mode=layer "
    "tensor_split=0.00 use_mmap=1 embeddings=0",
}
RTX3090TI = {
    "gpu": "RTX 3090 Ti",
    "engine": "llama.cpp CUDA",
    "engine_version": "b1275-3469684",
    "model": "llama 7B",
    "quant": "Q4_0",
    "params_b": 6.738415616,
    "date": "2023-09-23",
    "depth": 0,
    "batch": 1,
    "ubatch": 512,
    "note": "n_threads=16 n_batch=512 f16_kv=1 tensor_split=0.00 mul_mat_q=1",
}
SERVER = {"model": "SmolLM2-135M-Instruct", "quant": "Q4_1", "unit": "tokens/s", "batch": None}


def test_2025(operation: str, tokens: int, value: float, spread: float, repeats: int | None) -> dict[str, Any]:
    return {**RTX4080, **row(operation, tokens, value, spread=spread, repeats=repeats)}


def row(operation: str, tokens: int | None, value: float, **more: Any) -> dict[str, Any]:
    return {"operation": operation, "tokens": tokens, "value": value, **more}


def run(figures: list[tuple[str, int, int, float, float]], repeats: int | None) -> list[dict[str, Any]]:
    return [
        {**OWN, **row(operation, tokens, value, depth=depth, spread=spread, repeats=repeats)}
        for operation, tokens, depth, value, spread in figures
    ]


test_2025.__test__ = False  # type: ignore[attr-defined]

EXPECTED: dict[str, list[dict[str, Any]]] = {
    "llama_bench/run.json": run(
        [
            ("prefill", 64, 0, 181.721011, 0.632784),
            ("decode", 16, 0, 98.776749, 1.324805),
            ("prefill", 64, 128, 177.399814, 1.765724),
            ("decode", 16, 128, 85.102227, 1.301182),
        ],
        3,
    ),
    "llama_bench/run.jsonl": run(
        [
            ("prefill", 64, 0, 182.634033, 2.669884),
            ("decode", 16, 0, 96.764575, 0.919361),
            ("prefill", 64, 128, 174.540805, 1.565572),
            ("decode", 16, 128, 91.735994, 0.395352),
        ],
        3,
    ),
    "llama_bench/run.csv": run(
        [
            ("prefill", 64, 0, 181.546955, 0.264805),
            ("decode", 16, 0, 99.828269, 0.907598),
            ("prefill", 64, 128, 166.450921, 12.708086),
            ("decode", 16, 128, 93.445285, 0.827898),
        ],
        None,
    ),
    "llama_bench/run.sql": run(
        [
            ("prefill", 64, 0, 170.136360, 14.033209),
            ("decode", 16, 0, 94.560181, 3.444925),
            ("prefill", 64, 128, 176.193949, 0.854557),
            ("decode", 16, 128, 90.693597, 1.284836),
        ],
        None,
    ),
    "llama_bench/readme-2025.json": [
        test_2025("prefill", 512, 7100.002165, 140.341520, 5),
        test_2025("decode", 128, 118.881588, 1.041811, 5),
    ],
    "llama_bench/readme-2025.jsonl": [
        test_2025("prefill", 512, 7263.609157, 90.940578, 5),
        test_2025("decode", 128, 119.844681, 0.699739, 5),
    ],
    "llama_bench/readme-2025.csv": [
        test_2025("prefill", 512, 7285.676949, 100.064434, None),
        test_2025("decode", 128, 119.915244, 0.430617, None),
    ],
    "llama_bench/readme-2025.sql": [
        test_2025("prefill", 512, 7324.546977, 54.032613, None),
        test_2025("decode", 128, 120.346696, 0.504647, None),
    ],
    "llama_bench/readme-2023.csv": [
        {**RTX3090TI, **row("prefill", 512, 2413.341687, spread=8.305961)},
        {**RTX3090TI, **row("decode", 128, 132.052051, spread=0.371342)},
    ],
    "llama_batched_bench/run.jsonl": [
        row("prefill", 64, 179.282761, batch=1, depth=0),
        row("decode", 16, 94.986488, batch=1, depth=64),
        row("prefill", 64, 167.576553, batch=2, depth=0),
        row("decode", 16, 95.439194, batch=2, depth=64),
        row("prefill", 64, 184.328217, batch=4, depth=0),
        row("decode", 16, 116.500053, batch=4, depth=64, ubatch=512, n_gpu_layers=-1, engine="llama.cpp"),
    ],
    "llama_batched_bench/shared.jsonl": [
        row("prefill", 32, 87.740463, batch=1),
        row("decode", 8, 47.638897, batch=1),
        row("prefill", 32, 86.765305, batch=1),  # computed once, for three sequences
        row("decode", 8, 44.178719, batch=3),
    ],
    "llama_server/completion.json": [
        {**SERVER, **row("prefill", 32, 32 / 0.200813, depth=128)},
        {**SERVER, **row("decode", 15, 15 / 0.180819, depth=160)},
    ],
    "llama_server/chat.json": [
        {**SERVER, **row("prefill", 36, 36 / 0.196932, depth=0, engine_version="b0-unknown")},
        {**SERVER, **row("decode", 23, 23 / 0.251262, depth=36)},
    ],
    "llama_server/stream.txt": [
        {**SERVER, **row("prefill", 9, 9 / 0.055852, depth=29)},
        {**SERVER, **row("decode", 11, 11 / 0.125963, depth=38)},
    ],
    "llama_server/chat-2025-08.txt": [
        row("prefill", 28, 28 / 0.447926, depth=0, model="qwen2.5-32b-instruct", quant="Q5_K_M"),
        # 21 steps: the server's own predicted_per_second, 16.696, counts 22
        row("decode", 21, 21 / 1.317711, depth=28, engine_version="b6290-a6a58d64"),
    ],
    "llama_server/drafted.json": [row("prefill", 4, 4 / 0.19608, depth=6151, model="qwen3.6-27b-code")],
    "llama_server/save.json": [row("save", 159, 0.001978, size_bytes=3666676, unit="s", tier="disk")],
    "llama_server/restore.json": [row("restore", 159, 0.000951, size_bytes=3666676, unit="s", tier="disk")],
    "llama_server/metrics.txt": [
        row("prefill", None, 205 / 1.14074, batch=1),
        row("decode", None, 84 / 0.923265, batch=1),
    ],
    "llama_server/metrics-2025.txt": [
        row("prefill", None, 33065 / 235.743),
        row("decode", None, 7801 / 279.178),
    ],
    "ollama/generate.json": [
        row("prefill", 3, 3 / 0.013074791, depth=8, model="gemma4", date="2025-10-17", note=""),
        row("decode", 17, 17 / 0.052479709, depth=11, engine="Ollama"),
    ],
    "ollama/generate-2024.json": [
        row("load", None, 0.567678166, unit="s", model="llama3.1:8b"),
        row("prefill", 28, 28 / 0.236, depth=0),
        row("decode", 15, 15 / 0.269, depth=28),
    ],
    "ollama/stream.jsonl": [
        row("load", None, 6.338219291, unit="s", model="llama3.2", date="2023-08-04"),
        row("prefill", 26, 26 / 0.130079, depth=0, note="any cached tokens are counted: this version does not say"),
        row("decode", 258, 258 / 4.23271, depth=26, unit="tokens/s"),
    ],
    "ollama/chat.json": [row("prefill", 26, 26 / 0.383809), row("decode", 297, 297 / 4.799921)],
    "ollama/nothing-timed.json": [],
    "ollama/server-cpu.log": [
        {
            **row("load", None, 132.84, gpu="none (CPU)", num_gpus=0, n_gpu_layers=0, num_layers=48),
            "engine_version": "0.16.1",
            "model": "Qwen3-Coder-30B-A3B-Instruct",
            "date": "2026-02-21",
            "quant": "",
        }
    ],
    "ollama/server-metal.log": [
        {
            **row("load", None, 9.99, gpu="Apple M4", n_gpu_layers=41, num_layers=40, params_b=9.4, quant="Q4_0"),
            "model": "codegeex4-all-9b",
            "size_bytes": round(5.08 * 2**30),
            "engine": "Ollama",
        }
    ],
    "vllm/serve-2025-05.json": [
        row("serve", 270, 2249.247363167692, depth=999, batch=None, date="2025-05-30", repeats=1),
        row("throughput", 270, 10566.328606120898, model="meta-llama/Llama-3.2-3B-Instruct"),
        row("ttft", 270, 0.054577085783294024, spread=0.00927197373989555, repeats=300, unit="s"),
        row("tpot", 270, 0.013577995860227945, spread=0.0009199628548912276, repeats=300),
        row(
            "itl",
            270,
            0.013505887271504633,
            spread=0.003839438281316489,
            repeats=None,
            note="request_rate=10.0 burstiness=1.0 num_prompts=300 backend=vllm",
        ),
    ],
    "vllm/serve-2026-07.json": [
        row("serve", 128, 124.58542994370372, depth=200, batch=14, date="2026-07-22", engine="vLLM"),
        row("throughput", 128, 319.2501642307408),
        row("ttft", 128, 0.09750969301155726, spread=0.010283567228285902, repeats=199),
        row("tpot", 128, 0.03443461520473263, spread=0.0003581634321016956, repeats=199),
        row("itl", 128, 0.034434617229796345, spread=0.0012341968366262888),
    ],
    "vllm/latency.json": [row("e2e", None, 1.25, spread=(4 * 0.05**2 / 3) ** 0.5, repeats=4, unit="s")],
    "vllm/latency-2025.json": [row("e2e", None, 0.5, spread=None, repeats=1)],
    "vllm/latency-ascend-1.json": [row("e2e", None, 7.419569773475329, spread=0.1619631541838997, repeats=15)],
    "vllm/latency-ascend-2.json": [row("e2e", None, 7.1091228867570555, spread=0.3085346821616064, repeats=15)],
    "vllm/throughput-ascend-1.json": [row("throughput", None, 1190.9743920852, note="num_requests=200")],
    "vllm/throughput-ascend-2.json": [row("throughput", None, 1198.996134490826, unit="tokens/s", repeats=1)],
    "vllm/throughput.json": [row("throughput", None, 2000.0, note="num_requests=100")],
    "nvbandwidth/verbose.json": [
        row("copy_h2d", None, 12.3964e9, pinned=True, engine_version="v0.5", unit="B/s"),
        row("copy_d2h", None, 13.2001e9, pinned=True),
    ],
    "nvbandwidth/devices.json": [
        row("copy_h2d", None, 26.03e9, gpu="H100 80GB HBM3", note="GPU 0"),
        row("copy_h2d", None, 25.94e9, gpu="H100 80GB HBM3", note="GPU 1"),
    ],
    "nvbandwidth/rtx4090.txt": [
        *(
            row("copy_h2d", None, rate * 1e9, gpu="RTX 4090", engine_version="v0.2")
            for rate in (25.50, 24.26, 23.90, 26.30, 26.28, 26.38, 26.09, 26.31)
        ),
        *(
            row("copy_d2h", None, rate * 1e9, gpu="RTX 4090", unit="B/s")
            for rate in (26.77, 26.47, 26.25, 26.63, 27.10, 27.11, 27.11, 26.83)
        ),
    ],
    "nvbandwidth/a100-sm.txt": [row("copy_h2d", None, 24.90e9, gpu="A100-SXM4-40GB", pinned=True)],
    "published/decode_prefill.csv": [
        row("decode", 512, 72.79, gpu="RTX 3070", gpu_mem_gb=8, num_layers=32, n_gpu_layers=-1, date="2024-05"),
    ],
    "published/offload_sweeps.csv": [row("decode", 128, 13.45, series="S01", n_gpu_layers=10, spread=0.93)],
    "published/load_times.csv": [
        row("start", None, 97.9, gpu="A100", num_gpus=4, engine="vLLM", engine_version="0.11.0"),
        row("wake", None, 0.25, gpu="A100", tier="ram", model="Qwen3-0.6B"),
    ],
    "published/transfer.csv": [row("copy_h2d", None, 21.8e9, pinned=False, size_bytes=500_000_000, link="pcie5x16")],
}
"""file -> its rows, by hand from the file: the columns that matter there"""

NAMES_GPU = ("llama_bench", "published", "ollama/server", "nvbandwidth/rtx", "nvbandwidth/a100", "nvbandwidth/dev")
NAMES_MODEL = (
    "llama_bench",
    "published",
    "ollama",
    "vllm/serve",
    "llama_server/c",
    "llama_server/st",
    "llama_server/d",
)


def given(name: str) -> dict[str, str]:
    """What the file does not say."""
    options = {}
    if not name.startswith(NAMES_GPU):
        options["gpu"] = "RTX 3090"
    if not name.startswith(NAMES_MODEL):
        options["model"] = "m"
    return options


def test_every_file_has_its_rows_written_down() -> None:
    assert {str(path.relative_to(DATA)) for path in FILES} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_rows_are_exactly_those_of_the_file(name: str) -> None:
    imported = load(DATA / name, given(name))
    assert [r.operation for r in imported.rows] == [e["operation"] for e in EXPECTED[name]]
    for found, expected in zip(imported.rows, EXPECTED[name], strict=True):
        for column, value in expected.items():
            assert getattr(found, column) == (pytest.approx(value, rel=1e-12) if type(value) is float else value), (
                column
            )
        assert found.provenance == "imported" and found.source


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_is_recognised_by_one_importer_only(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [i.name for i in IMPORTERS if i.recognises(text)] == [detect(path).name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_field_of_real_output_is_read_or_left_out_for_a_reason(path: Path) -> None:
    """Only what users add themselves to a vLLM result may be unknown."""
    unknown = load(path, GIVEN).ignored.get("not known to this importer", ())
    metadata = {
        "deployment",
        "gpu",
        "model",
        "gateway",
        "prefill_replicas",
        "decode_replicas",
        "input_len",
        "output_len",
    }
    assert set(unknown) <= metadata
    assert not unknown or path.name == "serve-2025-05.json"


# -- broken files ------------------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[str, str, str, str]] = {
    "json cut short": ("llama_bench/run.json", r"(?s)(.{900}).*", r"\1", "not valid JSON"),
    "jsonl cut short": ("llama_bench/run.jsonl", r"(?s)(.{1500}).*", r"\1", "line 2 column 505: not valid JSON"),
    "no rate": ("llama_bench/run.json", r'"avg_ts": 98.776749', '"avg_ts": 0', "test 2: avg_ts is 0; accepted: a"),
    "rate nan": ("llama_bench/run.json", r'"avg_ts": 98.776749', '"avg_ts": NaN', "test 2: avg_ts is nan"),
    "rate inf": ("llama_bench/run.json", r'"avg_ts": 98.776749', '"avg_ts": Infinity', "test 2: avg_ts is inf"),
    "rate negative": ("llama_bench/run.csv", r'"99.828269"', '"-1"', "row 3: avg_ts is '-1'; accepted: a finite number"),
    "rate text": ("llama_bench/run.csv", r'"99.828269"', '"fast"', "row 3: avg_ts is 'fast'"),
    "rate true": ("llama_bench/run.json", r'"avg_ts": 98.776749', '"avg_ts": true', "avg_ts is True"),
    "rate missing": ("llama_bench/run.json", r'"avg_ts": 98.776749,', "", "test 2: avg_ts is None; accepted: a value"),
    "not its samples": ("llama_bench/run.json", r'"avg_ts": 98.776749', '"avg_ts": 198.7', "the mean of samples_ts, 98.77"),
    "samples no list": ("llama_bench/run.json", r"\[ 100.247[^]]*\]", "7", "samples_ts is 7; accepted: a list"),
    "a sample zero": ("llama_bench/run.json", r"100.247", "0", "samples_ts[0] is 0"),
    "fraction of a token": ("llama_bench/run.json", r'"n_gen": 16', '"n_gen": 16.5', "n_gen is 16.5; accepted: a whole"),
    "negative depth": ("llama_bench/run.json", r'"n_depth": 128', '"n_depth": -1', "n_depth is -1; accepted: a finite"),
    "negative spread": ("llama_bench/run.json", r'"stddev_ts": 1.3', '"stddev_ts": -1.3', "stddev_ts is -1.3"),
    "csv row short": ("llama_bench/run.csv", r',"99.828269","0.907598"', "", "row 3 has 40 values; accepted: 42"),
    "csv header only": ("llama_bench/run.csv", r"(?s)\n.*", "\n", "holds no test"),
    "sql row short": ("llama_bench/run.sql", r", '94.560181'", "", "has 41 values; accepted: 42"),
    "sql cut short": ("llama_bench/run.sql", r"(?s)'94.560181'.*", "", "line 47 is not as llama-bench writes it"),
    "sql without tests": ("llama_bench/run.sql", r"(?s)INSERT.*", "", "holds no test"),
    "empty list": ("llama_bench/run.json", r"(?s).*", "", "is empty"),
    "list of numbers": ("llama_bench/run.json", r"(?s)\A\[", "[1,", "test 1 is 1; accepted: an object"),
    "batched speed zero": ("llama_batched_bench/run.jsonl", r"95.439194", "0", "line 2: speed_tg is 0"),
    "batched no sequences": ("llama_batched_bench/run.jsonl", r'"pl": 2', '"pl": 0', "line 2: pl is 0; accepted: a"),
    "reply without time": ("llama_server/chat.json", r"251.262", "0", "timings: predicted_ms is 0; accepted: a finite"),
    "reply time text": ("llama_server/chat.json", r"251.262", '"soon"', "timings: predicted_ms is 'soon'"),
    "reply count negative": ("llama_server/chat.json", r'"prompt_n":36', '"prompt_n":-1', "timings: prompt_n is -1"),
    "timings no object": ("llama_server/save.json", r'\{"save_ms":1.978\}', '"save_ms"', "timings is"),
    "stream cut short": ("llama_server/stream.txt", r'"predicted_ms".*', '"pre', "not valid JSON"),
    "slot without bytes": ("llama_server/save.json", r"3666676", "0", "n_written is 0; accepted: a"),
    "metrics without value": ("llama_server/metrics.txt", r"prompt_seconds_total 1.14074", "prompt_seconds_total", "line 9"),
    "metrics nan": ("llama_server/metrics.txt", r"1.14074", "NaN", "prompt_seconds_total is 'NaN'"),
    "metrics no seconds": ("llama_server/metrics.txt", r"_total 0.923265", "_total 0", "accepted: a number > 0, with 84"),
    "metrics without counter": ("llama_server/metrics.txt", r"\nllamacpp:tokens_predicted_total .*", "", "it is missing"),
    "metrics twice": ("llama_server/metrics.txt", r"(?s)(\A.*\Z)", r"\1\1", "a second time"),
    "ollama no duration": ("ollama/chat.json", r"4799921000", "0", "eval_duration is 0; accepted: nanoseconds > 0"),
    "ollama negative": ("ollama/chat.json", r"2154458", "-1", "load_duration is -1"),
    "ollama text": ("ollama/chat.json", r'"eval_count": 298', '"eval_count": "many"', "eval_count is 'many'"),
    "ollama cut short": ("ollama/stream.jsonl", r'"done": true', '"done": false', "done is False; accepted: true in the"),
    "ollama too much cached": ("ollama/generate.json", r'_count": 8', '_count": 12', "at most prompt_eval_count, 11"),
    "ollama log nan": ("ollama/server-cpu.log", r"in 132.84", "in NaN", "line 13: runner started in 'NaN' seconds"),
    "ollama log no load": ("ollama/server-cpu.log", r"llama runner started.*", "", 'no "llama runner started" in it'),
    "vllm nothing done": ("vllm/serve-2026-07.json", r'"completed": 199', '"completed": 0', "completed is 0"),
    "vllm nan": ("vllm/serve-2026-07.json", r"97.50969301155726", "NaN", "mean_ttft_ms is nan"),
    "vllm null rate": ("vllm/serve-2026-07.json", r"124.58542994370372", "null", "output_throughput is None"),
    "vllm date": ("vllm/serve-2026-07.json", r"20260722-060114", "yesterday", "date is 'yesterday'; accepted: YYYYMMDD"),
    "vllm cut short": ("vllm/serve-2026-07.json", r', "p99_itl_ms.*', "", "not valid JSON"),
    "latency not its mean": ("vllm/latency.json", r'"avg_latency": 1.25', '"avg_latency": 2.5', "the mean of latencies"),
    "latency no samples": ("vllm/latency.json", r"(?s)\[.*?\]", "[]", "latencies is []; accepted: a list of numbers > 0"),
    "throughput not its ratio": ("vllm/throughput.json", r"2000.0", "9000.0", "total_num_tokens / elapsed_time, 2000"),
    "bandwidth text": ("nvbandwidth/verbose.json", r'"12.3964"', '"fast"', "host_to_device_memcpy_ce of GPU 0 is 'fast'"),
    "bandwidth zero": ("nvbandwidth/rtx4090.txt", r"24.26", "0.00", "host_to_device_memcpy_ce of GPU 1 is '0.00'"),
    "bandwidth column missing": ("nvbandwidth/rtx4090.txt", r" 24.26", "", "has 7 figures; accepted: 8, one a column"),
    "bandwidth cut short": ("nvbandwidth/verbose.json", r"(?s)(.{700}).*", r"\1", "not valid JSON"),
    "bandwidth no tests": ("nvbandwidth/verbose.json", r'"testcases": (?s:\[.*\]),', '"testcases": 3,', "testcases is 3"),
    "bandwidth no matrix": ("nvbandwidth/verbose.json", r'"bandwidth_matrix": \[\s*\[\s*"12.3964"\s*\]\s*\]', '"bandwidth_matrix": 1', "bandwidth_matrix is 1"),
    "table rate": ("published/decode_prefill.csv", r"72.79", "-3", "row 2: tokens_per_s is '-3'; accepted: a finite"),
    "table test": ("published/decode_prefill.csv", r",tg,", ",xx,", "row 2: test is 'xx'; accepted: tg or pp"),
    "table column": ("published/decode_prefill.csv", r",n_layers", ",layers", "row 1 lacks n_layers"),
    "table row short": ("published/transfer.csv", r",,,\n", "\n", "row 2 has not 10 cells"),
    "table no figure": ("published/transfer.csv", r"21.8", "", "row 2: gb_per_s is ''; accepted: a number > 0"),
    "table seconds": ("published/load_times.csv", r"97.9", "nan", "row 2: seconds is 'nan'"),
    "some other json": ("llama_bench/run.json", r"(?s).*", '{"a": 1}', "no format known; accepted: measurements"),
}  # fmt: skip
"""what is wrong -> (good file, what is replaced there, by what, what the error says)"""


def broken(tmp_path: Path, case: str) -> Path:
    name, old, new, _ = BROKEN[case]
    text = (DATA / name).read_text(encoding="utf-8")
    changed = re.sub(old, new, text, count=1)
    assert changed != text, "the case does not fit its file any more"
    path = tmp_path / Path(name).name
    path.write_text(changed, encoding="utf-8")
    return path


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_give_one_line_and_write_nothing(tmp_path: Path, case: str) -> None:
    path, out = broken(tmp_path, case), tmp_path / "out.csv"
    out.write_text("as it was")
    good = DATA / "llama_bench" / "run.csv"
    with pytest.raises(ConfigError) as caught:
        import_command.main([str(good), str(path), "--out", str(out), "--gpu", "RTX 3090", "--model", "m"])
    message = str(caught.value)
    assert str(path) in message and BROKEN[case][3] in message and "\n" not in message and "accepted" in message
    assert out.read_text() == "as it was"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "out.csv"])


JSON_JUNK = ("null", "true", "false", '"x"', '""', "[]", "{}", "NaN", "Infinity", "-1", '"nan"', "1e999", '"1,5"')
TEXT_JUNK = ("x", "NaN", "nan", "inf", "-inf", "-1", "1e999", "0x10", "1.2.3", "--1", "e5", "None", "1_000,5")
LOG_JUNK = (*TEXT_JUNK, "0", "", "132,84", "+", "0.0", "-0", "1e", ".")
CELL_JUNK = ('""', "0", *TEXT_JUNK[:-1])
STRING_JUNK = ('""', "0", *(f'"{junk}"' for junk in TEXT_JUNK))

FIGURES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "measurements": (
        "../../../mmsched_env/data/measurements/own.csv",
        (",8,0,1,,,|105.26,", ",144300000,|0.208,"),
        CELL_JUNK[1:],
    ),
    "published table": ("published/decode_prefill.csv", ("tg,512,|0,", "|72.79"), ("-5", *CELL_JUNK[2:])),
    "llama-bench": ("llama_bench/run.json", ('"avg_ts": |98.776749', '"n_gen": |16'), JSON_JUNK),
    "llama-batched-bench": ("llama_batched_bench/run.jsonl", ('"speed_tg": |94.986488', '"pl": |2'), JSON_JUNK),
    "llama-server replies": ("llama_server/chat.json", ('"predicted_ms":|251.262', '"prompt_ms":|196.932'), JSON_JUNK),
    "llama-server /metrics": (
        "llama_server/metrics.txt",
        ("seconds_total |1.14074", "seconds_total |0.923265"),
        TEXT_JUNK,
    ),
    "Ollama replies": (
        "ollama/chat.json",
        ('"eval_duration": |4799921000', '"prompt_eval_duration": |383809000'),
        tuple(junk for junk in JSON_JUNK if junk not in ("null", '""')),  # Ollama leaves out what is zero
    ),
    "Ollama server log": ("ollama/server-cpu.log", ("runner started in |132.84",), LOG_JUNK),
    "vllm bench serve": (
        "vllm/serve-2026-07.json",
        ('"output_throughput": |124.58542994370372', '"completed": |199'),
        JSON_JUNK,
    ),
    "vllm bench latency": (
        "vllm/latency-ascend-1.json",
        ('"avg_latency": |7.419569773475329', "|7.41211018525064"),
        JSON_JUNK,
    ),
    "vllm bench throughput": (
        "vllm/throughput-ascend-1.json",
        ('"total_num_tokens": |86204', '"elapsed_time": |72.38106929324567'),
        JSON_JUNK,
    ),
    "nvbandwidth": ("nvbandwidth/verbose.json", ('|"12.3964"', '|"13.2001"'), STRING_JUNK),
}
"""importer -> a real file, where figures stand in it (text before, value), what is put in their place"""


def test_every_importer_has_two_real_files() -> None:
    """Not constructed ones (tests/data/importers/README.md says which are); measurement tables are the project's own."""
    readme = (DATA / "README.md").read_text()
    constructed = re.findall(r"`([^`]+)` \| constructed", readme)
    made = {path for path in FILES if any(path.match(f"*/{name}") for text in constructed for name in names_in(text))}
    assert len(made) == 5
    real = [detect(path).name for path in FILES if path not in made]
    assert {i.name for i in IMPORTERS if real.count(i.name) < 2} == {"measurements"}


def names_in(text: str) -> list[str]:
    """``vllm/{latency,throughput}.json`` -> both names."""
    match = re.fullmatch(r"(.*)\{(.*)\}(.*)", text)
    return [f"{match[1]}{part}{match[3]}" for part in match[2].split(",")] if match else [text]


@pytest.mark.parametrize("importer", [i.name for i in IMPORTERS])
def test_twenty_broken_figures_of_every_importer_are_refused(tmp_path: Path, importer: str) -> None:
    name, places, junk = FIGURES[importer]
    text, path = (DATA / name).read_text(encoding="utf-8"), tmp_path / Path(name).name
    assert detect(DATA / name).name == importer
    refused = set()
    for place, wrong in itertools.product(places, junk):
        before, value = place.split("|")
        assert text.count(before + value) >= 1, place
        path.write_text(
            text.replace(before + value, before + value.replace(value.rstrip(","), wrong), 1), encoding="utf-8"
        )
        with pytest.raises(ConfigError) as caught:
            load(path, GIVEN)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value) and "accepted" in str(caught.value)
        refused.add((place, wrong))
    assert len(refused) >= 20


JUNK = ("", "0", "-1", "NaN", "1e999", "null", "[]", "{}", "true", "x", "9" * 26, "1.5", "\x00", "\n", ",", "}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_damage_of_any_kind_is_refused_in_one_line_or_harmless(tmp_path: Path, path: Path) -> None:
    rng, text = random.Random(path.name), path.read_text(encoding="utf-8")
    tokens = [match.span() for match in re.finditer(r'"[^"]*"|-?\d+(?:\.\d+)?', text)]
    for _ in range(30):
        (start, end), cut = rng.choice(tokens), rng.randrange(len(text))
        damaged = rng.choice([text[:cut], text[:cut] + text[cut + 20 :], text[:start] + rng.choice(JUNK) + text[end:]])
        (tmp_path / path.name).write_text(damaged, encoding="utf-8")
        try:
            load(tmp_path / path.name, GIVEN)
        except ConfigError as error:
            assert str(tmp_path / path.name) in str(error) and "\n" not in str(error)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\xff\x00\xfe\x01")
    with pytest.raises(ConfigError, match=r"x\.bin: is not text"):
        load(tmp_path / "x.bin")
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read: No such file"):
        load(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_utf16_as_powershell_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_bytes((DATA / "llama_bench/run.json").read_text().encode("utf-16"))
    assert load(path).rows[0].value == 181.721011


# -- single rules ------------------------------------------------------------------------------------------------------


def variant(tmp_path: Path, name: str, **changes: Any) -> list[Measurement]:
    """Rows of a JSON file's first test with some fields changed."""
    data = json.loads((DATA / name).read_text())
    first = data[0] if isinstance(data, list) else data
    path = tmp_path / "variant.json"
    path.write_text(json.dumps([{**first, **changes}] if isinstance(data, list) else {**first, **changes}))
    return list(load(path, given(name)).rows)


def test_llama_bench_gpus(tmp_path: Path) -> None:
    def gpus(info: str, **more: Any) -> tuple[str, int]:
        (found,) = variant(tmp_path, "llama_bench/readme-2025.json", gpu_info=info, **more)
        return found.gpu, found.num_gpus

    two = "NVIDIA GeForce RTX 3090, NVIDIA GeForce RTX 3090"
    assert gpus(two) == ("RTX 3090", 2)
    assert gpus(two, split_mode="none") == ("RTX 3090", 1)
    assert gpus("NVIDIA A100-SXM4-80GB, NVIDIA GeForce RTX 3090") == ("A100-SXM4-80GB + RTX 3090", 2)
    assert gpus("NVIDIA A100, NVIDIA GeForce RTX 3090", split_mode="none", main_gpu=1) == ("RTX 3090", 1)
    with pytest.raises(ConfigError, match=r"gpu is ''.*--gpu"):
        gpus("")


def test_llama_bench_layers_and_micro_batch(tmp_path: Path) -> None:
    (found,) = variant(tmp_path, "llama_bench/readme-2025.json", n_gpu_layers=-2, n_batch=128, n_cpu_moe=12)
    assert (found.n_gpu_layers, found.ubatch, found.n_cpu_moe) == (schema.ALL_LAYERS, 128, 12)


def test_one_time_for_prompt_and_generation_is_left_out(tmp_path: Path) -> None:
    ignored = load(DATA / "llama_bench/run.json").ignored
    assert ignored["one time for prompt and generation together"] == ("test pp64+tg16",)
    assert variant(tmp_path, "llama_bench/readme-2025.json", n_gen=128) == []


def test_busy_slots_and_drafts_make_counters_unusable(tmp_path: Path) -> None:
    text = (DATA / "llama_server/metrics.txt").read_text()
    path = tmp_path / "metrics"
    path.write_text(text.replace("n_busy_slots_per_decode 1", "n_busy_slots_per_decode 2.5"))
    imported = load(path, GIVEN)
    assert imported.rows == () and any("2.5 slots were busy" in reason for reason in imported.ignored)
    path.write_text(text.replace("num_draft_tokens_total 0", "num_draft_tokens_total 7"))
    assert [r.operation for r in load(path, GIVEN).rows] == ["prefill"]


def test_several_replies_and_several_streams(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    reply = json.dumps(json.loads((DATA / "llama_server/chat.json").read_text()))
    path.write_text(f"{reply}\n{reply}\n")
    assert len(load(path, GIVEN).rows) == 4
    stream = (DATA / "llama_server/stream.txt").read_text()
    path.write_text(stream + stream)
    assert [r.tokens for r in load(path, GIVEN).rows] == [9, 11, 9, 11]


def test_events_of_a_stream_before_its_end_count_nothing(tmp_path: Path) -> None:
    stream = (DATA / "llama_server/stream.txt").read_text()
    early = 'data: {"timings":{"prompt_n":9,"prompt_ms":1.0,"predicted_n":2,"predicted_ms":1.0}}\n\n'
    (tmp_path / "s").write_text(early + stream)
    assert load(tmp_path / "s", GIVEN).rows == load(DATA / "llama_server/stream.txt", {**GIVEN, "source": "s"}).rows


def test_a_server_that_does_not_say_what_it_cached(tmp_path: Path) -> None:
    """The depth of a prompt is then what the whole prompt is longer than what was processed."""
    reply = json.loads((DATA / "llama_server/completion.json").read_text())
    del reply["timings"]["cache_n"]
    (tmp_path / "r.json").write_text(json.dumps(reply))
    assert [r.depth for r in load(tmp_path / "r.json", GIVEN).rows] == [128, 160]


def test_a_short_load_is_a_model_that_was_there(tmp_path: Path) -> None:
    operations = [r.operation for r in variant(tmp_path, "ollama/chat.json", load_duration=499_000_000)]
    assert operations == ["prefill", "decode"]
    operations = [r.operation for r in variant(tmp_path, "ollama/chat.json", load_duration=500_000_000)]
    assert operations == ["load", "prefill", "decode"]


def test_every_load_of_a_log_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = (DATA / "ollama/server-cpu.log").read_text() + (DATA / "ollama/server-metal.log").read_text()
    path.write_text("".join(f"Feb 25 18:14:34 box ollama[1]: {line}\n" for line in text.splitlines()))
    assert [(r.value, r.gpu) for r in load(path).rows] == [(132.84, "none (CPU)"), (9.99, "Apple M4")]


def test_gpus_of_a_log(tmp_path: Path) -> None:
    """Those that layers were placed on; those the runner names, in older versions."""
    text = (DATA / "ollama/server-metal.log").read_text()
    device = "llama_model_load_from_file_impl: using device CUDA{} (NVIDIA GeForce RTX 3090) (0000:0{}:00.0) - 23859 MiB free"
    two = "\n".join(device.format(i, i) for i in (0, 1))
    path = tmp_path / "log"
    path.write_text(re.sub("llama_model_load_from_file_impl: .*", two, text))
    (found,) = load(path).rows
    assert (found.gpu, found.num_gpus) == ("RTX 3090", 2)
    commit = (
        'msg=load request="{Operation:commit LoraPath:[] GPULayers:41[ID:GPU-1 Layers:41(0..40)] MultiUserCache:false}"'
    )
    path.write_text(path.read_text().replace("print_info: file format", f"{commit}\nprint_info: file format"))
    (found,) = load(path).rows
    assert (found.gpu, found.num_gpus) == ("RTX 3090", 1)
    path.write_text(re.sub("NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 4090", path.read_text(), count=1))
    with pytest.raises(ConfigError, match="--gpu"):
        load(path)


def test_latencies_that_nothing_timed_are_left_out(tmp_path: Path) -> None:
    rows = variant(tmp_path, "vllm/serve-2026-07.json", mean_tpot_ms=0.0, mean_e2el_ms=4000.0, max_concurrency=8)
    assert [r.operation for r in rows] == ["serve", "throughput", "ttft", "itl", "e2e"]
    assert (rows[-1].value, rows[-1].batch) == (4.0, 8)


def test_options_say_what_the_file_does_not_and_win() -> None:
    path = DATA / "llama_bench/readme-2025.json"
    (first, *_) = load(path, {"gpu": "RTX 4080", "gpu_mem_gb": 16.0, "model": "qwen2.5-7b", "source": "https://x"}).rows
    assert (first.gpu_mem_gb, first.model, first.source, first.num_gpus) == (16.0, "qwen2.5-7b", "https://x", 1)
    (first, *_) = load(DATA / "llama_bench/run.json", {"gpu": "RTX 4080"}).rows
    assert first.num_gpus == 1
    with pytest.raises(ConfigError, match=r"model is ''.*\(the file does not say: --model\)"):
        load(DATA / "vllm/latency.json", {"gpu": "RTX 3090"})


def test_imported_files_are_read_back_equal(tmp_path: Path) -> None:
    rows = [r for name in EXPECTED for r in load(DATA / name, given(name)).rows]
    schema.write(tmp_path / "all.csv", rows)
    assert schema.read(tmp_path / "all.csv") == rows
    assert list(load(tmp_path / "all.csv").rows) == rows
    first = (tmp_path / "all.csv").read_bytes()
    schema.write(tmp_path / "all.csv", rows)
    assert (tmp_path / "all.csv").read_bytes() == first


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("AMD Radeon RX 7900 XTX (RADV NAVI31)", "RX 7900 XTX"),
        ("Intel(R) Arc(TM) A770 Graphics", "Arc A770 Graphics"),
        ("Apple M2 Max", "Apple M2 Max"),
    ],
)
def test_gpu_names(text: str, name: str) -> None:
    assert gpu_name(text) == name


def test_model_names() -> None:
    assert model_of_file("/m/Qwen2.5-7B-Instruct-Q4_K_M.gguf") == ("Qwen2.5-7B-Instruct", "Q4_K_M")
    assert model_of_file(r"C:\m\gpt-oss-20b-mxfp4-00001-of-00002.gguf") == ("gpt-oss-20b", "MXFP4")
    assert model_of_file("Qwen3-30B-A3B-UD-Q4_K_XL.gguf") == ("Qwen3-30B-A3B", "UD-Q4_K_XL")
    assert model_of_file("models/7B/ggml-model-f16.gguf") == ("", "F16")
    assert model_of_file("llama.gguf") == ("llama", "")
    assert model_of_type("qwen3moe 30B.A3B Q4_K - Medium") == ("qwen3moe 30B.A3B", "Q4_K_M")
    assert model_of_type("gemma3 4B IQ3_XXS - 3.0625 bpw") == ("gemma3 4B", "IQ3_XXS")
    assert model_of_type("llama 8B Q2_K - Medium") == ("llama 8B", "Q2_K")
    assert model_of_type("llama 7B all F32") == ("llama 7B", "F32")
    assert model_of_tag("llama3.1:8b-instruct-q4_K_M") == ("llama3.1:8b-instruct", "Q4_K_M")
    assert model_of_tag("llama3.1:8b") == ("llama3.1:8b", "")


# -- the command -------------------------------------------------------------------------------------------------------


def test_command_reports_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out.csv"
    files = [str(DATA / "llama_bench/run.json"), str(DATA / "ollama/server-metal.log")]
    assert import_command.main([*files, "--out", str(out), "--host", "box"]) == 0
    printed = capsys.readouterr().out
    assert "run.json: llama-bench: read 2 prefill (tokens/s), 2 decode (tokens/s)" in printed
    assert "left out avg_ns, stddev_ns, samples_ns: the same repeats as avg_ts, as times" in printed
    assert f"5 rows written to {out}" in printed
    assert [r.host for r in schema.read(out)] == ["box"] * 5


def test_command_without_out_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert import_command.main([str(DATA / "llama_bench/run.json")]) == 0
    assert "4 rows, not written: no --out FILE.csv" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-gpus", "two"], "option --num-gpus: num_gpus is 'two'; accepted: a whole number"),
        (["--num-gpus", "-1"], "num_gpus is -1; accepted: a finite number >= 0"),
        (["--tier", "moon"], "tier is 'moon'; accepted: ram, page_cache, disk, network or nothing"),
        (["--pinned", "maybe"], "option --pinned: pinned is 'maybe'; accepted: y, n or nothing"),
        (["--date", "today"], "date is 'today'; accepted: YYYY"),
    ],
)
def test_wrong_options(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        import_command.main([str(DATA / "llama_bench/run.json"), "--out", str(tmp_path / "o.csv"), *arguments])
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    good = str(DATA / "llama_bench/run.json")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written"):
        import_command.main([good, "--out", str(tmp_path / "file" / "o.csv")])
    with pytest.raises(ConfigError, match="is one of the files to read"):
        import_command.main([good, "--out", good])
    with pytest.raises(ConfigError, match="no figure in any of the files"):
        import_command.main([str(DATA / "ollama/nothing-timed.json"), "--gpu", "x"])


def test_usage_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["x", "--colour", "red"]):
        with pytest.raises(SystemExit) as stop:
            import_command.main(arguments)
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def mmsched(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmsched_env", "calibrate", "import", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_as_a_user_runs_it(tmp_path: Path) -> None:
    good = mmsched(str(DATA / "llama_bench/run.json"), "--out", "o.csv", cwd=tmp_path)
    assert (good.returncode, good.stderr) == (0, "") and len(schema.read(tmp_path / "o.csv")) == 4
    (tmp_path / "o.csv").unlink()
    bad = mmsched(str(DATA / "vllm/latency.json"), "--gpu", "RTX 3090", "--out", "o.csv", cwd=tmp_path)
    assert bad.returncode == 2 and bad.stdout == "" and not (tmp_path / "o.csv").exists()
    assert bad.stderr.startswith("mmsched: error: ") and bad.stderr.count("\n") == 1
