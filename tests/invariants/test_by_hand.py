"""Micro-scenarios with known times: against the token-by-token reference simulator, and against sums written out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mmsched_env.core
from mmsched_env.core import Simulation
from mmsched_env.costmodel.tables import CostTables
from mmsched_env.sim.events import NAMES
from tests.reference.costs import depth
from tests.reference.parts import WAIT, Settings, Yardsticks
from tests.reference.simulator import Reference

GB = 10**9
UBATCH = 100
FULL = 4  # level 1.0
HALF = 2  # level 0.5


def hand_tables(num_gpus: int = 2) -> CostTables:
    """Three models of 8 units, different in every number; memory for everything; a shared disk and links."""
    M, G, K, B = 3, num_gpus, 5, 16
    m, g, k = np.arange(M)[:, None, None], np.arange(G)[None, :, None], np.arange(K)[None, None, :]
    size, slow, on_gpu = 1.0 + m, 1.0 + 0.3 * g, k / (K - 1)
    full = on_gpu == 1
    units = np.tile(2 * np.arange(K), (M, 1))
    weights = (np.arange(M)[:, None] + 1) * GB
    ones = np.ones((M, G, K))
    return CostTables(
        num_units=np.full(M, 8),
        units_on_gpu=units,
        gpu_weight_bytes=weights * units // 8,
        cpu_weight_bytes=weights - weights * units // 8,
        file_bytes=weights[:, 0] + 100_000_000,
        buffer_bytes=np.full(M, 50_000_000),
        kv_gpu_bytes=8000 * units,
        kv_cpu_bytes=8000 * (8 - units),
        iter_const=0.001 * ones + 0.0005 * on_gpu,
        gpu_base=0.011 * size * slow * on_gpu,
        gpu_head=0.003 * slow * full * ones,
        gpu_kv=7e-6 * size * slow * on_gpu,
        cpu_base=0.053 * size * (1 - on_gpu) * np.ones((1, G, 1)),
        cpu_head=0.005 * ~full * ones,
        cpu_kv=3e-5 * size * (1 - on_gpu) * np.ones((1, G, 1)),
        batch_gpu=np.tile(1 + 0.17 * np.arange(B), (M, G, 1)),
        batch_cpu=np.tile(1 + 0.61 * np.arange(B), (M, G, 1)),
        depth_knot=np.tile([0.0, 70.5, 300.0, np.inf], (M, G, 1)),
        depth_gpu=np.tile([1.0, 1.4, 2.2, 1.0], (M, G, 1)),
        depth_cpu=np.tile([1.0, 1.0, 3.0, 1.0], (M, G, 1)),
        prefill_gpu=2e-4 * size * slow * on_gpu,
        prefill_gpu_stream=2.1e-4 * size * slow * ones,
        prefill_cpu=3e-3 * size * (1 - on_gpu) * np.ones((1, G, 1)),
        stream_s=0.07 * size * (1 - on_gpu) * np.ones((1, G, 1)),
        gpu_attn=1.3e-7 * size * slow * on_gpu,
        cpu_attn=4.1e-7 * size * (1 - on_gpu) * np.ones((1, G, 1)),
        encode_s=np.array([0.0, 2e-4, 0.0])[:, None] * np.ones((1, G)),
        init_s=np.array([0.8, 1.1, 1.7])[:, None] * np.ones((1, G)),
        unload_s=0.13 + 0.01 * k + 0 * m + 0 * g + 0.0,
        save_s=np.full(G, 0.002),
        disk_cap=np.array([2.0e9, 2.5e9, 0.7e9])[:, None] * np.ones((1, G)),
        link_in_cap=np.array([5.0e9, 6.0e9, 2.0e9])[:, None] * np.ones((1, G)),
        kv_in_cap=np.full(G, 9e8),
        kv_out_cap=np.full(G, 6e8),
        gpu_bytes=np.full(G, 30 * GB),
        host_bytes=np.full(1, 100 * GB),
        link_in_rate=np.full(G, 7.0e9),
        link_out_rate=np.full(G, 8.0e9),
        disk_rate=np.full(1, 3.0e9),
        operation_share=np.zeros(G),
        interference=np.zeros(1),
        gpu_host=np.zeros(G, np.int64),
        stream_min_tokens=np.full(G, 64),
    )


TABLES = hand_tables()


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmsched_env.core, "build_tables", lambda *args: TABLES)


class Run:
    """One episode: `choose(sim)` names an action index, None waits."""

    def __init__(self, config: Any, trace: Any, choose: Callable[[Run], int | None]) -> None:
        self.sim = sim = Simulation(config, 1, logging=True)
        self.layout = sim.layout
        sim.reset(0, trace)
        for _ in range(10_000):
            action = choose(self) or 0
            assert sim.current.mask[0, action], f"{self.layout.decode(action)} is illegal"
            outcome = sim.step(np.array([action]))[0]
            if outcome.terminated:
                break
        self.records = sim.episode_requests(0)
        self.log = sim.event_log(0)

    @property
    def now(self) -> float:
        return float(self.sim.state["now"][0])

    def window(self) -> list[int]:
        return [int(j) for j in self.sim.state["window"][0] if j >= 0]

    def times(self, name: str) -> list[float]:
        return self.log["time_s"][self.log["kind"] == NAMES.index(name)].tolist()


def scripted(script: list[tuple[int, int]]) -> Callable[[Run], int | None]:
    """Dispatch every request as it arrives, request j to (GPU, level) script[j]."""

    def choose(run: Run) -> int | None:
        waiting = run.window()
        return run.layout.dispatch(0, *script[waiting[0]]) if waiting else None

    return choose


def reference(config: Any, trace: Any, script: list[tuple[int, int]]) -> Reference:
    """The same in the reference simulator. No targets: nothing here depends on them."""
    sim = config.sim
    settings = Settings((0, 0), prefill_mode=sim.prefill_mode, ubatch_tokens=sim.ubatch_tokens)
    simulator = Reference(TABLES, trace, settings, [Yardsticks(np.inf, np.inf, np.inf, 1.0)] * len(trace))
    while not simulator.ended:
        waiting = simulator.window()
        simulator.act(("dispatch", 0, *script[waiting[0].index]) if waiting else WAIT)
    return simulator


def agree(config: Any, trace: Any, script: list[tuple[int, int]]) -> Run:
    run, expected = Run(config, trace, scripted(script)), reference(config, trace, script).requests
    np.testing.assert_allclose(run.records["first_token_s"], [r.first_token_s for r in expected], rtol=1e-9)
    np.testing.assert_allclose(run.records["finish_s"], [r.finish_s for r in expected], rtol=1e-9)
    return run


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("model", range(3))
def test_one_request_alone(tiny: Any, trace_of: Any, model: int, level: int) -> None:
    """Load, image encoder, three prompt chunks (the last below the streaming limit at 250 tokens), decode."""
    image = 40 if model == 1 else 0
    trace = trace_of(
        arrival_s=[1.5], model=[model], prompt_tokens=[250 - image], image_tokens=[image], output_tokens=[37]
    )
    run = agree(tiny(ubatch_tokens=UBATCH), trace, [(0, level)])
    t, at = TABLES, (model, 0, level)
    loaded = 1.5 + t.init_s[model, 0] + t.file_bytes[model] / t.disk_cap[model, 0]
    loaded += t.gpu_weight_bytes[model, level] / t.link_in_cap[model, 0]
    assert run.times("load_end") == pytest.approx([loaded], rel=1e-12)
    end = loaded + image * t.encode_s[model, 0]
    for done, tokens in ((0, 100), (100, 100), (200, 50)):
        area = tokens * done + tokens**2 / 2
        end += (
            t.iter_const[at] + t.gpu_base[at] + t.gpu_head[at] + t.cpu_head[at] + (t.gpu_attn + t.cpu_attn)[at] * area
        )
        if level < FULL and tokens >= 64:
            end += t.stream_s[at] + tokens * t.prefill_gpu_stream[at]
        else:
            end += t.cpu_base[at] + tokens * (t.prefill_gpu + t.prefill_cpu)[at]
    assert run.records["first_token_s"][0] == pytest.approx(end, rel=1e-9)
    for generated in range(1, 37):
        end += t.iter_const[at] + t.gpu_base[at] + t.gpu_head[at] + t.cpu_base[at] + t.cpu_head[at]
        end += kv_seconds(at, 250 + generated)
    assert run.records["finish_s"][0] == pytest.approx(end, rel=1e-9)


@pytest.mark.parametrize("mode", ["mixed", "prefill_first"])
def test_second_request_joins_at_the_end_of_an_iteration(tiny: Any, trace_of: Any, mode: str) -> None:
    trace = trace_of(arrival_s=[0.0, 4.123, 4.3], prompt_tokens=[150, 220, 10], output_tokens=[200, 30, 1])
    run = agree(tiny(ubatch_tokens=UBATCH, prefill_mode=mode), trace, [(0, HALF)] * 3)
    starts = run.times("start")
    assert starts[1] > 4.123 and starts[2] > 4.3


def test_two_instances_share_gpu_and_cpu(tiny: Any, trace_of: Any) -> None:
    trace = trace_of(arrival_s=[0.0, 0.5], model=[0, 1], prompt_tokens=[90, 80], output_tokens=[400, 300])
    config = tiny(ubatch_tokens=UBATCH)
    shared = agree(config, trace, [(0, HALF), (0, HALF)])
    apart = agree(config, trace, [(0, FULL), (1, FULL)])
    alone = agree(config, trace.select(slice(0, 1)), [(0, FULL)])
    assert apart.records["finish_s"][0] == pytest.approx(alone.records["finish_s"][0], rel=1e-12)
    assert shared.records["finish_s"][0] > 1.5 * apart.records["finish_s"][0]


def test_three_loads_share_disk_and_link_max_min(tiny: Any, trace_of: Any) -> None:
    trace = trace_of(arrival_s=[0.0, 0.1, 0.2], model=[0, 1, 2], prompt_tokens=8, output_tokens=2)
    run = agree(tiny(ubatch_tokens=UBATCH), trace, [(0, FULL)] * 3)
    # from 1.2 s on models 0 and 1 read together: 1.5e9 bytes/s each; model 2 joins at 1.9 s, capped at 0.7e9
    t = TABLES
    read0 = 0.8 + (1.2 - 0.8) + (t.file_bytes[0] - 0.4 * 2.0e9) / 1.5e9
    assert run.times("load_end")[0] == pytest.approx(read0 + t.gpu_weight_bytes[0, FULL] / 5.0e9, rel=1e-12)


def two_models(monkeypatch: pytest.MonkeyPatch, config: Any, trace: Any, gpu: int, **changes: Any) -> tuple[Run, Any]:
    """Request 0 (model 0, GPU 0) decodes throughout; request 1 (model 1) comes to `gpu` at 30 s. Also: the tables."""
    tables = dataclasses.replace(TABLES, **changes)
    monkeypatch.setattr(mmsched_env.core, "build_tables", lambda *args: tables)
    return Run(config, trace, scripted([(0, FULL), (gpu, FULL)])), tables


def test_busy_gpus_of_a_host_slow_each_other(monkeypatch: pytest.MonkeyPatch, tiny: Any, trace_of: Any) -> None:
    trace = trace_of(arrival_s=[0.0, 30.0], model=[0, 1], prompt_tokens=50, output_tokens=[5000, 9])
    run, t = two_models(monkeypatch, tiny(ubatch_tokens=UBATCH), trace, 1, interference=np.array([0.5]))
    at = (1, 1, FULL)
    end = 30.0 + t.init_s[1, 1] + t.file_bytes[1] / t.disk_cap[1, 1] + t.gpu_weight_bytes[1, FULL] / t.link_in_cap[1, 1]
    end += t.iter_const[at]
    end += 1.5 * (t.gpu_base[at] + t.gpu_head[at] + 50 * t.prefill_gpu[at] + t.gpu_attn[at] * 50**2 / 2)
    for generated in range(1, 9):
        end += t.iter_const[at] + 1.5 * (t.gpu_base[at] + t.gpu_head[at] + kv_seconds(at, 50 + generated))
    assert run.records["finish_s"][1] == pytest.approx(end, rel=1e-9)
    assert run.records["finish_s"][0] > end + 10.0


def test_a_load_takes_turns_with_decoding_on_a_device_that_copies_itself(
    monkeypatch: pytest.MonkeyPatch, tiny: Any, trace_of: Any
) -> None:
    """Without constants, GPU 0 is one processor: what request 1 has done there is what request 0 loses."""
    config = tiny(ubatch_tokens=UBATCH)
    trace = trace_of(arrival_s=[0.0, 30.0], model=[0, 1], prompt_tokens=50, output_tokens=[5000, 1])
    no_constant = {"iter_const": 0 * TABLES.iter_const}
    run, t = two_models(monkeypatch, config, trace, 0, operation_share=np.array([1.0, 0.0]), **no_constant)
    alone, _ = two_models(monkeypatch, config, trace.select(slice(0, 1)), 0, **no_constant)
    load = t.init_s[1, 0] + t.file_bytes[1] / t.disk_cap[1, 0] + t.gpu_weight_bytes[1, FULL] / t.link_in_cap[1, 0]
    at = (1, 0, FULL)
    chunk = t.gpu_base[at] + t.gpu_head[at] + 50 * t.prefill_gpu[at] + t.gpu_attn[at] * 50**2 / 2
    assert run.times("load_end")[1] == pytest.approx(30.0 + 2 * load, rel=1e-9)
    assert run.records["finish_s"][1] == pytest.approx(30.0 + 2 * (load + chunk), rel=1e-9)
    assert run.records["finish_s"][0] == pytest.approx(alone.records["finish_s"][0] + load + chunk, rel=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), mode=st.sampled_from(["mixed", "prefill_first"]), seed=st.integers(0, 2**32))
def test_closed_forms_agree_with_token_by_token(tiny: Any, trace_of: Any, data: Any, mode: str, seed: int) -> None:
    """Random requests on random GPUs and levels, batched, sharing devices, loads sharing disk and links."""
    size = data.draw(st.integers(1, 9), label="requests")
    span = data.draw(st.sampled_from([0.0, 1.0, 20.0]), label="span_s")
    rng = np.random.default_rng(seed)
    trace = trace_of(
        arrival_s=np.sort(rng.uniform(0, span, size)),
        model=rng.integers(3, size=size),
        prompt_tokens=rng.integers(1, 400, size),
        image_tokens=np.zeros(size, int),
        output_tokens=rng.integers(1, 150, size),
    )
    level = {(m, g): int(rng.integers(5)) for m in range(3) for g in range(2)}
    script = [(g, level[int(m), int(g)]) for m, g in zip(trace.model, rng.integers(2, size=size), strict=True)]
    agree(tiny(ubatch_tokens=UBATCH, prefill_mode=mode), trace, script)


# ---------------------------------------------------------------- preemption and resizing, written out


def kv_seconds(at: tuple[int, int, int], context: int) -> float:
    """Attending to the context of one request."""
    t, knots = TABLES, TABLES.depth_knot[at[:2]]
    on_gpu = t.gpu_kv[at] * depth(knots, t.depth_gpu[at[:2]], context)
    return float(on_gpu + t.cpu_kv[at] * depth(knots, t.depth_cpu[at[:2]], context))


def decode_seconds(level: int, context: int) -> float:
    """One iteration of model 0 alone on GPU 0 with one request."""
    t, at = TABLES, (0, 0, level)
    base = t.iter_const[at] + t.gpu_base[at] + t.gpu_head[at] + t.cpu_base[at] + t.cpu_head[at]
    return float(base + kv_seconds(at, context))


def decode_until(start: float, level: int, prompt: int, generated: int, stop: float) -> tuple[float, int]:
    """End of the iteration that runs at `stop`, and the tokens generated by then."""
    while start < stop:
        start += decode_seconds(level, prompt + generated)
        generated += 1
    return start, generated


def run_with_one_change(config: Any, trace_of: Any, change: Callable[[Run], int], at_s: float) -> Run:
    """Request 0 (80 + 200 tokens, model 0) on GPU 0 at level 1.0; `change` when request 1 arrives at `at_s`.

    Request 1 goes to GPU 1 and does not meet it; request 0 is dispatched to GPU 0 again as soon as that is legal.
    """
    trace = trace_of(arrival_s=[0.0, at_s], model=[0, 2], prompt_tokens=[80, 1], output_tokens=[200, 1])
    changed = False

    def choose(run: Run) -> int | None:
        nonlocal changed
        waiting = run.window()
        if 1 in waiting:
            return run.layout.dispatch(waiting.index(1), 1, FULL)
        if run.now >= at_s and not changed:
            changed = True
            return change(run)
        if 0 in waiting:
            action = run.layout.dispatch(waiting.index(0), 0, FULL)
            return action if run.sim.current.mask[0, action] else None
        return None

    return Run(config, trace, choose)


AT_S = 3.0


def drained_at() -> tuple[float, int]:
    """When request 0's iteration running at AT_S ends, and its tokens then: the first part of every scenario below."""
    t, at = TABLES, (0, 0, FULL)
    first = t.init_s[0, 0] + t.file_bytes[0] / t.disk_cap[0, 0] + t.gpu_weight_bytes[0, FULL] / t.link_in_cap[0, 0]
    first += t.iter_const[at] + t.gpu_base[at] + t.gpu_head[at] + 80 * t.prefill_gpu[at] + t.gpu_attn[at] * 3200
    return decode_until(first, FULL, 80, 1, AT_S)


