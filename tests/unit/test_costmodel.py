"""The cost tables: published figures reproduced, invariants of the arrays, the paper's findings, unloaded latency."""

from __future__ import annotations

import csv
import dataclasses
import itertools

import numpy as np
import pytest

from mmsched_env.config import ClusterConfig, EnvConfig, ModelsConfig
from mmsched_env.core import Simulation
from mmsched_env.costmodel import roofline
from mmsched_env.costmodel.latency import unloaded_latency
from mmsched_env.costmodel.number import Curve
from mmsched_env.costmodel.profile import PROFILES, catalogue, load_gpu, load_host, load_model
from mmsched_env.costmodel.tables import CostTables, build_tables, fitting_levels
from mmsched_env.errors import ConfigError
from mmsched_env.sim.events import NAMES
from mmsched_env.workload import RequestTrace

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
GPU_OF = {"RTX A6000": 0, "RTX 5000 Ada": 1, "RTX 4090": 2}
MODEL_OF = {"Q4_K_M": 0, "F16": 1}


@pytest.fixture(scope="module")
def default() -> CostTables:
    return build_tables(ClusterConfig(), ModelsConfig(), LEVELS, 16)


@pytest.fixture(scope="module")
def llama() -> CostTables:
    return build_tables(ClusterConfig(), ModelsConfig(("llama-3-8b-q4_k_m", "llama-3-8b-f16")), LEVELS, 16)


