"""Fitting: the closed forms are those of the generator, known settings are found again, and the named sets fit."""

from __future__ import annotations

import dataclasses
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from mmsched_env.workload import (
    Arena27Config,
    AzureTraceConfig,
    GeneratorConfig,
    MooncakeConfig,
    RequestTrace,
    source_from,
)
from mmsched_env.workload.fit import Row, compare, fit_bursts, fit_generator, fit_lengths, gap_cv, moments, yaml_of
from mmsched_env.workload.lengths import OutputConfig, PromptConfig
from mmsched_env.workload.modulation import BurstConfig
from mmsched_env.workload.servegen import ServeGenConfig
from mmsched_env.workload.stats import fano_of

DATA = os.environ.get("MMSCHED_TEST_DATA", "")
TRACES = Path(DATA, "traces")
CONF = Path(__file__).parents[2] / "conf" / "workload"
SETS = (
    "azure-conv-2023",
    "azure-code-2023",
    "arena27-fit",
    "mooncake-conv",
    "servegen-deepseek-r1",
    "servegen-mm-image",
)
IDS = tuple(f"id-{i}" for i in range(27))

TWO = (BurstConfig(3.0, 9.0, 0.1), BurstConfig(60.0, 40.0, 0.0))


def named(name: str) -> GeneratorConfig:
    settings = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    del settings["defaults"]
    source = source_from({"kind": "generator", **settings})
    assert isinstance(source, GeneratorConfig)
    return source


@pytest.mark.parametrize("bursts", [(), TWO[:1], TWO])
def test_closed_forms_are_those_of_the_generator(bursts: tuple[BurstConfig, ...]) -> None:
    source = GeneratorConfig(num_requests=60_000, rate_per_s=3.0, bursts=bursts)
    drawn = [source.sample(seed, ("a",)).arrival_s for seed in range(8)]
    cv, fano_1, fano_20 = moments(3.0, bursts, (1.0, 20.0))
    assert np.mean([gap_cv(t) for t in drawn]) == pytest.approx(cv, rel=0.03)
    assert np.mean([fano_of(t, 1.0) for t in drawn]) == pytest.approx(fano_1, rel=0.03)
    assert np.mean([fano_of(t, 20.0) for t in drawn]) == pytest.approx(fano_20, rel=0.05)


def test_poisson_needs_no_bursts_and_bursts_are_found() -> None:
    poisson = GeneratorConfig(num_requests=20_000, rate_per_s=3.0).sample(0, ("a",)).arrival_s
    assert fit_bursts(poisson) == ()
    bursty = GeneratorConfig(num_requests=60_000, rate_per_s=3.0, bursts=TWO[:1]).sample(0, ("a",)).arrival_s
    (found,) = fit_bursts(bursty)
    assert found.on_s == pytest.approx(3.0, rel=0.3) and found.off_s == pytest.approx(9.0, rel=0.3)
    assert found.off_rate == pytest.approx(0.1, abs=0.06)


@pytest.mark.parametrize("tokens", [np.full(50, 7), np.repeat([1, 2, 900], [60, 30, 10]), np.arange(1, 5000)])
def test_fitted_lengths_have_the_quantiles(tokens: np.ndarray) -> None:
    fitted = fit_lengths(tokens, PromptConfig())
    fitted.check("x")
    drawn = fitted.draw(np.random.default_rng(0), 40_000)
    for q in (5, 50, 95):
        assert np.percentile(drawn, q) == pytest.approx(np.percentile(tokens, q), rel=0.05, abs=0.5)
    assert drawn.max() <= tokens.max()
    assert sum(fitted.weights) == pytest.approx(1, abs=1e-3)


def test_a_fit_is_written_and_read_back() -> None:
    trace = GeneratorConfig(num_requests=3000, multimodal=("b",)).sample(0, ("a", "b"))
    fitted = fit_generator(trace)
    settings = yaml.safe_load(yaml_of(fitted, "a\nb"))
    del settings["defaults"]
    assert source_from({"kind": "generator", **settings}) == fitted
    rows = {row.figure: row for row in compare(trace, fitted, 20)}
    assert all(rows[name].ok for name in ("cv", "prompt_p50", "prompt_p95", "output_p50", "image_p50", "image_p95"))
    assert rows["top1_share"].mean == pytest.approx(rows["top1_share"].real, abs=0.02)


def test_rows_judge() -> None:
    assert Row("x", 1.0, 1.019, 0, 0, "2 %").ok and not Row("x", 1.0, 1.021, 0, 0, "2 %").ok
    assert Row("x", 1.0, 9.0, 0.9, 1.1, "band").ok and not Row("x", 1.0, 1.0, 1.1, 1.2, "band").ok
    assert Row("x", 0.0, 9.0, 0, 0, "").ok


@pytest.mark.parametrize("name", SETS)
def test_named_sets_are_settings_of_the_generator(name: str) -> None:
    config = named(name)
    trace = dataclasses.replace(config, num_requests=3000).sample(0, ("a", "b"))
    assert len(trace) == 3000 and set(trace.max_tokens) == {config.output.max}


def recorded(name: str, folder: Path) -> RequestTrace:
    if name.startswith("azure"):
        out = {"code_file": ""} if "conv" in name else {"conv_file": ""}
        return AzureTraceConfig(path=str(TRACES / "azure_llm_2023"), **out).sample(0, ("m",))
    if name == "arena27-fit":
        return Arena27Config(path=str(TRACES / "arena27_slora_vtc_prism" / "arena27_requests.csv")).sample(0, IDS)
    if name == "mooncake-conv":
        path = TRACES / "mooncake_fast25" / "conversation_trace.jsonl"
        return MooncakeConfig(path=str(path)).sample(0, ("m",))
    with tarfile.open(TRACES / "servegen" / "raw_windows" / f"{name.removeprefix('servegen-')}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    hour = int((CONF / f"{name}.yaml").read_text().split("in hour ")[1].split()[0])
    path = next(folder.rglob("chunk-0-trace.csv")).parent
    return ServeGenConfig(path=str(path), start_s=3600.0 * hour, duration_s=3600.0).sample(0, ("m",))


@pytest.mark.slow
@pytest.mark.skipif(not (DATA and TRACES.is_dir()), reason="needs the real traces: set MMSCHED_TEST_DATA")
@pytest.mark.parametrize("name", SETS)
def test_named_sets_fit_their_traces(name: str, tmp_path: Path) -> None:
    """As docs/workload_fits.md says, over other draws than those it was written from."""
    trace = recorded(name, tmp_path)
    config = dataclasses.replace(named(name), multimodal=trace.model_names)
    missed = [row for row in compare(trace, config, 200, first_seed=5000) if not row.ok]
    assert not missed


def test_output_config_is_the_default_kind() -> None:
    assert isinstance(fit_lengths(np.arange(1, 100), OutputConfig()), OutputConfig)
