"""Field table, record types, space and buffers agree; values mean what the table says; nothing hidden shows."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mmsched_env import observation
from mmsched_env.config import LimitsConfig
from mmsched_env.env import ServingEnv
from mmsched_env.observation import BLOCKS, MASK_KEY, TABLE, ObservationBuffer, block_dtype, block_shape, block_width
from mmsched_env.sim.state import Dims

DIMS = Dims.of(LimitsConfig())
SMALL = Dims(Q=3, G=2, H=1, M=2, S=2, B=4, K=3)


@pytest.mark.parametrize("dims", [DIMS, SMALL], ids=["default", "small"])
def test_table_types_space_and_buffers_agree(dims: Dims) -> None:
    space = observation.space(dims)
    buffer = ObservationBuffer.allocate(3, dims)
    assert list(buffer.observation()) == [*BLOCKS, MASK_KEY]
    assert set(space.spaces) == {*TABLE, MASK_KEY}
    total = 0
    for block, (_, _, fields) in TABLE.items():
        kind = block_dtype(block, dims)
        width = sum(dims.K if letters == "K" else 1 for _, letters, _, _ in fields)
        assert kind.names == tuple(name for name, *_ in fields)
        assert block_width(block, dims) == width == kind.itemsize // 4
        assert space[block].shape == (*block_shape(block, dims), width) and space[block].dtype == np.float32
        assert buffer.arrays[block].shape == (3, *space[block].shape)
        total += int(np.prod(space[block].shape))
    assert buffer.flat.shape == (3, total) and buffer.flat.flags.c_contiguous
    assert space[MASK_KEY].shape == (dims.A,) and buffer.mask.dtype == np.int8


def test_records_and_arrays_are_the_same_memory() -> None:
    """Every field of every row is its own column, in the table's order, and nothing overlaps."""
    buffer = ObservationBuffer.allocate(2, SMALL)
    number = 1.0
    for block in BLOCKS:
        records = buffer.records[block]
        for name in records.dtype.names:
            values = records[name]
            values[:] = np.arange(number, number + values.size).reshape(values.shape)
            number += values.size
    assert len(np.unique(buffer.flat)) == buffer.flat.size == number - 1
    for block in BLOCKS:
        column = 0
        for name in buffer.records[block].dtype.names:
            values = buffer.records[block][name].reshape(*buffer.records[block].shape, -1)
            assert np.array_equal(buffer.arrays[block][..., column : column + values.shape[-1]], values)
            column += values.shape[-1]


def test_observations_are_contiguous_float32(tiny: Any) -> None:
    env = ServingEnv(tiny())
    obs, _ = env.reset(seed=0)
    assert list(obs) == [*BLOCKS, MASK_KEY]
    for key, value in obs.items():
        assert value.flags.c_contiguous and value.dtype == (np.int8 if key == MASK_KEY else np.float32)


def test_names_are_documented_and_unique() -> None:
    for block, (_, meaning, fields) in TABLE.items():
        names = [name for name, *_ in fields]
        assert len(set(names)) == len(names), block
        assert meaning and all(text for *_, text in fields)