def measured(table: str, **wanted: str) -> list[dict[str, str]]:
    """Rows of a measurement table with these cells."""
    with (PROFILES.parent / "measurements" / f"{table}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def published(operation: str) -> list[tuple[int, int, int, float]]:
    """(model, gpu, tokens, tokens/s) of the Llama 3 8B rows of spring 2024 on GPUs of the default cluster."""
    rows = measured("decode_prefill", operation=operation, model="LLaMA-3 8B", num_gpus="1", date="2024-05")
    picked = [row for row in rows if row["gpu"] in GPU_OF]
    assert len(picked) == 24
    return [(MODEL_OF[r["quant"]], GPU_OF[r["gpu"]], int(r["tokens"]), float(r["value"])) for r in picked]


def eager(g: int) -> tuple[float, float]:
    """What 32 launches took longer then, and attention by how much."""
    gpu = load_gpu(ClusterConfig().gpus[g])
    return 32 * (gpu.layer_eager_s.value - gpu.layer_s.value), gpu.attention.value / gpu.attention_eager.value


def test_published_decode_rates_are_reproduced(llama: CostTables) -> None:
    for m, g, tokens, rate in published("decode"):
        pick = (m, g, -1)
        step = llama.iter_const[pick] + llama.gpu_base[pick] + llama.gpu_head[pick] + eager(g)[0]
        mean_context = (tokens + 1) / 2
        assert 1 / (step + llama.gpu_kv[pick] * mean_context) == pytest.approx(rate, rel=0.03)


def test_published_prefill_rates_are_reproduced(llama: CostTables) -> None:
    for m, g, tokens, rate in published("prefill"):
        pick = (m, g, -1)
        launches, attention = eager(g)
        chunk = llama.iter_const[pick] + llama.gpu_base[pick] + llama.gpu_head[pick] + launches
        pairs = llama.gpu_attn[pick] * attention * tokens**2 / 2
        seconds = tokens / 512 * chunk + tokens * llama.prefill_gpu[pick] + pairs
        assert tokens / seconds == pytest.approx(rate, rel=0.10)


def test_paper_preemption_costs(default: CostTables) -> None:
    """Reloading Qwen2.5 3B and 14B at F16 on the paper's GPUs: 2.6 and 7.3 s."""
    tables = build_tables(
        ClusterConfig(gpus=("rtx-a6000-48gb",), gpu_hosts=(0,)),
        ModelsConfig(("qwen2.5-3b-f16", "qwen2.5-14b-f16")),
        LEVELS,
        1,
    )
    reload = tables.init_s[:, 0] + tables.gpu_weight_bytes[:, -1] / tables.link_in_cap[:, 0] + tables.unload_s[:, 0, -1]
    np.testing.assert_allclose(reload, [2.6, 7.3], rtol=0.05)


def test_arrays_are_finite_and_positive_where_physical(default: CostTables) -> None:
    for f in dataclasses.fields(default):
        array = getattr(default, f.name)
        finite = f.name == "depth_knot" or np.isfinite(array).all()  # knots that are not used are at infinity
        assert finite and (array >= 0).all(), f.name
    for name in ("iter_const", "unload_s", "init_s", "link_in_cap", "disk_cap", "kv_in_cap", "kv_out_cap", "save_s"):
        assert (getattr(default, name) > 0).all(), name
    assert (default.prefill_gpu_stream > 0).all() and (default.gpu_base[:, :, 1:] > 0).all()
    assert (default.cpu_base[:, :, :-1] > 0).all() and (default.cpu_base[:, :, -1] == 0).all()


def test_shapes_and_types(default: CostTables) -> None:
    m, g, k, b, h = 7, 4, 5, 16, 2
    assert default.gpu_weight_bytes.shape == (m, k) and default.iter_const.shape == (m, g, k)
    assert default.batch_gpu.shape == default.batch_cpu.shape == (m, g, b)
    assert default.host_bytes.shape == (h,) and default.encode_s.shape == (m, g)
    integers = ("num_units", "units_on_gpu", "gpu_weight_bytes", "gpu_bytes", "gpu_host", "stream_min_tokens")
    assert all(getattr(default, name).dtype == np.int64 for name in integers)


def test_both_sides_add_up_to_the_file(default: CostTables) -> None:
    for m, name in enumerate(ModelsConfig().names):
        model = load_model(name)
        both = default.gpu_weight_bytes[m] + default.cpu_weight_bytes[m]
        rest = model.architecture.embedding_bytes(model.quant)
        np.testing.assert_allclose(both + rest, default.file_bytes[m], rtol=1e-8)
        assert np.ptp(default.kv_gpu_bytes[m] + default.kv_cpu_bytes[m]) == 0
        assert default.units_on_gpu[m, 0] == 0 and default.units_on_gpu[m, -1] == default.num_units[m]


def test_work_is_conserved_over_levels(default: CostTables) -> None:
    """Layers move from one side to the other: each side's time is linear in its own layers, the head on one side."""
    layers = np.minimum(default.units_on_gpu, default.num_units[:, None] - 1)[:, None, :]
    per_layer = default.gpu_base[:, :, -1:] / layers[:, :, -1:]
    np.testing.assert_allclose(default.gpu_base, per_layer * layers)
    assert ((default.gpu_head > 0) != (default.cpu_head > 0)).all()


def test_offloading_hurts_and_hurts_more_than_linearly(default: CostTables) -> None:
    """The paper's first finding: decode rate falls with every layer that leaves, most with the first ones."""
    step = default.iter_const + default.gpu_base + default.gpu_head + default.cpu_base + default.cpu_head
    rate = 1 / step
    assert (np.diff(rate, axis=2) > 0).all()
    assert (np.diff(rate, axis=2)[:, :, -1] > 2 * np.diff(rate, axis=2)[:, :, 0]).all()


def test_of_layers_with_linear_attention_each_group_ends_in_one_that_has_a_cache() -> None:
    """Qwen3.5 9B: 32 layers, every fourth attends; the last ones are on the GPU, as llama.cpp places them."""
    model = load_model("qwen3.5-9b-q4_k_m")
    token = model.architecture.kv_layer_bytes
    on_cpu = [roofline.kv_bytes(model, n)[1] // token for n in (33, 32, 25, 24, 1, 0)]
    assert on_cpu == [0, 0, 1, 2, 7, 8]
    assert all(sum(roofline.kv_bytes(model, n)) == 8 * token for n in range(34))
    assert [roofline.sides(model, n)[1].linear for n in (33, 25, 24, 0)] == [0, 6, 6, 24]
    gpu, host = load_gpu("gtx-1660-ti-6gb"), load_host("desktop-ddr5")
    base = [roofline.decode_costs(model, gpu, host, n)["cpu_base"] for n in (25, 24, 23)]
    layer = model.layer_bytes / host.read.value
    assert base[1] - base[0] == pytest.approx(layer)  # the seventh layer attends: no state to bring up to date
    assert base[2] - base[1] == pytest.approx(layer + host.linear_layer_s.value)


def test_only_the_vision_model_encodes_images(default: CostTables) -> None:
    vision = np.array(["-vl-" in name for name in ModelsConfig().names])
    assert (default.encode_s[vision] > 0).all() and (default.encode_s[~vision] == 0).all()
    assert (default.gpu_weight_bytes[vision, 0] > 0).all() and (default.gpu_weight_bytes[~vision, 0] == 0).all()


def test_model_that_fits_nowhere_is_refused() -> None:
    cluster = ClusterConfig(gpus=("rtx-3060-12gb",), hosts=("desktop-ddr4",), gpu_hosts=(0,), kv_swap_fraction=0.6)
    with pytest.raises(ConfigError, match=r"models\.names\[0\] 'llama-2-70b-q4_k_m' fits on no GPU"):
        build_tables(cluster, ModelsConfig(("llama-2-70b-q4_k_m",)), (0.0, 1.0), 4)
    roomy = dataclasses.replace(cluster, kv_swap_fraction=0.25)
    tables = build_tables(roomy, ModelsConfig(("llama-2-70b-q4_k_m",)), (0.0, 1.0), 4)
    assert fitting_levels(tables, 0.25).tolist() == [[[True, False]]]


# -- mixture of experts ------------------------------------------------------------------------------------------------

EXPERTS = ("qwen3-30b-a3b-f16", "qwen3-30b-a3b-q4_k_m", "mixtral-8x7b-q4_k_m", "qwen3.5-35b-a3b-q4_k_m")


@pytest.fixture(scope="module")
def experts() -> CostTables:
    """Mixtures of experts at every number of layers with their experts on the GPU that a level can name."""
    cluster = ClusterConfig(("rtx-4090-24gb", "rtx-5060-ti-16gb"), ("desktop-ddr5",), (0, 0))
    return build_tables(cluster, ModelsConfig(EXPERTS), LEVELS, 4)


def test_expert_levels_move_experts_only(experts: CostTables) -> None:
    for m, name in enumerate(EXPERTS):
        model, units = load_model(name), experts.units_on_gpu[m]
        arch = model.architecture
        assert experts.num_units[m] == arch.layers == units[-1] and units[0] == 0
        one = arch.num_experts * model.expert_bytes
        np.testing.assert_allclose(experts.cpu_weight_bytes[m], (arch.layers - units) * one, rtol=1e-8)
        fixed = arch.layers * model.layer_bytes + model.head_bytes
        np.testing.assert_allclose(experts.gpu_weight_bytes[m], fixed + units * one, rtol=1e-8)
        both = experts.gpu_weight_bytes[m] + experts.cpu_weight_bytes[m] + arch.embedding_bytes(model.quant)
        np.testing.assert_allclose(both, experts.file_bytes[m], rtol=1e-8)
    assert (experts.kv_cpu_bytes == 0).all() and (np.ptp(experts.kv_gpu_bytes, axis=1) == 0).all()
    for name in ("cpu_head", "cpu_kv", "cpu_attn"):
        assert (getattr(experts, name) == 0).all(), name


def test_decode_reads_the_active_experts(experts: CostTables) -> None:
    """Qwen3 30B at F16: 8 of 128 experts of 3 x 2048 x 768 weights in each of 48 layers."""
    active = 48 * 8 * 3 * 2048 * 768 * 2
    host, gpu = load_host("desktop-ddr5"), load_gpu("rtx-4090-24gb")
    assert experts.cpu_base[0, 0, 0] == pytest.approx(active / host.read.value)
    assert experts.cpu_base[0, 0, -1] == 0
    moved = experts.gpu_base[0, 0, -1] - experts.gpu_base[0, 0, 0]
    assert moved == pytest.approx(active / gpu.read["f16"].value)
    outside = 48 * (2048 * 128 * (32 + 4 + 4 + 32) * 2 + 4 * (2048 * 128 + 2 * 2048 + 2 * 128))
    assert experts.gpu_base[0, 0, 0] == pytest.approx(outside / gpu.read["f16"].value)


def test_prompts_read_all_experts(experts: CostTables) -> None:
    every = 48 * 128 * 3 * 2048 * 768 * 2
    gpu = load_gpu("rtx-4090-24gb")
    assert experts.stream_s[0, 0, 0] == pytest.approx(every / gpu.stream.value) and experts.stream_s[0, 0, -1] == 0
    read = every / gpu.read["f16"].value
    assert experts.gpu_base[0, 0, -1] + 512 * experts.prefill_gpu[0, 0, -1] > read
    np.testing.assert_allclose(experts.prefill_gpu[:, :, -1], experts.prefill_gpu_stream[:, :, -1])


def test_each_layer_of_experts_enters_the_cpu(experts: CostTables) -> None:
    gpu = load_gpu("rtx-4090-24gb")
    on_cpu = (experts.num_units[:, None] - experts.units_on_gpu) * gpu.expert_entry_s.value
    linear = [0, 0, 0, 30 / 40]  # share of the layers with linear attention
    kinds = [1 - x + x * gpu.linear_launch.value + gpu.expert_launch.value for x in linear]
    launches = experts.num_units[:, None] * np.array(kinds)[:, None] * gpu.layer_s.value
    np.testing.assert_allclose(experts.iter_const[:, 0], on_cpu + launches)


def expert_rows(series: str, operation: str) -> list[tuple[int, float]]:
    """(layers whose experts are on the CPU, tokens/s) of a sweep on the RTX 5060 Ti."""
    rows = measured("offload_sweeps", series=series, operation=operation)
    return [(int(row["n_cpu_moe"]), float(row["value"])) for row in rows]


def expert_step(gpu: str, on_cpu: int) -> tuple[dict[str, float], dict[str, float]]:
    """Decode and prefill terms of Qwen3.5 35B (the shape of Qwen3.6 35B) on a DDR5 desktop."""
    model, host = load_model("qwen3.5-35b-a3b-q4_k_m"), load_host("desktop-ddr5")
    on_gpu = model.architecture.layers - on_cpu
    costs = (roofline.decode_costs, roofline.prefill_costs)
    decode, prefill = (cost(model, load_gpu(gpu), host, on_gpu) for cost in costs)
    return decode, prefill


def test_published_expert_sweep_is_predicted() -> None:
    """Its host is not named and taken to be the DDR5 desktop, whose rate is another machine's: 20 %."""
    rows = expert_rows("S30", "decode")
    assert [n for n, _ in rows] == [40, 36, 33, 30]
    for on_cpu, rate in rows:
        decode, _ = expert_step("rtx-5060-ti-16gb", on_cpu)
        step = sum(value for name, value in decode.items() if not name.endswith("kv"))
        assert 1 / step == pytest.approx(rate, rel=0.2)
        once = step - (on_cpu - 1) * load_gpu("rtx-5060-ti-16gb").expert_entry_s.value
        assert 1 / once > 1.2 * rate  # entered once an iteration, as by a dense model
    decode, _ = expert_step("rtx-4090-24gb", 0)  # 180 tokens/s with everything on the GPU
    assert 1 / sum(value for name, value in decode.items() if not name.endswith("kv")) == pytest.approx(180, rel=0.08)


def test_simulated_experts_take_what_the_tables_say() -> None:
    cluster = ClusterConfig(("rtx-a6000-48gb",), ("desktop-ddr5",), (0,))
    sim = Simulation(EnvConfig(cluster=cluster, models=ModelsConfig(EXPERTS[1:])), 1, logging=True)
    for m, level in itertools.product(range(3), range(5)):
        trace = RequestTrace.from_columns(EXPERTS[1:], arrival_s=[0.0], model=[m], prompt_tokens=[520], output_tokens=9)
        sim.reset(0, trace)
        sim.step(np.array([sim.layout.dispatch(0, 0, level)]))
        while not sim.episode_requests(0)["finish_s"][0] > 0:
            sim.step(np.array([0]))
        log = sim.event_log(0)
        loaded = log["time_s"][log["kind"] == NAMES.index("load_end")][0]
        wanted = by_loop(sim.tables, m, 0, level, 520, 9, 512)
        times = sim.episode_requests(0)[["first_token_s", "finish_s"]][0]
        np.testing.assert_allclose([t - loaded for t in times], wanted, rtol=1e-9)


def test_every_catalogue_entry_can_be_used() -> None:
    names = catalogue()
    cluster = ClusterConfig(tuple(names["gpu"]), tuple(names["host"]), tuple(0 for _ in names["gpu"]), 0.0)
    small = tuple(n for n in names["model"] if load_model(n).file_bytes < 50e9)
    tables = build_tables(cluster, ModelsConfig(small), LEVELS, 64)
    names_of = [f.name for f in dataclasses.fields(tables) if f.name != "depth_knot"]
    assert all(np.isfinite(getattr(tables, name)).all() for name in names_of)


def test_batch_table_interpolates_and_extrapolates() -> None:
    curve = Curve(((1.0, 1.0), (2.0, 3.0), (4.0, 4.0)), "relative", "assumed", "test")
    np.testing.assert_allclose(roofline.batch_table(curve, 6), [1, 3, 3.5, 4, 4.5, 5])
    np.testing.assert_allclose(roofline.batch_table(curve, 1), [1])


def test_a_batch_reaches_more_experts() -> None:
    """Mixtral, 2 of 8: two tokens at random reach 4 (1 - (3/4)^2) = 1.75 times as many as one; all of them in the end."""
    model = load_model("mixtral-8x7b-q4_k_m")
    batches = np.array([1.0, 2.0, 1e4])
    assert roofline.experts_reached(model, batches, 1.0) == pytest.approx([1, 1.75, 4])
    assert roofline.experts_reached(model, batches, 0.5)[2] == pytest.approx(2)


def test_batches_of_experts_take_longer_than_of_a_dense_model() -> None:
    gpu, host = load_gpu("rtx-4090-24gb"), load_host("desktop-ddr5")
    dense = roofline.batch_tables(load_model("llama-3-8b-q4_k_m"), gpu, host, 32)
    assert (dense[0] == roofline.batch_table(gpu.batch, 32)).all() and (
        dense[1] == roofline.batch_table(host.batch, 32)
    ).all()
    on_gpu, on_cpu = roofline.batch_tables(load_model("qwen3-30b-a3b-q4_k_m"), gpu, host, 32)
    for table in (on_gpu, on_cpu):
        assert table[0] == 1 and (np.diff(table) > 0).all()
    assert (on_gpu[1:] > 1.2 * dense[0][1:]).all()
    assert (on_gpu <= np.arange(1, 33)).all()  # no slower than one after the other
    t = build_tables(ClusterConfig(("rtx-4090-24gb",), ("desktop-ddr5",), (0,)), ModelsConfig(EXPERTS[1:]), LEVELS, 32)
    again = roofline.batch_tables(load_model(EXPERTS[1]), gpu, host, 32)
    assert (t.batch_gpu[0, 0] == again[0]).all() and (t.batch_cpu[0, 0] == again[1]).all()


def test_level_units_round_halves_up() -> None:
    assert [roofline.level_units(level, 17) for level in (0, 0.25, 0.5, 0.75, 1)] == [0, 4, 9, 13, 17]


# -- unloaded latency --------------------------------------------------------------------------------------------------


def by_loop(t: CostTables, m: int, g: int, k: int, context: int, output: int, ubatch: int) -> tuple[float, float]:
    """The contract of CostTables followed token by token."""
    pick, done, first = (m, g, k), 0, 0.0
    while done < context:
        p = min(ubatch, context - done)
        a = p * done + p * p / 2
        first += t.iter_const[pick] + t.gpu_base[pick] + t.gpu_head[pick] + t.cpu_head[pick]
        first += (t.gpu_attn[pick] + t.cpu_attn[pick]) * a
        if p >= t.stream_min_tokens[g]:
            first += t.stream_s[pick] + p * t.prefill_gpu_stream[pick]
        else:
            first += t.cpu_base[pick] + p * (t.prefill_gpu[pick] + t.prefill_cpu[pick])
        done += p
    total = first
    for i in range(output - 1):
        step = t.iter_const[pick] + t.gpu_base[pick] * t.batch_gpu[m, g, 0] + t.gpu_head[pick]
        step += t.cpu_base[pick] * t.batch_cpu[m, g, 0] + t.cpu_head[pick]
        total += step + (t.gpu_kv[pick] + t.cpu_kv[pick]) * (context + 1 + i)
    return float(first), float(total)


@pytest.fixture(scope="module")
def small() -> CostTables:
    """One GPU on which the bigger models run with layers on both sides."""
    cluster = ClusterConfig(gpus=("rtx-5060-ti-16gb",), hosts=("desktop-ddr5",), gpu_hosts=(0,))
    return build_tables(cluster, ModelsConfig(), LEVELS, 4)


@pytest.mark.parametrize("cluster", ["default", "small", "experts"])
@pytest.mark.parametrize(("prompt", "output"), [(1, 1), (20, 3), (512, 2), (513, 40), (1500, 200)])
def test_closed_form_equals_the_loop(cluster: str, prompt: int, output: int, request: pytest.FixtureRequest) -> None:
    tables: CostTables = request.getfixturevalue(cluster)
    room = fitting_levels(tables, 0.0, prompt + output)
    for m in range(len(tables.num_units)):
        levels = [max(np.flatnonzero(row), default=None) for row in room[m]]
        runs = [by_loop(tables, m, g, int(k), prompt, output, 512) for g, k in enumerate(levels) if k is not None]
        want = min(runs, key=lambda run: run[1])
        one = [np.array([x]) for x in (m, prompt, 0, output)]
        ttft, e2e = unloaded_latency(tables, *one, 512)
        np.testing.assert_allclose((ttft[0], e2e[0]), want, rtol=1e-9)


def test_images_are_encoded_then_join_the_prompt(default: CostTables) -> None:
    vision = ModelsConfig().names.index("qwen2.5-vl-7b-q4_k_m")
    m, out = np.full(2, vision), np.full(2, 1)
    ttft, e2e = unloaded_latency(default, m, np.array([100, 400]), np.array([300, 0]), out, 512)
    assert default.encode_s[vision].min() * 300 <= ttft[0] - ttft[1] <= default.encode_s[vision].max() * 300
    np.testing.assert_array_equal(ttft, e2e)


def test_request_too_long_for_every_gpu_stays_finite(default: CostTables) -> None:
    last = np.array([len(default.num_units) - 1])
    ttft, e2e = unloaded_latency(default, last, np.array([10**7]), np.array([0]), np.array([10]), 512)
    assert 0 < ttft[0] < e2e[0] < np.inf
