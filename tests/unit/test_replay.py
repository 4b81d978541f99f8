"""Replay without hardware: the mirror, re-timing, and cost tables out of figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf")

from mmsched_env.action import Kind
from mmsched_env.calibration.measure.points import Point
from mmsched_env.calibration.measure.rows import Figures
from mmsched_env.calibration.replay import command, compare, moves
from mmsched_env.calibration.replay.command import ReplayConfig
from mmsched_env.calibration.replay.mirror import Decision, Mirror, simulation_with
from mmsched_env.calibration.replay.real import Outcome
from mmsched_env.calibration.replay.retime import retime, simulate
from mmsched_env.calibration.replay.scenarios import SCENARIOS, Scenario
from mmsched_env.calibration.replay.timings import measured_tables
from mmsched_env.config import EnvConfig
from mmsched_env.core import Simulation
from mmsched_env.costmodel.tables import CostTables, build_tables
from mmsched_env.errors import ConfigError
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.sim import events
from mmsched_env.workload.trace import RequestTrace

STEP_S, DEPTH_S, TOKEN_S, PAIR_S, WARM_S, COLD_S, UNLOAD_S, COPY_S = 0.02, 1e-5, 0.004, 1e-7, 0.6, 0.9, 0.05, 1e-3
COPY_RATE = 2e9


def figures(scenario: Scenario, base: CostTables) -> list[Figures]:
    """Figures of devices that follow the tables' own formulas; the second model is twice as slow, and so on."""
    found = []
    for m, model in enumerate(scenario.models):
        slow = m + 1

        def add(point: Point, seconds: float) -> None:
            found.append(Figures(point, seconds, 0.0, 3, 0, 0))

        for depth, batch in ((0, 1), (100, 1), (300, 1), (0, 2), (100, 2)):
            mean = depth + 4
            context = DEPTH_S * (min(mean, 104) + 3 * max(0, mean - 104))  # three times as steep from 104 on
            weights = STEP_S * (1.0 if batch == 1 else 2.5)
            add(Point(model, "decode", tokens=8, depth=depth, batch=batch), slow * (weights + batch * context))
        for tokens in (20, 60, 160):
            add(Point(model, "prefill", tokens=tokens), slow * (STEP_S + TOKEN_S * tokens + PAIR_S * tokens**2 / 2))
        add(Point(model, "load", tier="page_cache", mode="read"), slow * WARM_S)
        add(Point(model, "load", tier="disk", mode="read"), slow * COLD_S)
        add(Point(model, "unload"), slow * UNLOAD_S)
        for tokens in (50, 200):
            size = tokens * int(base.kv_gpu_bytes[m].max())
            for operation in ("save", "restore"):
                add(Point(model, operation, tokens=tokens, tier="ram"), COPY_S + size / COPY_RATE)
    return found


def setting(name: str, requests: int = 30) -> tuple[EnvConfig, CostTables, RequestTrace]:
    scenario = SCENARIOS[name]
    config = scenario.config(requests)
    config = dataclasses.replace(config, sim=dataclasses.replace(config.sim, debug_checks=True))
    base = build_tables(config.cluster, config.models, config.limits.levels, config.limits.batch)
    tables = measured_tables(base, scenario.models, figures(scenario, base), int(scenario.memory_gb * 1e9))
    return config, tables, config.workload.sample(2**62, config.models.names)


def test_tables_give_back_the_figures() -> None:
    _, tables, _ = setting("steady")
    for m in range(2):
        slow = m + 1
        assert tables.gpu_base[m, 0, 0] == pytest.approx(slow * STEP_S, rel=1e-6)
        assert tables.gpu_kv[m, 0, 0] == pytest.approx(slow * DEPTH_S, rel=1e-6)
        assert list(tables.depth_knot[m, 0, :2]) == [0, 104]
        assert list(tables.depth_gpu[m, 0, :2]) == pytest.approx([1, 3])
        assert list(tables.batch_gpu[m, 0]) == pytest.approx([1, 2.5])
        assert tables.prefill_gpu[m, 0, 0] == pytest.approx(slow * TOKEN_S, rel=1e-6)
        assert tables.gpu_attn[m, 0, 0] == pytest.approx(slow * PAIR_S, rel=1e-6)
        warm = tables.init_s[m, 0] + tables.gpu_weight_bytes[m, 0] / tables.link_in_cap[m, 0]
        assert warm == pytest.approx(slow * WARM_S)
        assert warm + tables.file_bytes[m] / tables.disk_cap[m, 0] == pytest.approx(slow * COLD_S)
        assert tables.unload_s[m, 0, 0] == pytest.approx(slow * UNLOAD_S)
    assert tables.save_s[0] == pytest.approx(COPY_S, rel=1e-6)
    assert tables.kv_in_cap[0] == pytest.approx(COPY_RATE, rel=1e-6)