def finish_decoding(start: float, level: int, generated: int) -> float:
    while generated < 200:
        start += decode_seconds(level, 80 + generated)
        generated += 1
    return start


def test_preempt_by_swap_reload_and_restore(tiny: Any, trace_of: Any) -> None:
    run = run_with_one_change(tiny(ubatch_tokens=UBATCH), trace_of, lambda run: run.layout.preempt(0), AT_S)
    t = TABLES
    stop, generated = drained_at()
    assert 10 < generated < 150
    kv = (80 + generated) * 64_000
    saved = stop + t.save_s[0] + kv / t.kv_out_cap[0]
    unloaded = saved + t.unload_s[0, 0, FULL]
    loaded = unloaded + t.init_s[0, 0] + t.gpu_weight_bytes[0, FULL] / t.link_in_cap[0, 0]  # weights are in host RAM
    restored = loaded + t.save_s[0] + kv / t.kv_in_cap[0]
    assert run.times("preempt") == pytest.approx([stop], rel=1e-9)
    assert run.times("save_end") == pytest.approx([saved], rel=1e-9)
    assert run.times("unload_end") == pytest.approx([unloaded], rel=1e-9)
    assert run.times("restore_end") == pytest.approx([restored], rel=1e-9)
    assert run.records["finish_s"][0] == pytest.approx(finish_decoding(restored, FULL, generated), rel=1e-9)


