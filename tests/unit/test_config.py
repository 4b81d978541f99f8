"""Configuration: plain values in, one clear line out when something is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mmsched_env import config as c
from mmsched_env.config import ConfigError, EnvConfig, env_config

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"clutser": {}}, "unknown configuration key 'clutser' (did you mean 'cluster'?)"),
        ({"sim": {"ubatch": 3}}, "unknown configuration key 'sim.ubatch' (did you mean 'sim.ubatch_tokens'?)"),
        ({"sim": {"prefill_mode": "fast"}}, "sim.prefill_mode is 'fast'; accepted: mixed or prefill_first"),
        ({"sim": {"preempt_mode": ""}}, "sim.preempt_mode is ''; accepted: swap or recompute or cheaper"),
        ({"sim": {"resize_mode": 1}}, "sim.resize_mode is 1; accepted: text"),
        ({"sim": {"ubatch_tokens": 0}}, "sim.ubatch_tokens is 0; accepted: a whole number in [1, 2**31)"),
        ({"sim": {"ubatch_tokens": 2.5}}, "sim.ubatch_tokens is 2.5; accepted: a whole number"),
        ({"sim": {"strict_actions": 1}}, "sim.strict_actions is 1; accepted: true or false"),
        ({"sim": {"max_time_s": 0}}, "sim.max_time_s is 0.0; accepted: seconds > 0"),
        ({"sim": {"max_time_s": NAN}}, "sim.max_time_s is nan; accepted: a number"),
        ({"sim": {"max_steps": True}}, "sim.max_steps is True; accepted: a whole number"),
        ({"sim": None}, "sim is None; accepted: a mapping of keys to values"),
        ({"reward": {"flow_time": -1}}, "reward.flow_time is -1.0; accepted: a number >= 0"),
        ({"reward": {"slowdown": INF}}, "reward.slowdown is inf; accepted: a number >= 0"),
        ({"limits": {"queue": 0}}, "limits.queue is 0; accepted: a whole number in [1, 4096]"),
        ({"limits": {"gpus": 10**30}}, "accepted: a whole number in [1, 4096]"),
        ({"sim": {"max_steps": 10**19}}, "accepted: a whole number in [1, 2**62]"),
        ({"limits": {"levels": [0.5, 0.2]}}, "limits.levels is (0.5, 0.2); accepted: rising shares in [0, 1]"),
        ({"limits": {"levels": [0, 1.5]}}, "limits.levels is (0.0, 1.5); accepted: rising shares in [0, 1]"),
        ({"limits": {"levels": "all"}}, "limits.levels is 'all'; accepted: a list of float"),
        ({"limits": {"levels": [0, "x"]}}, "limits.levels[1] is 'x'; accepted: a number"),
        ({"cluster": {"gpus": []}}, "cluster.gpus is (); accepted: at least one GPU profile name"),
        (
            {"cluster": {"gpu_hosts": [0, 0, 1, 2]}},
            "cluster.gpu_hosts is (0, 0, 1, 2); accepted: one host index (0..1)",
        ),
        ({"cluster": {"kv_swap_fraction": 1}}, "cluster.kv_swap_fraction is 1.0; accepted: a number in [0, 1)"),
        ({"models": {"names": []}}, "models.names is (); accepted: at least one model profile name"),
        ({"models": {"names": ["a", "a"]}}, "models.names is ('a', 'a'); accepted: no name twice"),
        ({"limits": {"models": 2}}, "models.names is '7 entries'; accepted: at most limits.models=2"),
        ({"limits": {"gpus": 3}}, "cluster.gpus is '4 entries'; accepted: at most limits.gpus=3"),
        ({"workload": {"num_requests": 3}}, "workload.kind is missing"),
        ({"workload": {"kind": "generater"}}, "unknown workload.kind 'generater' (did you mean 'generator'?)"),
        ({"workload": {"kind": "generator", "rate_per_s": 0}}, "workload.rate_per_s is 0"),
        ({"workload": {"kind": "generator", "prompt": {"medain": 3}}}, "workload.prompt.medain"),
        ({"workload": "generator"}, "workload is 'generator'"),
        ({"workload": 3}, "workload is 3"),
        ("sim", "configuration is 'sim'"),
        ([1], "configuration is [1]"),
    ],
    ids=str,
)
def test_bad_values(values: Any, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        env_config(values)
    message = str(error.value)
    assert message.startswith(words) or words in message
    assert "\n" not in message and message.count("accepted:") <= 1


def test_unknown_profiles_are_named(tiny: Any) -> None:
    from mmsched_env.env import ServingEnv

    for values, words in (
        ({"cluster": {"gpus": ["rtx-3099"], "gpu_hosts": [0]}}, "rtx-3090-24gb"),
        ({"models": {"names": ["llama-3.2-1b"]}}, "llama-3.2-1b-f16"),
        ({"cluster": {"gpus": ["rtx-3090-24gb"], "hosts": ["desktop"], "gpu_hosts": [0]}}, "desktop-ddr4"),
    ):
        with pytest.raises(ConfigError, match=words) as error:
            ServingEnv(values)
        assert "\n" not in str(error.value)


def test_a_model_that_fits_nowhere() -> None:
    from mmsched_env.env import ServingEnv

    cluster = {"gpus": ["rtx-3060-12gb"], "hosts": ["desktop-ddr4"], "gpu_hosts": [0], "kv_swap_fraction": 0.9}
    models = {"names": ["llama-3.2-1b-f16", "llama-2-70b-q4_k_m"]}
    with pytest.raises(ConfigError, match=r"models.names\[1\] 'llama-2-70b-q4_k_m' fits on no GPU"):
        ServingEnv({"cluster": cluster, "models": models})


def test_plain_values_become_the_same_configuration() -> None:
    """What YAML gives: lists for tuples, whole numbers for floats."""
    config = env_config({"cluster": {"kv_swap_fraction": 0}, "limits": {"levels": [0, 1]}, "sim": {"max_time_s": 60}})
    assert config.limits.levels == (0.0, 1.0) and isinstance(config.limits.levels[0], float)
    assert config.sim.max_time_s == 60.0 and isinstance(config.sim.max_time_s, float)
    assert env_config(None) == env_config({}) == EnvConfig()
    assert env_config(config) is config


def test_values_round_trip() -> None:
    config = EnvConfig()
    plain = {
        name: dataclasses.asdict(getattr(config, name)) for name in ("cluster", "models", "limits", "sim", "reward")
    }
    assert env_config(plain) == config
    assert len({hash(config.sim), hash(c.SimConfig(max_steps=5))}) == 2


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EnvConfig().sim.max_steps = 3  # type: ignore[misc]
