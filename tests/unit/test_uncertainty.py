"""cluster.uncertainty=sample: costs drawn per episode from what the profiles state, from the episode's seed alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mmsched_env.config import ClusterConfig, ModelsConfig, env_config
from mmsched_env.costmodel.number import MOST_DEVIATIONS, Curve, Number, drawn
from mmsched_env.costmodel.profile import load_gpu
from mmsched_env.costmodel.tables import CostTables, build_tables
from mmsched_env.env import ServingEnv
from mmsched_env.errors import ConfigError
from mmsched_env.vector_env import ServingVectorEnv

LEVELS = (0.0, 0.5, 1.0)
CLUSTER = ClusterConfig(("rtx-4090-24gb", "rtx-3060-12gb", "rtx-4090-24gb"), ("desktop-ddr5",), ())
MODELS = ModelsConfig(("llama-3-8b-q4_k_m", "qwen2.5-3b-f16"))


def tables(seed: int | None = None) -> CostTables:
    return build_tables(CLUSTER, MODELS, LEVELS, 8, seed)


def config(uncertainty: str) -> dict[str, Any]:
    return {
        "cluster": {"gpus": ["rtx-4090-24gb", "rtx-3060-12gb"], "hosts": ["desktop-ddr5"], "gpu_hosts": [0, 0]}
        | {"uncertainty": uncertainty},
        "models": {"names": list(MODELS.names)},
    }


def test_a_figure_is_off_by_its_own_error_and_stays_positive() -> None:
    number = Number(10.0, "s", "fitted", "test", 0.1)
    assert drawn(number, 1.0).value == pytest.approx(10 * np.exp(0.1))  # type: ignore[operator]
    assert drawn(number, -50.0) == drawn(number, -MOST_DEVIATIONS)
    assert drawn(dataclasses.replace(number, spread=None), 1.0).value == 10.0
    curve = Curve(((1.0, 1.0), (2.0, 1.5), (4.0, 2.0)), "relative", "fitted", "test", 0.5)
    first, *rest = drawn(curve, 1.0).value  # type: ignore[misc]
    assert first == (1.0, 1.0) and rest[0][1] > 1.5 and rest[1][1] > rest[0][1]


def test_the_same_seed_draws_the_same_costs_and_none_draws_none() -> None:
    for field in dataclasses.fields(CostTables):
        same = [getattr(tables(seed), field.name) for seed in (3, 3)]
        np.testing.assert_array_equal(*same)
    assert (tables(3).gpu_base != tables(4).gpu_base).any()
    np.testing.assert_array_equal(tables().gpu_base, build_tables(CLUSTER, MODELS, LEVELS, 8).gpu_base)


def test_sizes_are_not_drawn_and_two_cards_of_a_kind_are_alike() -> None:
    nominal, one = tables(), tables(7)
    for name in (
        "gpu_weight_bytes",
        "cpu_weight_bytes",
        "kv_gpu_bytes",
        "gpu_bytes",
        "host_bytes",
        "stream_min_tokens",
    ):
        np.testing.assert_array_equal(getattr(nominal, name), getattr(one, name))
    np.testing.assert_array_equal(one.gpu_base[:, 0], one.gpu_base[:, 2])
    assert (
        one.gpu_base[:, 0, 1:] / nominal.gpu_base[:, 0, 1:] != one.gpu_base[:, 1, 1:] / nominal.gpu_base[:, 1, 1:]
    ).all()


def test_draws_scatter_as_the_profile_states() -> None:
    """Log of the read rate over 200 seeds: centred, with the stated error (cut at two of them)."""
    stated = load_gpu("rtx-3060-12gb").read["q4_k_m"].spread
    assert stated
    logs = np.log([tables(seed).gpu_base[0, 1, 2] / tables().gpu_base[0, 1, 2] for seed in range(200)])
    assert abs(logs.mean()) < 0.25 * stated
    assert logs.std() == pytest.approx(0.95 * stated, rel=0.15)


def play(env: Any, steps: int) -> list[tuple[float, float]]:
    """Rewards and times of the first legal action each time (WAIT where nothing else is)."""
    seen = []
    for _ in range(steps):
        legal = np.flatnonzero(env.action_masks())
        _, reward, terminated, truncated, info = env.step(int(legal[len(legal) // 2]))
        seen.append((reward, info["time_s"]))
        if terminated or truncated:
            break
    return seen


def test_single_and_vector_environment_draw_the_same() -> None:
    vector = ServingVectorEnv(3, config("sample"))
    vector.reset(seed=5)
    singles = [ServingEnv(config("sample")) for _ in range(3)]
    for i, env in enumerate(singles):
        env.reset(seed=5 + i)
        np.testing.assert_array_equal(env.simulation.params[0], vector.simulation.params[i])
    assert vector.simulation.params[0] != vector.simulation.params[1]
    for _ in range(60):
        masks = vector.action_masks()
        actions = np.array([legal[len(legal) // 2] for legal in map(np.flatnonzero, masks)])
        _, rewards, *_ = vector.step(actions)
        assert [env.step(int(a))[1] for env, a in zip(singles, actions, strict=True)] == rewards.tolist()


def test_each_episode_has_costs_of_its_own_from_its_seed() -> None:
    env = ServingEnv(config("sample"))
    runs = []
    for seed in (1, 2, 1):
        env.reset(seed=seed)
        runs.append((env.simulation.params[0].copy(), play(env, 80)))
    assert runs[0] == runs[2] and runs[0][0] != runs[1][0]
    env.reset()
    assert env.simulation.params[0] != runs[0][0]


def test_none_is_what_the_profiles_say() -> None:
    plain, default = ServingEnv(config("none")), ServingEnv(config("sample") | {"cluster": config("none")["cluster"]})
    plain.reset(seed=1)
    default.reset(seed=1)
    assert play(plain, 80) == play(default, 80)
    np.testing.assert_array_equal(plain.simulation.params["gpu_base"][0, :2, :2, -1], tables_of(plain)[:, :, -1])


def tables_of(env: ServingEnv) -> Any:
    return env.simulation.tables.gpu_base


def test_a_snapshot_carries_the_costs() -> None:
    """A branch in another simulation goes on with the episode's draw, not with its own."""
    env, other = ServingEnv(config("sample")), ServingEnv(config("sample"))
    env.reset(seed=1)
    play(env, 20)
    other.reset(seed=2)
    other.set_state(env.get_state())
    assert play(env, 60) == play(other, 60)


def test_unknown_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.uncertainty is 'some'; accepted: none or sample"):
        env_config({"cluster": {"uncertainty": "some"}})