def test_preempt_one_request_keeps_the_instance(tiny: Any, trace_of: Any) -> None:
    change = lambda run: run.layout.preempt(0, whole_instance=False)  # noqa: E731
    run = run_with_one_change(tiny(ubatch_tokens=UBATCH), trace_of, change, AT_S)
    t = TABLES
    stop, generated = drained_at()
    kv = (80 + generated) * 64_000
    restored = stop + 2 * t.save_s[0] + kv / t.kv_out_cap[0] + kv / t.kv_in_cap[0]
    assert len(run.times("load_end")) == 2 and run.times("unload_end") == []
    assert run.records["finish_s"][0] == pytest.approx(finish_decoding(restored, FULL, generated), rel=1e-9)


def test_preempt_by_recompute_prefills_prompt_and_tokens(tiny: Any, trace_of: Any) -> None:
    config = tiny(ubatch_tokens=UBATCH, preempt_mode="recompute")
    run = run_with_one_change(config, trace_of, lambda run: run.layout.preempt(0), AT_S)
    t, at = TABLES, (0, 0, FULL)
    stop, generated = drained_at()
    end = stop + t.unload_s[0, 0, FULL] + t.init_s[0, 0] + t.gpu_weight_bytes[0, FULL] / t.link_in_cap[0, 0]
    depth = 0
    while depth < 80 + generated:
        tokens = min(UBATCH, 80 + generated - depth)
        end += t.iter_const[at] + t.gpu_base[at] + t.gpu_head[at] + tokens * t.prefill_gpu[at]
        end += t.gpu_attn[at] * (tokens * depth + tokens**2 / 2)
        depth += tokens
    # the prefill gives the next token
    assert run.records["finish_s"][0] == pytest.approx(finish_decoding(end, FULL, generated + 1), rel=1e-9)


