"""The estimates that networks see, against the composite rule that owns their formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mmsched_env.agents import estimates as translated
from mmsched_env.agents.estimates import LONG_S
from mmsched_env.agents.extractors import EntityExtractor
from mmsched_env.agents.learner import BatchView, learner_space
from mmsched_env.baselines import composite
from mmsched_env.baselines.rules import sources_of
from mmsched_env.baselines.view import View
from mmsched_env.config import ClusterConfig, EnvConfig
from mmsched_env.core import Simulation
from mmsched_env.sim.jit import entry_point, records
from mmsched_env.workload import GeneratorConfig

CROWDED = EnvConfig(
    cluster=ClusterConfig(gpus=("rtx-a6000-48gb", "rtx-4090-24gb"), gpu_hosts=(0, 0)),
    workload=GeneratorConfig(num_requests=300, rate_per_s=1.5),
)
"""many models on two GPUs: idle ones stand in the way of requests, and some spill to the CPU"""
own_cost, harm, least_cost = composite.own_cost, composite.harm, composite.least_cost


def _table(observations, masks, memories, knobs, cost, hurt, choice):
    for e in range(masks.shape[0]):
        seen = observations[e]
        blocks = seen.queue, seen.instances, seen.gpus, seen.models, seen.pairs, seen.globals
        one = View(*blocks, masks[e], memories[e])
        for q in range(cost.shape[1]):
            if one.queue[q].present > 0.0:
                _, choice[e, q, 0], choice[e, q, 1] = least_cost(one, q, knobs)
                for g in range(cost.shape[2]):
                    for k in range(cost.shape[3]):
                        cost[e, q, g, k] = own_cost(one, q, g, k, knobs)
                        hurt[e, q, g, k] = harm(one, q, g, k, knobs) if cost[e, q, g, k] < np.inf else 0.0


rule_table = entry_point(_table, (Path(__file__), *sources_of(Path(composite.__file__))))


def rule_says(view):
    """Cost (B, Q, G, K), harm (B, Q, G, K) and choice (B, Q, 2) of GPU and level."""
    rule, current, dims = view.rules[0], view.simulation.current, view.simulation.dims
    shape = (view.simulation.num_envs, dims.Q, dims.G, dims.K)
    cost, hurt, choice = np.full(shape, np.inf), np.zeros(shape), np.full((*shape[:2], 2), -1)
    rule_table(current.records, current.mask, records(rule.memory), rule.rule.knobs, cost, hurt, choice)
    return cost, hurt, choice


def network_sees(extractor, view):
    """The same from the tensors."""
    dims, count = view.simulation.dims, view.simulation.num_envs
    seen = {key: torch.as_tensor(np.array(values), dtype=torch.float32) for key, values in view.observation().items()}
    found = extractor(seen)
    fields = dict(zip(translated.FIELDS, found.estimates.unbind(-1), strict=True))

    def spread(values, missing):
        table = np.full((count * dims.Q * dims.G, dims.K), missing)
        table[found.pair_at.numpy()] = values.numpy()
        return table.reshape(count, dims.Q, dims.G, dims.K)

    cost = spread(torch.where(fields["possible"] > 0, 10.0 ** fields["cost"] - 1, torch.inf), np.inf)
    return cost, spread(10.0 ** fields["harm"] - 1, 0.0), spread(fields["chosen"], 0.0)


@pytest.mark.parametrize("config", [EnvConfig(workload=GeneratorConfig(num_requests=300)), CROWDED])
def test_the_estimates_are_the_composite_rules(config):
    simulation = Simulation(config, 2)
    for env in range(2):
        simulation.reset(env, config.workload.sample(env, config.models.names), env)
    view = BatchView(simulation, ["composite"])
    dims = simulation.dims
    extractor = EntityExtractor(learner_space(dims, 1), dims, 1)
    compared, alike, unlike = 0, 0, 0
    for step in range(400):
        actions = view.rules[0].decide().copy()
        if step % 3 == 0:
            expected, hurt, choice = rule_says(view)
            cost, harm_seen, chosen = network_sees(extractor, view)
            present = simulation.current.records["queue"]["present"] > 0
            weight = simulation.current.records["queue"]["weight"][..., None, None]
            np.testing.assert_array_equal(np.isfinite(cost[present]), np.isfinite(expected[present]))
            short = np.isfinite(expected) & (expected < LONG_S) & present[..., None, None]
            np.testing.assert_allclose(cost[short], expected[short], rtol=2e-3, atol=2e-3)
            np.testing.assert_allclose((harm_seen * weight)[short], hurt[short], rtol=2e-3, atol=2e-3)
            compared += int(short.sum())
            for e, q in zip(*np.nonzero(present), strict=True):
                where = np.argwhere(chosen[e, q] > 0).tolist()
                same = where == ([choice[e, q].tolist()] if choice[e, q, 0] >= 0 else [])
                alike, unlike = alike + same, unlike + (not same)
        outcomes = simulation.step(actions)
        assert not outcomes["terminated"].any()
    assert compared > 1000
    print(compared, alike, unlike)
    assert unlike <= 0.005 * alike  # equal costs but for rounding


def test_the_constants_are_conf_policys():
    values = yaml.safe_load((Path(__file__).parents[2] / "conf" / "policy" / "composite.yaml").read_text())
    assert [values[name] for name in ("sharing", "return_price", "harm", "loading", "level")] == [
        translated.SHARING,
        translated.RETURN_PRICE,
        translated.HARM,
        translated.LOADING,
        "whole",
    ]
