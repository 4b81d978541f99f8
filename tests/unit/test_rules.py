"""Each rule in a situation made by hand, where what it is known for decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from mmsched_env.action import Kind
from mmsched_env.baselines.parts import HURRIED
from mmsched_env.config import ConfigError, EnvConfig, env_config
from mmsched_env.core import Simulation
from mmsched_env.evaluation.policies import make_policy
from mmsched_env.workload import RequestTrace

SMALL, MIDDLE, LARGE = "llama-3.2-1b-f16", "qwen2.5-14b-q4_k_m", "qwen3-32b-q4_k_m"
"""2.7, 9 and 20 GB: on a card of 25 GB the large one fits beside the small one only"""
OTHER = "qwen2.5-32b-q4_k_m"
"""20 GB, as the large one"""
THIRD = "qwen2.5-3b-f16"
"""6 GB"""


TIGHT = {"batch": 2, "slots": 2}
"""limits for all that needs few seats or slots: every other set of limits is compiled anew"""


def config(models: Sequence[str], gpus: Sequence[str] = ("rtx-4090-24gb",), **changes: Any) -> EnvConfig:
    cluster = {"gpus": list(gpus), "hosts": ["desktop-ddr5"], "gpu_hosts": [0] * len(gpus)}
    return env_config({"cluster": cluster, "models": {"names": list(models)}, **changes})


def requests(models: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> RequestTrace:
    """A row a request: at (seconds), model (name), output (tokens, predicted exactly), and other columns of a trace."""
    base = {"prompt_tokens": 100, "max_tokens": 4000}
    columns: dict[str, list[Any]] = {}
    for row in rows:
        output = row["output"]
        given = {"arrival_s": row["at"], "model": list(models).index(row["model"]), "output_tokens": output}
        extra = {key: value for key, value in row.items() if key not in ("at", "model", "output")}
        for key, value in (base | given | {"predicted_tokens": output, "slo_ttft_s": np.nan} | extra).items():
            columns.setdefault(key, []).append(value)
    return RequestTrace.from_columns(list(models), **columns)


def play(policy: str | Mapping[str, Any], env: EnvConfig, trace: RequestTrace) -> tuple[Any, list[Any], Simulation]:
    """(request records at the end, actions taken, simulation)."""
    simulation = Simulation(env, 1)
    simulation.reset(0, trace)
    chosen = make_policy(policy)[1]
    chosen.reset(simulation.layout, 0)
    actions = []
    while True:
        observation = {key: values[0] for key, values in simulation.current.observation().items()}
        index = chosen.act(observation, simulation.current.mask[0])
        actions.append(simulation.layout.decode(index))
        outcome = simulation.step(np.array([index]))[0]
        assert not outcome["illegal"]
        assert len(actions) < 100 * len(trace), "it goes round in circles"
        if outcome["terminated"]:
            return simulation.episode_requests(0), actions, simulation


def started(policy: str | Mapping[str, Any], env: EnvConfig, trace: RequestTrace) -> list[int]:
    """Requests in the order of their first dispatch."""
    return np.argsort(play(policy, env, trace)[0]["dispatch_s"], kind="stable").tolist()


PAIR = (MIDDLE, LARGE)
ALTERNATING = [
    {"at": 0.0, "model": MIDDLE, "output": 1500},
    {"at": 1.0, "model": LARGE, "output": 50},
    {"at": 2.0, "model": MIDDLE, "output": 50},
    {"at": 3.0, "model": LARGE, "output": 50},
    {"at": 4.0, "model": MIDDLE, "output": 50},
]


def test_fcfs_serves_in_order_of_arrival_and_swaps_each_time() -> None:
    env, trace = config(PAIR), requests(PAIR, ALTERNATING)
    records, _, simulation = play("fcfs", env, trace)
    assert (np.diff(records["dispatch_s"]) > 0).all()
    assert simulation.state["num_loads"][0] == 5


def test_collate_holds_the_other_model_until_those_of_the_loaded_one_are_served() -> None:
    env, trace = config(PAIR), requests(PAIR, ALTERNATING)
    assert started({"name": "collate", "max_wait_s": 1e9}, env, trace) == [0, 2, 4, 1, 3]
    assert play({"name": "collate", "max_wait_s": 1e9}, env, trace)[2].state["num_loads"][0] == 2


def test_collate_ends_the_wait_at_its_bound() -> None:
    env = config(PAIR)
    stream = [{"at": 2.0 * i, "model": MIDDLE, "output": 400} for i in range(1, 40)]
    trace = requests(
        PAIR, [{"at": 0.0, "model": MIDDLE, "output": 400}, {"at": 1.0, "model": LARGE, "output": 5}, *stream]
    )
    waits = {}
    for bound in (10.0, 1e9):
        records, _, _ = play({"name": "collate", "max_wait_s": bound}, env, trace)
        waits[bound] = records["dispatch_s"][1] - records["arrival_s"][1]
    assert 10.0 < waits[10.0] < 30.0 < 60.0 < waits[1e9]


def test_collate_lets_in_no_more_than_in_flight() -> None:
    env = config(PAIR)
    trace = requests(PAIR, [{"at": 0.0, "model": MIDDLE, "output": 300}] * 5)
    records, _, _ = play({"name": "collate", "in_flight": 2}, env, trace)
    assert (records["dispatch_s"] == 0).sum() == 2


WAITING = [
    {"at": 0.0, "model": MIDDLE, "output": 1000},
    {"at": 1.0, "model": LARGE, "output": 1500},
    {"at": 2.0, "model": OTHER, "output": 20},
]
"""while the first runs a long and then a short request come, of models that need its GPU"""
TRIO = (MIDDLE, LARGE, OTHER)


def test_sjf_serves_the_short_one_first_and_ageing_ends_that() -> None:
    env, trace = config(TRIO), requests(TRIO, WAITING)
    assert started("fcfs", env, trace) == [0, 1, 2]
    assert started({"name": "sjf", "ageing": 0.0}, env, trace) == [0, 2, 1]
    assert started({"name": "sjf", "ageing": 100.0}, env, trace) == [0, 1, 2]


def test_srpt_puts_a_long_running_request_off_for_a_short_one_and_sjf_does_not() -> None:
    rows = [{"at": 0.0, "model": LARGE, "output": 3000}, {"at": 40.0, "model": MIDDLE, "output": 10}]
    env, trace = config(PAIR), requests(PAIR, rows)
    preempting, _, _ = play("srpt", env, trace)
    waiting, _, _ = play("sjf", env, trace)
    assert preempting["num_preemptions"].tolist() == [1, 0]
    assert preempting["finish_s"][1] < preempting["finish_s"][0]
    assert waiting["num_preemptions"].sum() == 0
    assert waiting["finish_s"][1] > waiting["finish_s"][0]
    almost_done = [rows[0] | {"output": 500}, rows[1]]
    assert play("srpt", env, requests(PAIR, almost_done))[0]["num_preemptions"].sum() == 0


@pytest.mark.parametrize("laxity", [False, True])
def test_edf_serves_the_urgent_one_first(laxity: bool) -> None:
    env = config(TRIO)
    for urgent, order in ((1, [0, 1, 2]), (2, [0, 2, 1])):
        rows = [row | {"slo_ttft_s": 60.0 if i == urgent else 600.0} for i, row in enumerate(WAITING)]
        assert started({"name": "edf", "laxity": laxity}, env, requests(TRIO, rows)) == order


def test_edf_defers_what_is_too_late_already() -> None:
    env = config(TRIO)
    rows = [row | {"slo_ttft_s": 1.0 if i == 1 else 600.0} for i, row in enumerate(WAITING)]
    assert started({"name": "edf", "defer": True}, env, requests(TRIO, rows)) == [0, 2, 1]
    assert started({"name": "edf", "defer": False}, env, requests(TRIO, rows)) == [0, 1, 2]


def test_vtc_serves_the_model_that_has_been_served_least() -> None:
    env = config(TRIO)
    greedy = [{"at": 0.0, "model": LARGE, "output": 500}] * 4
    rows = [*greedy, {"at": 1.0, "model": MIDDLE, "output": 800}]
    rows += [{"at": 2.0, "model": LARGE, "output": 900}, {"at": 3.0, "model": OTHER, "output": 10}]
    assert started("vtc", env, requests(TRIO, rows))[4:] == [4, 6, 5]
    assert started("fcfs", env, requests(TRIO, rows)) == list(range(7))


def test_mlfq_skips_queues_for_long_prompts_and_demotes_what_has_run() -> None:
    rows = [
        WAITING[0],
        WAITING[0],
        {"at": 1.0, "model": MIDDLE, "output": 20, "prompt_tokens": 20000},
        {"at": 1.5, "model": MIDDLE, "output": 20, "prompt_tokens": 50},
    ]
    full = config((MIDDLE,), limits=TIGHT)
    rule = {"name": "mlfq", "quantum_s": 0.2, "starvation_s": 1e9}
    assert started(rule, full, requests((MIDDLE,), rows)) == [0, 1, 3, 2]
    env = config(PAIR)
    rows = [{"at": 0.0, "model": LARGE, "output": 3000}, {"at": 60.0, "model": MIDDLE, "output": 10}]
    assert play("mlfq", env, requests(PAIR, rows))[0]["num_preemptions"].tolist() == [1, 0]
    assert play({"name": "mlfq", "quantum_s": 1e4}, env, requests(PAIR, rows))[0]["num_preemptions"].sum() == 0


def test_cmu_serves_weight_per_second_first() -> None:
    env = config(TRIO)
    assert started("cmu", env, requests(TRIO, WAITING)) == [0, 2, 1]
    heavy = [row | {"weight": 100.0 if i == 1 else 1.0} for i, row in enumerate(WAITING)]
    assert started({"name": "cmu", "factor": 1e9}, env, requests(TRIO, heavy)) == [0, 1, 2]
    heavy[1]["at"], heavy[2]["at"] = 15.0, 16.0  # the first is running by then
    assert play({"name": "cmu", "factor": 2}, env, requests(TRIO, heavy))[0]["num_preemptions"][0] == 1


@pytest.mark.parametrize("rule", ["preemptive", "composite", "cmu"])
def test_patience_is_how_long_work_runs_before_it_is_put_off(rule: str) -> None:
    env = config(PAIR)
    # what arrives makes the moments at which there is something to decide
    waiting = [{"at": at, "model": MIDDLE, "output": 10, "weight": 100.0} for at in np.arange(12.0, 60.0, 3.0)]
    rows = [{"at": 0.0, "model": LARGE, "output": 3000, "weight": 1.0}, *waiting]

    def first_served_s(patience: float) -> float:
        chosen = {"name": rule, "factor": 1.0, "patience": patience}
        return float(play(chosen, env, requests(PAIR, rows))[0]["dispatch_s"][1:].min())

    at_once, later, never = map(first_served_s, (0.0, 2.0, 1e6))
    assert at_once < later < 60.0 < never


def test_relief_puts_out_what_slows_others_for_long() -> None:
    both = (SMALL, MIDDLE)
    env = config(both)
    rows = [{"at": 0.0, "model": MIDDLE, "output": 4000, "weight": 1.0}]
    rows += [{"at": at, "model": SMALL, "output": 1500, "weight": 20.0} for at in (20.0, 20.5, 26.0)]

    def preemptions(relief: float) -> list[int]:
        chosen = {"name": "composite", "factor": 1e9, "relief": relief}
        return play(chosen, env, requests(both, rows))[0]["num_preemptions"].tolist()

    assert preemptions(1.0) == [1, 0, 0, 0]
    assert not any(preemptions(1e9))


LONG_PROMPT = [
    {"at": 0.0, "model": LARGE, "output": 50},
    {"at": 30.0, "model": LARGE, "prompt_tokens": 23000, "output": 300},
    *[{"at": at, "model": LARGE, "output": 300} for at in (50.0, 80.0, 81.0)],
]
"""the second needs the memory of layers that then are on the CPU; the others come while it is served"""


def test_regain_waits_for_the_layers_that_a_long_prompt_has_put_on_the_cpu() -> None:
    env, trace = config((LARGE,)), requests((LARGE,), LONG_PROMPT)
    waits, joins = (play({"name": "composite", "regain": r, "factor": 1e9}, env, trace)[0] for r in (0.1, 1e9))
    assert (joins["dispatch_s"][2:] < joins["finish_s"][1]).all()
    assert (waits["dispatch_s"][2:] > waits["finish_s"][1]).all()
    assert (waits["finish_s"] < joins["finish_s"])[1:].all()


def test_a_long_prompt_that_many_wait_for_is_put_out() -> None:
    """Though by twice as much only: they would take their time with the layers that come back, not that of now."""
    env, trace = config((LARGE,)), requests((LARGE,), LONG_PROMPT)
    never, soon = (play({"name": "composite", "factor": factor}, env, trace)[0] for factor in (1e9, 2.0))
    assert not never["num_preemptions"].any()
    assert np.flatnonzero(soon["num_preemptions"]).tolist() == [1]
    assert (soon["finish_s"] < never["finish_s"])[2:].all()


def test_without_patience_two_models_do_not_put_each_other_out_for_ever() -> None:
    rows = [{"at": 0.0, "model": MIDDLE, "output": 150}, {"at": 0.1, "model": LARGE, "output": 150}]
    impatient = {"name": "composite", "factor": 1.0, "patience": 0.0, "relief": 1e9, "weights": {"victim_wait": 6.0}}
    assert play(impatient, config(PAIR), requests(PAIR, rows))[2].state["num_loads"][0] > HURRIED


def test_cmu_hysteresis_keeps_the_loaded_model() -> None:
    env = config(PAIR, limits=TIGHT)
    rows = [{"at": 0.0, "model": MIDDLE, "output": 600, "weight": 1.0}] * 2 + [
        {"at": 1.0, "model": MIDDLE, "output": 600, "weight": 1.0},
        {"at": 2.0, "model": LARGE, "output": 20, "weight": 2.0},
    ]
    assert started({"name": "cmu", "hysteresis": 1, "factor": 1e9}, env, requests(PAIR, rows))[2:] == [3, 2]
    assert started({"name": "cmu", "hysteresis": 1000, "factor": 1e9}, env, requests(PAIR, rows))[2:] == [2, 3]


def test_qlm_serves_a_group_together_and_the_urgent_group_first() -> None:
    env = config(PAIR)
    rows = [
        {"at": 0.0, "model": MIDDLE, "output": 300},
        {"at": 1.0, "model": LARGE, "output": 50, "slo_e2e_s": 600.0},
        {"at": 2.0, "model": MIDDLE, "output": 50, "slo_e2e_s": 300.0},
        {"at": 3.0, "model": LARGE, "output": 50, "slo_e2e_s": 500.0},
    ]
    rows = [row | {"slo_e2e_s": row.get("slo_e2e_s", 900.0)} for row in rows]
    assert started("qlm", env, requests(PAIR, rows)) == [0, 2, 1, 3]


def test_serverless_llm_starts_where_the_weights_are_in_host_ram() -> None:
    cluster = {
        "gpus": ["rtx-4090-24gb", "rtx-a6000-48gb"],
        "hosts": ["desktop-ddr5", "threadripper-pro-5995wx"],
        "gpu_hosts": [0, 1],
    }
    env = env_config({"cluster": cluster, "models": {"names": list(PAIR)}})
    rows = [
        {"at": 0.0, "model": MIDDLE, "output": 10},
        {"at": 60.0, "model": LARGE, "output": 10},
        {"at": 200.0, "model": LARGE, "output": 10},
    ]
    records, _, simulation = play("serverless_llm", env, requests(PAIR, rows))
    assert records["instance"][1] == records["instance"][2], "a loaded model starts at once"
    slots = simulation.dims.S
    first = int(records["instance"][0]) // slots
    assert simulation.state["cached"][0, first, 0] > 0


def test_ollama_unloads_by_name_after_the_keep_alive_and_blocks() -> None:
    models = (SMALL, MIDDLE, OTHER)
    rows = [
        {"at": 0.0, "model": SMALL, "output": 10},
        {"at": 20.0, "model": MIDDLE, "output": 10},
        {"at": 40.0, "model": SMALL, "output": 10},
        {"at": 60.0, "model": OTHER, "output": 10},
    ]
    env = config(models)
    _, actions, _ = play("ollama", env, requests(models, rows))
    unloads = [action.slot for action in actions if action.kind == Kind.PREEMPT]
    assert unloads[0] == 0, "the first name goes first, though it was used last"
    later = [rows[0], rows[0] | {"at": 1000.0}]
    _, _, simulation = play("ollama", env, requests(models, later))
    assert simulation.state["num_loads"][0] == 2, "unloaded after five minutes"
    assert play({"name": "ollama", "keep_alive_s": 1e9}, env, requests(models, later))[2].state["num_loads"][0] == 1
    blocked = [{"at": 0.0, "model": MIDDLE, "output": 1500}, {"at": 1.0, "model": OTHER, "output": 10}]
    blocked.append({"at": 2.0, "model": MIDDLE, "output": 10})
    assert started("ollama", env, requests(models, blocked)) == [0, 1, 2]


def test_power_of_two_takes_the_emptier_of_the_gpus_drawn() -> None:
    gpus = ["rtx-4090-24gb"] * 4
    models = (SMALL, MIDDLE)
    rows = [{"at": 0.0, "model": SMALL, "output": 3000}, {"at": 8.0, "model": MIDDLE, "output": 10}]
    records, _, simulation = play({"name": "power_of_two", "choices": 4}, config(models, gpus), requests(models, rows))
    gpu = records["instance"] // simulation.dims.S
    assert gpu[0] != gpu[1]
    many = requests(models, [{"at": 0.5 * i, "model": SMALL, "output": 200 + i} for i in range(40)])
    records, _, _ = play({"name": "power_of_two", "choices": 1}, config(models, gpus), many)
    assert (np.bincount(records["instance"] // simulation.dims.S, minlength=4) >= 3).all(), "drawn evenly"


def test_least_loaded_goes_to_the_gpu_with_less_work() -> None:
    models = (MIDDLE, OTHER, SMALL)
    rows = [
        {"at": 0.0, "model": MIDDLE, "output": 100},
        {"at": 0.1, "model": OTHER, "output": 3000},
        {"at": 5.0, "model": SMALL, "output": 10},
    ]
    env = config(models, ["rtx-4090-24gb"] * 2)
    records, _, simulation = play("least_loaded", env, requests(models, rows))
    gpu = records["instance"] // simulation.dims.S
    assert gpu[0] != gpu[1]
    assert gpu[2] == gpu[0]


REUSE = [
    *({"at": 15.0 * i, "model": MIDDLE, "output": 10} for i in range(6)),
    {"at": 90.0, "model": SMALL, "output": 10},
    {"at": 110.0, "model": THIRD, "output": 10},
]
"""a model used six times, a cheap one used last, then, with two slots, one that needs that of either"""


@pytest.mark.parametrize("eviction", ["lru", "lfu", "gdsf", "keep_alive"])
def test_what_each_eviction_order_unloads_first(eviction: str) -> None:
    models = (MIDDLE, SMALL, THIRD)
    env = config(models, limits=TIGHT)
    _, actions, _ = play({"name": "mect", "eviction": eviction}, env, requests(models, REUSE))
    unloads = [action.slot for action in actions if action.kind == Kind.PREEMPT]
    assert unloads[0] == {"lru": 0, "lfu": 1, "gdsf": 1, "keep_alive": 0}[eviction]


def test_gdsf_forgets_what_is_no_longer_used() -> None:
    """The clock: each unload raises what new models start from, so old fame does not keep a model for ever."""
    models = (MIDDLE, SMALL, THIRD)
    rows = [{"at": 15.0 * i, "model": MIDDLE, "output": 10} for i in range(3)]
    rows += [{"at": 60.0 + 15.0 * i, "model": models[1 + i % 2], "output": 10} for i in range(60)]
    env = config(models, limits=TIGHT)
    _, actions, _ = play({"name": "mect", "eviction": "gdsf"}, env, requests(models, rows))
    unloads = [action.slot for action in actions if action.kind == Kind.PREEMPT]
    assert unloads[0] == 1
    assert 0 in unloads


def test_level_choices() -> None:
    """16 GB of weights on a card of 12 GB: whole spills as little as it must, cheapest may take fewer layers."""
    models = (MIDDLE, LARGE)
    env = config(models, ["rtx-3060-12gb", "rtx-4090-24gb"])
    rows = [{"at": 0.0, "model": LARGE, "output": 2000}, {"at": 1.0, "model": LARGE, "output": 5, "max_tokens": 16000}]
    for level in ("whole", "deepest"):
        records, _, simulation = play({"name": "least_loaded", "level": level}, env, requests(models, rows))
        assert records["instance"][0] // simulation.dims.S == 1
    both = [{"at": 0.0, "model": MIDDLE, "output": 3000}, {"at": 0.0, "model": LARGE, "output": 5}]
    spilled = play({"name": "least_loaded", "level": "deepest"}, env, requests(models, both))[0]
    whole = play({"name": "least_loaded", "level": "whole"}, env, requests(models, both))[0]
    assert spilled["level"].min() < whole["level"].min() == len(env.limits.levels) - 1


@pytest.mark.parametrize("setting", [{"eviction": "lur"}, {"level": "deep"}])
def test_an_unknown_part_is_refused_with_the_nearest_name(setting: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        make_policy({"name": "mect", **setting})


@pytest.mark.parametrize(
    "name", ["fcfs", "least_loaded", "collate", "sjf", "edf", "vtc", "serverless_llm", "qlm", "ollama"]
)
def test_a_model_is_loaded_again_for_a_request_too_long_for_it_as_it_is(name: str) -> None:
    """As engines do for a longer context; without, the request would wait until nothing else is left."""
    models = (LARGE,)
    rows = [{"at": 0.0, "model": LARGE, "output": 10}]
    rows += [{"at": 20.0, "model": LARGE, "output": 10, "prompt_tokens": 20000, "max_tokens": 100}]
    rows += [{"at": 400.0, "model": LARGE, "output": 10}]
    records, _, _ = play(name, config(models), requests(models, rows))
    assert records["dispatch_s"][1] < 60.0


@pytest.mark.parametrize("name", ["srpt", "mlfq", "cmu", "preemptive", "composite"])
def test_models_do_not_put_each_other_out_for_ever(name: str) -> None:
    """Many requests of two models that do not fit side by side, most of which have waited long: each might come first."""
    rng = np.random.default_rng(3)
    rows = [
        {
            "at": 0.5 * i,
            "model": PAIR[i % 2],
            "output": int(rng.integers(10, 600)),
            "weight": float(rng.choice([0.25, 1.0])),
            "prompt_tokens": int(rng.integers(50, 1500)),
        }
        for i in range(60)
    ]
    settings = {"srpt": {"factor": 1.0}, "cmu": {"factor": 1.0}, "preemptive": {"factor": 1.0}}
    settings |= {"mlfq": {"quantum_s": 0.5}, "composite": {"factor": 1.0, "max_wait_s": 20.0}}
    records, _, _ = play({"name": name, **settings[name]}, config(PAIR), requests(PAIR, rows))
    assert (records["finish_s"] > 0).all()


def test_srpt_does_not_put_requests_off_for_each_other() -> None:
    """With ageing the one put off comes first again at once: it would be let in and put off without end."""
    rows = [{"at": 0.0, "model": MIDDLE, "output": 2000, "max_tokens": 2000}] * 16
    rows += [{"at": 5.0 + i, "model": MIDDLE, "output": 1500, "max_tokens": 2000} for i in range(3)]
    records, _, _ = play({"name": "srpt", "factor": 1.0, "ageing": 1.0}, config(PAIR), requests(PAIR, rows))
    assert records["num_preemptions"].sum() < 100


def test_composite_unloads_an_idle_model_that_keeps_a_batch_small() -> None:
    """Beside the small model the large one has memory for the KV cache of two requests, without it for three."""
    models = (SMALL, LARGE)
    rows = [{"at": 0.0, "model": SMALL, "output": 5}] + [{"at": 30.0, "model": LARGE, "output": 400}] * 3
    env, trace = config(models), requests(models, rows)
    mect, composite = (play(name, env, trace)[0] for name in ("mect", "composite"))
    assert mect["dispatch_s"][3] >= mect["finish_s"][1]
    assert composite["dispatch_s"][3] < composite["finish_s"][1:].min()
    assert composite["finish_s"][3] < mect["finish_s"][3] - 5


def test_composite_spares_the_requests_of_a_busy_gpu() -> None:
    """The quicker GPU is quicker for each alone, but each slows those that are there already."""
    models, gpus = ("qwen3-8b-f16", SMALL), ("rtx-4090-24gb", "rtx-5060-ti-16gb")
    rows = [{"at": 0.0, "model": models[0], "output": 2000, "max_tokens": 2000}] * 6
    env, trace = config(models, gpus), requests(models, rows)
    slots = env.limits.slots
    alone, sparing = (
        set(play({"name": "composite", "harm": harm}, env, trace)[0]["instance"] // slots) for harm in (0.0, 1.0)
    )
    assert alone == {0} and sparing == {0, 1}


def test_a_load_that_many_wait_for_comes_first_if_that_was_learned() -> None:
    """One short request against four of another model: by itself the rule takes the one that is done soonest."""
    pair = (MIDDLE, LARGE)
    rows = [{"at": 0.0, "model": MIDDLE, "output": 100}, *[{"at": 0.0, "model": LARGE, "output": 200}] * 4]
    env, trace = config(pair), requests(pair, rows)
    assert started("composite", env, trace)[0] == 0
    assert started({"name": "composite", "weights": {"order_load_others": 3.0}}, env, trace)[0] != 0