def test_offload_by_reload(tiny: Any, trace_of: Any) -> None:
    run = run_with_one_change(tiny(ubatch_tokens=UBATCH), trace_of, lambda run: run.layout.offload(0, HALF), AT_S)
    t = TABLES
    stop, generated = drained_at()
    context = 80 + generated
    end = stop + t.save_s[0] + context * t.kv_gpu_bytes[0, FULL] / t.kv_out_cap[0] + t.unload_s[0, 0, FULL]
    end += t.init_s[0, 0] + t.gpu_weight_bytes[0, HALF] / t.link_in_cap[0, 0]
    end += t.save_s[0] + context * t.kv_gpu_bytes[0, HALF] / t.kv_in_cap[0]
    assert run.times("resize_end") == pytest.approx([end], rel=1e-9)
    assert run.records["finish_s"][0] == pytest.approx(finish_decoding(end, HALF, generated), rel=1e-9)


def test_offload_by_move(tiny: Any, trace_of: Any) -> None:
    config = tiny(ubatch_tokens=UBATCH, resize_mode="move")
    run = run_with_one_change(config, trace_of, lambda run: run.layout.offload(0, HALF), AT_S)
    t = TABLES
    stop, generated = drained_at()
    moved = t.gpu_weight_bytes[0, FULL] - t.gpu_weight_bytes[0, HALF]
    moved += (80 + generated) * (t.kv_gpu_bytes[0, FULL] - t.kv_gpu_bytes[0, HALF])
    end = stop + moved / t.kv_out_cap[0]
    assert run.times("resize_end") == pytest.approx([end], rel=1e-9)
    assert run.records["finish_s"][0] == pytest.approx(finish_decoding(end, HALF, generated), rel=1e-9)


def test_least_recently_used_weights_leave_host_ram(monkeypatch: pytest.MonkeyPatch, tiny: Any, trace_of: Any) -> None:
    """Host RAM for models 0 and 1 only (1.1 + 2.1 GB): loading model 2 (3.1 GB) evicts model 0, then half of model 1."""
    tables = dataclasses.replace(TABLES, host_bytes=np.array([4_000_000_000]))
    monkeypatch.setattr(mmsched_env.core, "build_tables", lambda *args: tables)
    trace = trace_of(arrival_s=[0.0, 10.0, 20.0], model=[0, 1, 2], prompt_tokens=8, output_tokens=2)
    run = Run(tiny(ubatch_tokens=UBATCH, kv_swap_fraction=0.0), trace, scripted([(0, FULL), (0, FULL), (1, FULL)]))
    assert run.sim.state["cached"][0, 0, :3].tolist() == [0, 900_000_000, 3_100_000_000]
    assert run.sim.state["cache_valid"][0, 0, :3].tolist() == [0, 900_000_000, 3_100_000_000]