def test_a_figure_that_is_missing_is_named() -> None:
    config, tables, _ = setting("steady")
    scenario = SCENARIOS["steady"]
    found = [one for one in figures(scenario, tables) if one.point.operation != "unload"]
    with pytest.raises(ConfigError, match="model smollm2-135m-q8_0 was not measured with operation=unload"):
        measured_tables(tables, config.models.names, found, 10**9)


@pytest.mark.parametrize(
    ("name", "policy"), [("steady", "mect"), ("swap-thrash", "fcfs"), ("preemption-heavy", "preemptive")]
)
def test_the_simulators_own_decisions_re_timed_are_the_same_episode(name: str, policy: str) -> None:
    config, tables, trace = setting(name)
    free = simulate(simulation_with(config, tables), make_policy(policy)[1], trace, 0)
    again, missed = retime(simulation_with(config, tables), free, trace, 0)
    assert missed == 0
    assert [d.what for d in again.decisions] == [d.what for d in free.decisions]
    np.testing.assert_array_equal(again.records["finish_s"], free.records["finish_s"])
    assert compare.agreement(free.decisions, again.decisions) == 1.0
    assert compare.per_request(free, again) == compare.PerRequest(0.0, 0.0)


def test_decisions_hold_in_a_system_of_another_speed() -> None:
    """A device whose loads take a fifth longer takes the same decisions in the same order, later."""
    config, tables, trace = setting("swap-thrash")
    free = simulate(simulation_with(config, tables), make_policy("fcfs")[1], trace, 0)
    slower = dataclasses.replace(tables, link_in_cap=tables.link_in_cap / 1.2)
    again, missed = retime(simulation_with(config, slower), free, trace, 0)
    assert missed == 0
    assert sorted(d.what for d in again.decisions) == sorted(d.what for d in free.decisions)
    assert again.records["finish_s"].sum() > free.records["finish_s"].sum()
    a, b = compare.figures_of(free), compare.figures_of(again)
    assert a["load_s"] < b["load_s"]


@pytest.mark.parametrize("rate", [0.97, 1.03])
def test_preemptions_keep_their_meaning_at_another_token(rate: float) -> None:
    """A little faster or slower, other requests have the most left or have just finished: nobody may be left waiting for it."""
    config, tables, trace = setting("preemption-heavy", 60)
    policy = make_policy({"name": "preemptive", "factor": 1.0})[1]
    free = simulate(simulation_with(config, tables), policy, trace, 0)
    assert free.summary["preemptions"] > 10
    other = dataclasses.replace(tables, gpu_base=tables.gpu_base * rate, gpu_kv=tables.gpu_kv * rate)
    again, meaningless = retime(simulation_with(config, other), free, trace, 0)
    assert meaningless < 0.1 * len(free.decisions)
    error = compare.per_request(free, again)
    assert error.median < 0.1 and error.p90 < 0.4
    a, b = compare.figures_of(free), compare.figures_of(again)
    assert b["busy_s"] / a["busy_s"] == pytest.approx(rate, abs=0.02)


def told(mirror: Mirror, outcome: Outcome) -> None:
    """Tell a mirror everything that happened in a simulated episode."""
    decisions = list(outcome.decisions)
    requests = outcome.records
    for at, row in enumerate(outcome.log):
        now, kind, request, i = float(row["time_s"]), int(row["kind"]), int(row["request"]), int(row["instance"])
        while decisions and len(decisions[0].after) <= len(mirror.log.read(mirror.simulation.event_log(0))):
            one = decisions[0]
            if one.time_s > now or not decisions[0].after <= frozenset(mirror.log.seen):
                break
            index = _index(mirror.simulation, one)
            if not index:
                break
            mirror.act(index)
            del decisions[0]
        if kind == events.ARRIVE:
            mirror.happen(now, moves.ARRIVAL, -1)
        elif kind == events.FIRST_TOKEN:
            mirror.happen(now, moves.TOKEN, request)
        elif kind == events.FINISH:
            while mirror.requests["generated"][request] < requests["output_tokens"][request]:
                mirror.happen(now, moves.TOKEN, request)
        elif kind in (events.LOAD_END, events.UNLOAD_END):
            mirror.happen(now, moves.OPERATION, i)
        elif kind == events.UNLOAD_START:
            mirror.happen(now, moves.DRAINED, i)
        assert at >= 0


