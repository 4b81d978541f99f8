"""Predictions of measurements by the shipped profiles, and what `calibrate validate` prints of them."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsched_env.calibration import carry, fit, schema, validate
from mmsched_env.calibration.names import architecture_of, gpu_of, quant_of, read_specs
from mmsched_env.calibration.predict import predict
from mmsched_env.calibration.schema import Measurement
from mmsched_env.calibration.work import Unusable, work
from mmsched_env.config import ClusterConfig, ModelsConfig
from mmsched_env.costmodel.profile import load_gpu
from mmsched_env.costmodel.tables import build_tables
from mmsched_env.errors import ConfigError

SPECS = read_specs(fit.MEASUREMENTS)
DATA = os.environ.get("MMSCHED_TEST_DATA")
FIXTURES = Path(__file__).parents[1] / "data" / "importers"


def row(**columns: Any) -> Measurement:
    """A decode rate of Llama 3 8B on an RTX 4090."""
    given = {"operation": "decode", "unit": "tokens/s", "value": 100.0, "source": "test", "provenance": "imported"}
    usual = {"gpu": "RTX 4090", "model": "llama 8B", "quant": "Q4_K_M", "engine": "llama.cpp CUDA", "date": "2026-01"}
    return Measurement(**(given | usual | {"tokens": 128, "depth": 0} | columns))


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx-4090-24gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada-48gb"),
        ("AMD Radeon RX 7900 XTX", "rx-7900-xtx-24gb"),
        ("NVIDIA H200", "h200-sxm-141gb"),
        ("RTX 3080 Ti", "rtx-3080-ti-12gb"),
        ("A100", None),  # two of them, of two memories each
    ],
)
def test_drivers_names_of_gpus(name: str, profile: str | None) -> None:
    assert gpu_of(row(gpu=name), SPECS) == profile


@pytest.mark.parametrize(
    ("name", "params_b", "architecture"),
    [
        ("llama 8B Q4_0", 8.03, "llama-3-8b"),
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", None, "llama-3-8b"),
        ("qwen3:8b", None, "qwen3-8b"),
        ("qwen3moe 30B.A3B Q4_K - Medium", 30.53, "qwen3-30b-a3b"),
        ("Qwen/Qwen3-30B-A3B", None, "qwen3-30b-a3b"),
        ("DeepSeek-R1-Distill-Qwen-14B", None, "qwen2.5-14b"),
        ("gpt-oss 20B MXFP4 MoE", 20.91, "gpt-oss-20b"),
        ("gemma3:12b", None, "gemma-3-12b"),
        ("a name that says nothing", 7.615616512, "qwen2.5-7b"),
        ("Qwen2.5-VL-7B-Instruct", None, "qwen2.5-vl-7b"),
        ("DeepSeek-Lite", 16.0, None),
    ],
)
def test_tools_names_of_models(name: str, params_b: float | None, architecture: str | None) -> None:
    assert architecture_of(name, params_b) == architecture


def test_tools_names_of_quantisations() -> None:
    names = ["Q4_K - Medium", "q4_k_m", "BF16", "MXFP4 MoE", "IQ1_M", ""]
    assert [quant_of(name) for name in names] == ["q4_k_m", "q4_k_m", "f16", "mxfp4", None, None]


# -- what ran where ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "date", "stated", "layers", "head"),
    [
        ("llama.cpp CUDA", "2026-03", 1, 0, True),  # the head is the first to go to the GPU ...
        ("llama.cpp CUDA", "2026-03", 28, 27, True),
        ("llama.cpp CUDA", "2025-03", 28, 28, False),  # ... and was the last before December 2025
        ("ik_llama.cpp CUDA", "2026-03", 28, 28, False),
        ("Ollama CUDA", "", 28, 28, False),
        ("llama.cpp CUDA", "2025-03", 33, 32, True),
        ("llama.cpp CUDA", "2026-03", -1, 32, True),
        ("llama.cpp CUDA", "2026-03", 0, 0, False),
    ],
)
def test_which_layers_a_number_means(engine: str, date: str, stated: int, layers: int, head: bool) -> None:
    item = work(row(engine=engine, date=date, n_gpu_layers=stated), SPECS)
    assert (item.here.launched, item.here.head > 0) == (layers, head)
    assert (item.there.launched, item.there.head > 0) == (32 - layers, not head)
    assert item.cpu_entries == (0 < layers + head < 33)


EXTRA = "build where KV and output count as 3 extra offload units (35 = all)"


@pytest.mark.parametrize(
    ("stated", "layers", "head", "in_ram"),
    [(0, 0, False, False), (10, 10, False, True), (32, 32, False, True), (33, 32, True, True), (35, 32, True, False)],
)
def test_builds_of_2023_moved_the_cache_last(stated: int, layers: int, head: bool, in_ram: bool) -> None:
    item = work(row(note=EXTRA, date="2023-09", n_gpu_layers=stated), SPECS)
    assert (item.here.launched, item.here.head > 0, item.kv_in_ram) == (layers, head, in_ram)
    assert item.resident == (stated == 35)


def test_half_a_cache_and_prompts_with_their_cache_in_ram_are_left_out() -> None:
    with pytest.raises(Unusable, match="one half of the KV cache"):
        work(row(note=EXTRA, date="2023-09", n_gpu_layers=34), SPECS)
    with pytest.raises(Unusable, match="KV cache in host RAM"):
        work(row(note=EXTRA, date="2023-09", n_gpu_layers=33, operation="prefill"), SPECS)
    with pytest.raises(Unusable, match="KV cache in host RAM"):
        predict(row(series="kv-in-host-ram"), SPECS)


def test_experts_leave_layer_by_layer() -> None:
    item = work(row(model="Qwen3-30B-A3B", n_cpu_moe=10), SPECS)
    assert (item.here.launched, item.cpu_entries, item.here.attention) == (48, 10, 48)
    with pytest.raises(Unusable, match="only its experts"):
        work(row(model="Qwen3-30B-A3B", n_gpu_layers=20), SPECS)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"model": "DeepSeek-Lite"}, "DeepSeek-Lite is not in the catalogue"),
        ({"quant": "IQ1_M"}, "no recipe for quantisation IQ1_M"),
        ({"operation": "prefill", "tokens": None}, "length of the prompt not stated"),
        ({"gpu": "Apple M2"}, "no profile of the GPU Apple M2"),
        ({"operation": "start", "unit": "s"}, "start: no law, a table"),
        ({"operation": "prefill", "tokens": 4096, "num_gpus": 4}, "pipelined over several GPUs"),
        ({"operation": "load", "unit": "s", "engine": "vLLM"}, "profiles hold llama.cpp's loads"),
        ({"operation": "copy_h2d", "unit": "B/s", "link": "pcie1x4"}, "pcie1x4: the profile is of pcie4x16"),
    ],
)
def test_what_is_not_predicted_says_why(columns: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        predict(row(**columns), SPECS)


# -- predictions are the cost model's ----------------------------------------------------------------------------------


def tables(model: str, levels: tuple[float, ...]) -> Any:
    cluster = ClusterConfig(("rtx-4090-24gb",), ("desktop-ddr5",), (0,))
    return build_tables(cluster, ModelsConfig((model,)), levels, 4)


@pytest.mark.parametrize("layers", [0, 8, 32, 33])
@pytest.mark.parametrize("batch", [1, 4])
def test_decode_is_that_of_the_tables(layers: int, batch: int) -> None:
    t, pick = tables("llama-3-8b-q4_k_m", (layers / 33,)), (0, 0, 0)
    context = 1000 + 129 / 2
    step = t.iter_const[pick] + t.gpu_head[pick] + t.cpu_head[pick]
    step += t.gpu_base[pick] * t.batch_gpu[0, 0, batch - 1] + t.cpu_base[pick] * t.batch_cpu[0, 0, batch - 1]
    step += (t.gpu_kv[pick] + t.cpu_kv[pick]) * context * batch
    found = predict(row(n_gpu_layers=layers, depth=1000, batch=batch, date="2025-01"), SPECS, "desktop-ddr5")
    assert found.predicted == pytest.approx(batch / step)


@pytest.mark.parametrize("layers", [8, 33])
def test_prefill_is_that_of_the_tables(layers: int) -> None:
    t, pick = tables("llama-3-8b-q4_k_m", (layers / 33,)), (0, 0, 0)
    chunks = 2 * (t.iter_const[pick] + t.stream_s[pick] + t.gpu_base[pick] + t.gpu_head[pick] + t.cpu_head[pick])
    whole = 1024 * t.prefill_gpu_stream[pick] + t.gpu_attn[pick] * 1024**2 / 2
    asked = row(operation="prefill", tokens=1024, n_gpu_layers=layers, date="2025-01")
    predicted = 1024 / predict(asked, SPECS, "desktop-ddr5").predicted
    # Attention of CPU layers runs on the GPU; the tables add the copy of their cache.
    slack = t.cpu_attn[pick] * 1024**2 / 2
    assert (chunks + whole) * (1 - 1e-12) <= predicted <= (chunks + whole + slack) * (1 + 1e-12)


def test_error_is_on_time_and_positive_where_too_slow() -> None:
    found = predict(row(), SPECS)
    assert predict(row(value=found.predicted * 1.1), SPECS).error == pytest.approx(0.1)
    seconds = predict(row(operation="load", unit="s", value=1.0, size_bytes=5 * 10**9), SPECS)
    slow = predict(row(operation="load", unit="s", value=seconds.predicted / 1.1, size_bytes=5 * 10**9), SPECS)
    assert slow.error == pytest.approx(0.1)


def test_old_rows_are_judged_by_old_launches() -> None:
    gpu = load_gpu("rtx-4090-24gb")
    old, new = (1 / predict(row(date=date), SPECS).predicted for date in ("2024-05", "2026-01"))
    assert old - new == pytest.approx(32 * (gpu.layer_eager_s.value - gpu.layer_s.value))


def test_what_is_not_known_widens_the_stated_error() -> None:
    known, unknown = (predict(row(n_gpu_layers=16), SPECS, host).spread for host in ("desktop-ddr5", None))
    assert unknown > known + 0.1
    measured, sheet = (predict(row(gpu=gpu), SPECS).spread for gpu in ("RTX A6000", "RTX 3060"))
    assert sheet > 2 * measured


# -- the command -------------------------------------------------------------------------------------------------------


def test_against_a_file_of_llama_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = tmp_path / "mine.csv"
    rows = [row(n_gpu_layers=n, value=v) for n, v in ((-1, 150.0), (16, 20.0))]
    schema.write(asked, [*rows, dataclasses.replace(rows[0], gpu="a GPU of mine")])
    assert validate.main([f"against={asked}", f"out={tmp_path / 'out'}", "host=desktop-ddr4"]) == 0
    text = capsys.readouterr().out
    assert "3 rows, 2 predicted" in text and "no profile of the GPU a GPU of mine" in text
    found = json.loads((tmp_path / "out" / "mine.against.json").read_text())
    assert [r["profiles"] for r in found["rows"]] == ["rtx-4090-24gb", "rtx-4090-24gb + desktop-ddr4"]
    assert found["rows"][0]["error"] == pytest.approx(150 / found["rows"][0]["predicted"] - 1, rel=1e-2)
    assert {line["kind"]: line["rows"] for line in found["summary"]} == {"decode, resident": 1, "decode, offloaded": 1}
    assert len(found["not predicted"]) == 1


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("llama_bench/run.json", []),
        ("published/decode_prefill.csv", []),
        ("ollama/generate.json", ["gpu=RTX 3090", "model=llama3.2:3b", "quant=Q4_K_M"]),
    ],
)
def test_against_reads_what_the_importers_read(tmp_path: Path, name: str, given: list[str]) -> None:
    assert validate.main([f"against={FIXTURES / name}", f"out={tmp_path}", *given]) == 0
    found = json.loads((tmp_path / f"{Path(name).stem}.against.json").read_text())
    assert len(found["rows"]) + len(found["not predicted"]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["agains=x.csv"], "unknown option 'agains' .did you mean 'against'"),
        (["x.csv"], "option 'x.csv'; accepted: against=VALUE"),
        (["against={file}", "tokens=many"], "tokens is 'many'; accepted: a whole number"),
        (["against=/nowhere.csv"], "/nowhere.csv: cannot be read"),
        (["against={file}", "host=mine"], "unknown host profile 'mine'"),
        (["against={file}", "out={file}/x"], "cannot be written"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, arguments: list[str], message: str) -> None:
    file = tmp_path / "rows.csv"
    schema.write(file, [row()])
    with pytest.raises(ConfigError, match=message):
        validate.main([argument.format(file=file) for argument in arguments])


@pytest.mark.skipif(DATA is None, reason="needs the collected tables: set MMSCHED_TEST_DATA")
def test_shipped_tables_are_the_collected_ones(tmp_path: Path) -> None:
    assert carry.main([f"{DATA}/measurements", str(tmp_path)]) == 0
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (fit.MEASUREMENTS / path.name).read_bytes(), path.name


def test_resident_rows_are_met_within_what_is_stated() -> None:
    rows = schema.read(fit.MEASUREMENTS / "decode_prefill.csv")
    found = []
    for one in rows:
        try:
            found.append(predict(one, SPECS))
        except Unusable:
            continue
    resident = [p for p in found if p.kind == "decode, resident"]
    assert len(resident) > 350
    assert np.median([abs(p.error) for p in resident]) < 0.04
    assert np.mean([abs(p.error) < 2 * p.spread for p in resident]) > 0.9


@pytest.mark.slow
def test_targets_of_what_is_left_out(tmp_path: Path) -> None:
    """docs/cost_model.md says which targets are met; these are."""
    assert validate.main([f"out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "validation.json").read_text())
    page = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "make_error_tables.py"))
    text = page["PAGE"].read_text()
    assert text == page["written"](text, found), "run python docs/make_error_tables.py"
    errors = found["errors"]

    def part(name: str) -> dict[str, float]:
        kind = next(lines for key, lines in errors.items() if key.startswith(name))
        return next(line for line in kind if line["part"] == "all discrete GPUs")

    for name, median, p90 in (
        ("decode, one model", 0.08, 0.2),
        ("decode, one GPU", 0.12, 0.25),
        ("prefill, one model", 0.15, 1.0),
    ):
        assert part(name)["median"] <= median and part(name)["p90"] <= p90, name
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "loads.png",
        "measured_predicted.png",
        "residuals.png",
        "sweeps.png",
    }