def test_values_at_a_known_point(tiny: Any, trace_of: Any) -> None:
    env = ServingEnv(tiny())
    trace = trace_of(
        arrival_s=[1.0, 1.0, 2.5],
        model=[0, 2, 0],
        prompt_tokens=[100, 200, 300],
        max_tokens=[50, 60, 70],
        output_tokens=[40, 50, 60],
        predicted_tokens=[44, 55, 66],
        weight=[1.0, 0.25, 1.0],
        slo_class=[0, 1, 0],
    )
    env.reset(options={"trace": trace})
    env.step(env.layout.dispatch(1, 1, 2))
    view = env.simulation.current.records
    t = env.simulation.tables
    queue, instances, gpus, models, pairs, whole = (view[block][0] for block in BLOCKS)
    assert queue["present"].tolist() == [1.0] + [0.0] * 15
    row = {name: float(queue[name][0]) for name in queue.dtype.names}
    assert (row["model"], row["prompt_tokens"], row["max_tokens"], row["predicted_tokens"]) == (0, 100, 50, 44)
    assert (row["ready"], row["age_s"], row["weight"], row["num_preemptions"]) == (1, 0, 1, 0)
    placed = instances[3]  # GPU 1, slot 0
    assert instances["present"].sum() == 1 and placed["loading"] == 1 and placed["ready"] == 0
    assert (placed["model"], placed["level"], placed["num_seated"], placed["free_seats"]) == (2, 2, 1, 15)
    assert placed["weight_seated"] == 0.25
    load = t.init_s[2, 1] + t.file_bytes[2] / t.disk_cap[2, 1] + t.gpu_weight_bytes[2, 2] / t.link_in_cap[2, 1]
    assert placed["operation_left_s"] == pytest.approx(load, rel=1e-6)
    used = t.gpu_weight_bytes[2, 2] + t.buffer_bytes[2] + 260 * t.kv_gpu_bytes[2, 2]
    assert gpus["free_gb"][1] == pytest.approx((t.gpu_bytes[1] - used) / 1e9, rel=1e-6)
    assert gpus["free_slots"].tolist() == [3, 2, 0, 0] and gpus["present"].tolist() == [1, 1, 0, 0]
    assert models["queued"].tolist()[:3] == [1, 0, 0] and models["num_instances"].tolist()[:3] == [0, 0, 1]
    assert models["present"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    cold = t.init_s[0, 0] + t.file_bytes[0] / t.disk_cap[0, 0] + t.gpu_weight_bytes[0, 4] / t.link_in_cap[0, 0]
    assert pairs["load_s"][0, 0, 4] == pytest.approx(cold, rel=1e-6)
    assert (pairs["fits"][0, :2] == 1).all() and (pairs["fits"][1:] == 0).all() and (pairs["fits"][:, 2:] == 0).all()
    assert (whole["time_s"], whole["num_in_system"], whole["queue_length"]) == (1, 2, 1)
    assert whole["weight_in_system"] == 1.25 and whole["beyond_window"] == 0


def play_with(env: ServingEnv, trace: Any, seed: int = 0) -> tuple[list[dict[str, np.ndarray]], int]:
    """Observations of a fixed random policy up to (not with) the first after a request has finished."""
    rng = np.random.default_rng(seed)
    seen = [env.reset(seed=0, options={"trace": trace})[0]]
    while env.simulation.state["num_done"][0] == 0:
        legal = np.flatnonzero(seen[-1][MASK_KEY])
        seen.append(env.step(int(rng.choice(legal)))[0])
    return seen[:-1], len(seen)


@pytest.mark.parametrize("mode", ["mixed", "prefill_first"])
def test_true_output_length_never_shows(tiny: Any, mode: str) -> None:
    """Traces that differ in nothing but output_tokens look alike until a request finishes."""
    env = ServingEnv(tiny(prefill_mode=mode))
    config = env.config
    trace = config.workload.sample(3, config.models.names)
    shorter = dataclasses.replace(trace, output_tokens=np.maximum(1, trace.output_tokens // 2).astype(np.int32))
    a, _ = play_with(env, trace)
    b, _ = play_with(env, shorter)
    common = min(len(a), len(b))
    assert common > 10
    for step in range(common):
        for key in a[step]:
            if not np.array_equal(a[step][key], b[step][key]):
                where = np.argwhere(a[step][key] != b[step][key])[0]
                kind = block_dtype(key, env.simulation.dims)
                columns = [name for name in kind.names for _ in range(max(1, int(np.prod(kind[name].shape))))]
                pytest.fail(f"step {step}: {key}.{columns[where[-1]]} gives the output length away")


def test_first_finish_of_a_loading_instance_is_its_shortest_request(tiny: Any, trace_of: Any) -> None:
    env = ServingEnv(tiny())
    trace = trace_of(arrival_s=[0.0, 0.0, 0.0], output_tokens=5, max_tokens=200, predicted_tokens=[10, 150, 20])
    env.reset(options={"trace": trace})
    for _ in range(3):
        env.step(env.layout.dispatch(0, 0, 4))
        if env.simulation.state["now"][0] > 0:
            break
        row = env.simulation.current.records["instances"][0, 0]
        assert row["loading"] == 1
        assert row["next_finish_s"] == pytest.approx(10 * row["step_s"], rel=1e-6)


def test_an_idle_gpu_is_not_busy(tiny: Any, trace_of: Any) -> None:
    """num_busy counts instances iterating now, at a decision after a completion too."""
    env = ServingEnv(tiny())
    env.reset(options={"trace": trace_of(arrival_s=[0.0, 9.0], output_tokens=5)})
    env.step(env.layout.dispatch(0, 0, 4))
    while env.simulation.state["num_done"][0] == 0:
        env.step(0)
    assert env.simulation.state["num_seated"][0].sum() == 0
    assert env.simulation.current.records["gpus"][0]["num_busy"].tolist() == [0, 0, 0, 0]