def _index(simulation: Simulation, decision: Decision) -> int:
    """The legal action that a decision is now; 0: none."""
    layout, state = simulation.layout, simulation.state[0]
    if decision.kind == Kind.DISPATCH:
        slots = np.flatnonzero(state["window"] == decision.request)
        index = layout.dispatch(int(slots[0]), decision.gpu, decision.level) if len(slots) else 0
    else:
        index = layout.preempt(int(state["inst_at"][decision.gpu, decision.model]))
    return index if simulation.current.mask[0][index] else 0


@pytest.mark.parametrize("name", ["steady", "swap-thrash"])
def test_a_mirror_told_what_a_simulation_did_has_its_records(name: str) -> None:
    config, tables, trace = setting(name)
    free = simulate(simulation_with(config, tables), make_policy("fcfs")[1], trace, 0)
    mirror = Mirror(simulation_with(config, tables), trace)
    told(mirror, free)
    assert mirror.drained
    records = mirror.requests[: len(trace)]
    for column in ("first_token_s", "finish_s", "dispatch_s", "load_s", "generated", "instance"):
        np.testing.assert_allclose(records[column], free.records[column], atol=1e-9, err_msg=column)
    ours, theirs = (
        compare.figures_of(free),
        compare.seconds_between(mirror.simulation.event_log(0), events.LOAD_START, events.LOAD_END),
    )
    assert theirs == pytest.approx(ours["load_s"])
    assert int(mirror.state["gpu_used"][0]) == int(mirror.state["gpu_used"].sum()) > 0


def test_bands_take_the_larger_of_five_percent_and_two_deviations() -> None:
    band = compare.Band("mean_e2e_ms", 100.0, 0.01, 104.0)
    assert (band.bound, band.met) == (0.05, True)
    assert not dataclasses.replace(band, simulated=106.0).met
    assert dataclasses.replace(band, deviation=0.04, simulated=107.0).met
    assert not dataclasses.replace(band, deviation=None, simulated=94.0).met


def test_policies_are_told_apart_by_two_standard_errors() -> None:
    runs = {"a": [100.0, 102.0], "b": [101.0, 103.0], "c": [150.0]}
    assert compare.told_apart(runs) == [("a", "c"), ("b", "c")]
    assert compare.told_apart({"a": [100.0], "b": [150.0]}) is None  # nothing is known of a run's spread


def test_policies_take_turns() -> None:
    config = ReplayConfig("steady", policies=("mect", "fcfs"), repeats=3, others=2)
    assert config.runs == [("mect", 0), ("fcfs", 0), ("mect", 1), ("fcfs", 1), ("mect", 2)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["scenario=none"], "unknown scenario 'none'"),
        (["policies=[best]"], "unknown policy or checkpoint \\(.zip, .json\\) 'best'"),
        (["repeats=0"], "repeats is 0; accepted: a whole number >= 1"),
        (["cores=[9999]"], r"cores is \[9999\]; accepted: of"),
    ],
)
def test_settings_that_cannot_be_used(settings: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        command.main([*settings, f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_loads_beside_decoding_take_the_measured_share_of_the_device() -> None:
    """A CPU's loads take turns with decoding: as much longer as was measured, in simulation too."""
    scenario = SCENARIOS["swap-thrash"]
    config, _, trace = setting("swap-thrash")
    base = build_tables(config.cluster, config.models, config.limits.levels, config.limits.batch)
    alone = figures(scenario, base)
    beside = [
        dataclasses.replace(
            one, point=dataclasses.replace(one.point, operation="load_beside_decode"), seconds=1.9 * one.seconds
        )
        for one in alone
        if (one.point.operation, one.point.tier) == ("load", "page_cache")
    ]
    loads = []
    for found in (alone, alone + beside):
        tables = measured_tables(base, scenario.models, found, int(scenario.memory_gb * 1e9))
        outcome = simulate(simulation_with(config, tables), make_policy("fcfs")[1], trace, 0)
        loads.append(compare.figures_of(outcome)["load_s"] / outcome.summary["loads"])
    assert tables.operation_share[0] == pytest.approx(0.9)
    assert 1.05 * loads[0] < loads[1] < 1.9 * loads[0]


def test_ranking_orders_by_each_side() -> None:
    measured, simulated = compare.ranking({"a": (1.0, 2.0), "b": (3.0, 1.0)})
    assert (measured, simulated) == (["a", "b"], ["b", "a"])
