"""The SB3 adapter, the networks and checkpoint files."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from mmsched_env.action import ActionLayout, Kind
from mmsched_env.agents.buffer import TimedRolloutBuffer
from mmsched_env.agents.checkpoint import layout_difference, read_checkpoint
from mmsched_env.agents.config import AgentConfig, TrainConfig
from mmsched_env.agents.distribution import MaskedCategorical
from mmsched_env.agents.extractors import Entities, EntityExtractor, columns
from mmsched_env.agents.learner import ADVICE_KEY
from mmsched_env.agents.mixed_vec_env import MixedVecEnv
from mmsched_env.agents.policies import cautious, policy_arguments
from mmsched_env.agents.sb3_vec_env import ServingSB3VecEnv
from mmsched_env.config import EnvConfig, LimitsConfig, ModelsConfig, SimConfig, build
from mmsched_env.errors import ConfigError
from mmsched_env.observation import MASK_KEY, TABLE, layout_signature
from mmsched_env.sim.state import Dims
from mmsched_env.vector_env import ServingVectorEnv
from mmsched_env.workload import GeneratorConfig

SHORT = EnvConfig(workload=GeneratorConfig(num_requests=8), sim=SimConfig(max_steps=120))
DIMS = Dims.of(LimitsConfig())


def first_legal_dispatch(masks):
    """An action per environment that gets requests served: the first legal DISPATCH, else WAIT."""
    end = ActionLayout(DIMS).preempt_at
    dispatches = masks[:, 1:end]
    return np.where(dispatches.any(1), 1 + dispatches.argmax(1), 0)


# ---------------------------------------------------------------- adapter


def test_adapter_and_vector_environment_agree_step_by_step():
    adapter = ServingSB3VecEnv(3, SHORT)
    plain = ServingVectorEnv(3, SHORT)
    adapter.seed(5)
    seen = adapter.reset()
    expected, _ = plain.reset(seed=5)
    returns, lengths, finished = np.zeros(3), np.zeros(3, int), 0
    for _ in range(400):
        assert seen.keys() == expected.keys()
        for block, values in seen.items():
            np.testing.assert_array_equal(values, expected[block])
        masks = get_action_masks(adapter)
        np.testing.assert_array_equal(masks, expected[MASK_KEY].astype(bool))
        actions = first_legal_dispatch(masks)
        seen, rewards, done, infos = adapter.step(actions)
        expected, plain_rewards, terminated, truncated, plain_infos = plain.step(actions)
        np.testing.assert_allclose(rewards, plain_rewards, rtol=1e-6)
        np.testing.assert_array_equal(done, terminated | truncated)
        returns += plain_rewards
        lengths += 1
        for i in range(3):
            if not done[i]:
                assert infos[i] == {}
                continue
            finished += 1
            final = plain_infos["final_obs"][i]
            for block, values in infos[i]["terminal_observation"].items():
                np.testing.assert_array_equal(values, final[block])
            assert infos[i]["TimeLimit.truncated"] == (truncated[i] and not terminated[i])
            assert infos[i]["episode"]["r"] == pytest.approx(returns[i])
            assert infos[i]["episode"]["l"] == lengths[i]
            assert infos[i]["metrics"] == pytest.approx(
                {k: v[i] for k, v in plain_infos["final_info"]["metrics"].items() if k[0] != "_"}, nan_ok=True
            )
            returns[i] = lengths[i] = 0
    assert finished >= 6


def test_time_limit_is_truncation():
    adapter = ServingSB3VecEnv(2, dataclasses.replace(SHORT, sim=SimConfig(max_time_s=0.5)))
    adapter.reset()
    for _ in range(200):
        _, _, done, infos = adapter.step(first_legal_dispatch(adapter.action_masks()))
        if done.any():
            break
    info = infos[int(np.argmax(done))]
    assert info["TimeLimit.truncated"] is True
    assert info["terminal_observation"]["globals"][0, 0] == pytest.approx(0.5)


def test_last_observation_survives_the_next_step():
    adapter = ServingSB3VecEnv(2, SHORT)
    before = adapter.reset()
    copy = {block: values.copy() for block, values in before.items()}
    adapter.step(first_legal_dispatch(adapter.action_masks()))
    for block, values in before.items():
        np.testing.assert_array_equal(values, copy[block])


def test_elapsed_seconds_are_of_the_episode_that_was_running():
    adapter = ServingSB3VecEnv(1, SHORT)
    adapter.seed(0)
    now = adapter.reset()["globals"][0, 0, 0]
    for _ in range(300):
        seen, _, done, infos = adapter.step(first_legal_dispatch(adapter.action_masks()))
        after = infos[0]["terminal_observation"]["globals"][0, 0] if done[0] else seen["globals"][0, 0, 0]
        assert adapter.elapsed_s[0] == pytest.approx(float(after - now), abs=1e-4 * float(after))
        now = seen["globals"][0, 0, 0]


def test_a_change_costs_in_training_only():
    plain, charged = ServingSB3VecEnv(1, SHORT), ServingSB3VecEnv(1, SHORT, change_cost=3.0)
    cost = 0.0
    for adapter in (plain, charged):
        adapter.seed(0)
        adapter.reset()
    for _ in range(200):
        masks = plain.action_masks()
        changes = masks[:, ActionLayout(DIMS).preempt_at :]
        action = first_legal_dispatch(masks)
        if changes.any() and action[0] == 0:
            action = ActionLayout(DIMS).preempt_at + changes.argmax(1)
        _, reward, done, infos = plain.step(action)
        _, less, _, charged_infos = charged.step(action)
        expected = 3.0 if action[0] >= ActionLayout(DIMS).preempt_at else 0.0
        assert reward[0] - less[0] == pytest.approx(expected, abs=1e-4)
        cost += expected
        if done[0]:
            assert charged_infos[0]["episode"] == infos[0]["episode"]
    assert cost > 0


def test_what_sb3_asks_of_a_vec_env():
    adapter = ServingSB3VecEnv(3, SHORT)
    wrapped = VecNormalize(adapter, norm_obs=False)
    wrapped.reset()
    assert is_masking_supported(adapter) and is_masking_supported(wrapped)
    assert get_action_masks(wrapped).shape == (3, DIMS.A)
    assert not adapter.has_attr("no_such_attribute")
    assert adapter.get_attr("num_envs", indices=[0, 2]) == [3, 3]
    assert len(adapter.env_method("action_masks", indices=1)) == 1
    assert adapter.env_is_wrapped(Monitor) == [True] * 3
    with pytest.raises(AttributeError, match="no_such_method"):
        adapter.env_method("no_such_method")
    observation, rewards, done, infos = adapter.step(np.zeros(3, np.int64))
    assert adapter.observation_space.contains({block: values[0] for block, values in observation.items()})
    assert rewards.dtype == np.float32 and done.dtype == bool and isinstance(infos, list)


# ---------------------------------------------------------------- networks


def batch_of_observations(num_envs=6, steps=25):
    adapter = ServingSB3VecEnv(num_envs, EnvConfig(workload=GeneratorConfig(num_requests=40, rate_per_s=20.0)))
    adapter.seed(1)
    seen = adapter.reset()
    for _ in range(steps):
        seen, *_ = adapter.step(first_legal_dispatch(adapter.action_masks()))
    return adapter, {block: torch.as_tensor(values.copy()) for block, values in seen.items()}


@pytest.mark.parametrize("policy", ["scorer", "mlp"])
def test_a_row_of_a_batch_is_what_it_is_alone(policy):
    adapter, batch = batch_of_observations()
    assert 0 < (batch["queue"][..., columns("queue", DIMS)["present"]] > 0).sum() < batch["queue"][..., 0].numel()
    kind, arguments = policy_arguments(policy, (32,), DIMS, 0)
    torch.manual_seed(0)
    network = kind(adapter.observation_space, adapter.action_space, lambda _: 1e-3, **arguments)
    masks = adapter.action_masks()
    together, values = network.get_distribution(batch, masks).logits, network.predict_values(batch)
    for i in range(len(masks)):
        one = {block: rows[i : i + 1] for block, rows in batch.items()}
        torch.testing.assert_close(network.get_distribution(one, masks[i]).logits, together[i : i + 1])
        torch.testing.assert_close(network.predict_values(one), values[i : i + 1])


def test_scorer_knows_no_order_of_the_queue():
    adapter, batch = batch_of_observations()
    kind, arguments = policy_arguments("scorer", (32,), DIMS, 0)
    network = kind(adapter.observation_space, adapter.action_space, lambda _: 1e-3, **arguments)
    shuffled = dict(batch)
    order = torch.randperm(DIMS.Q)
    for block in ("queue", "pairs"):
        shuffled[block] = batch[block][:, order]
    size = DIMS.G * DIMS.K
    dispatch = slice(1, 1 + DIMS.Q * size)
    shuffled[MASK_KEY] = batch[MASK_KEY].clone()
    shuffled[MASK_KEY][:, dispatch] = batch[MASK_KEY][:, dispatch].view(-1, DIMS.Q, size)[:, order].flatten(1)
    rated, mixed = (network.get_distribution(x).logits[:, 1 : 1 + DIMS.Q * size] for x in (batch, shuffled))
    torch.testing.assert_close(mixed.view(-1, DIMS.Q, size), rated.view(-1, DIMS.Q, size)[:, order])


def test_caution_is_on_the_first_advisers_action_alone_and_for_a_while():
    adapter = ServingSB3VecEnv(4, SHORT, 0.0, ["composite", "fcfs"])
    adapter.seed(1)
    batch = {block: torch.as_tensor(rows.copy()) for block, rows in adapter.reset().items()}
    kind, arguments = policy_arguments("scorer", (32,), DIMS, 2)
    network = kind(adapter.observation_space, adapter.action_space, lambda _: 1e-3, **arguments)
    before = network.get_distribution(batch).logits
    with cautious(network, 2.5):
        more = network.get_distribution(batch).logits - before
    expected = torch.zeros_like(before)
    expected[torch.arange(4), batch[ADVICE_KEY][:, 0].long()] = 2.5
    torch.testing.assert_close(more, expected, rtol=0, atol=1e-5)
    assert torch.equal(network.get_distribution(batch).logits, before)


def test_a_scorers_logits_do_not_depend_on_padding(larger_limits):
    """The same cluster and trace in larger limits: every action has the logit it had, and so have the values."""
    config = EnvConfig(workload=GeneratorConfig(num_requests=40, rate_per_s=5.0))
    plain, padded = ServingSB3VecEnv(4, config), ServingSB3VecEnv(4, dataclasses.replace(config, limits=larger_limits))
    dims = Dims.of(larger_limits)
    networks = []
    for adapter, sizes in ((plain, DIMS), (padded, dims)):
        kind, arguments = policy_arguments("scorer", (32,), sizes, 0)
        networks.append(kind(adapter.observation_space, adapter.action_space, lambda _: 1e-3, **arguments))
    networks[1].load_state_dict(networks[0].state_dict())
    same = _actions_in_larger(ActionLayout(DIMS), ActionLayout(dims))
    observations = []
    for adapter in (plain, padded):
        adapter.seed(3)
        observations.append(adapter.reset())
    compared = 0
    for _ in range(60):
        masks = plain.action_masks()
        if observations[0]["globals"][:, 0, 3].max() > 0:  # beyond the smaller window: the queues differ
            break
        np.testing.assert_array_equal(masks, padded.action_masks()[:, same])
        batches = [{block: torch.as_tensor(values.copy()) for block, values in seen.items()} for seen in observations]
        ours, theirs = (n.get_distribution(b).logits for n, b in zip(networks, batches, strict=True))
        torch.testing.assert_close(theirs[:, same], ours, rtol=1e-4, atol=1e-4)
        values = [n.predict_values(b) for n, b in zip(networks, batches, strict=True)]
        torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=1e-4)
        actions = first_legal_dispatch(masks)
        observations = [plain.step(actions)[0], padded.step(np.array([same[a] for a in actions]))[0]]
        compared += 1
    assert compared >= 10


def _actions_in_larger(small, large):
    """Index in the larger layout of each action of the smaller one."""
    same = [0]
    for index in range(1, small.size):
        action = small.decode(index)
        slot = action.gpu * large.dims.S + action.slot
        if action.kind == Kind.DISPATCH:
            same.append(large.dispatch(action.queue_slot, action.gpu, action.level))
        elif action.kind == Kind.PREEMPT:
            same.append(large.preempt(slot, action.scope == 0))
        else:
            same.append(large.offload(slot, action.level))
    return np.array(same)


def test_a_mixture_is_its_parts_in_a_row(larger_limits):
    other = dataclasses.replace(SHORT, models=ModelsConfig(names=("llama-3.2-1b-f16", "qwen2.5-3b-f16")))
    alone = [ServingSB3VecEnv(2, config) for config in (SHORT, other)]
    mixed = MixedVecEnv([ServingSB3VecEnv(2, config) for config in (SHORT, other)])
    mixed.seed(7)
    seen = mixed.reset()
    for at, part in enumerate(alone):
        part.seed(7 + 2 * at)
        part.reset()
    for _ in range(60):
        masks = np.stack(get_action_masks(mixed))
        np.testing.assert_array_equal(masks, np.concatenate([part.action_masks() for part in alone]))
        actions = first_legal_dispatch(masks)
        seen, rewards, done, infos = mixed.step(actions)
        for at, part in enumerate(alone):
            rows = slice(2 * at, 2 * at + 2)
            expected, part_rewards, part_done, part_infos = part.step(actions[rows])
            for block, values in expected.items():
                np.testing.assert_array_equal(seen[block][rows], values)
            np.testing.assert_array_equal(rewards[rows], part_rewards)
            np.testing.assert_array_equal(done[rows], part_done)
            assert [bool(info) for info in infos[rows]] == [bool(info) for info in part_infos]
    with pytest.raises(ConfigError, match="scenario 1 of the training has other limits"):
        MixedVecEnv([ServingSB3VecEnv(1, SHORT), ServingSB3VecEnv(1, dataclasses.replace(SHORT, limits=larger_limits))])


def test_masked_distribution_is_sb3_contribs():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, DIMS.A, generator=generator)
    masks = torch.rand(50, DIMS.A, generator=generator) < 0.05
    masks[:, 0] = True
    masks[0, 1:] = False
    actions = masks.float().multinomial(1, generator=generator).squeeze(1)
    ours = MaskedCategorical(DIMS.A).proba_distribution(logits)
    theirs = MaskableCategoricalDistribution(DIMS.A).proba_distribution(logits)
    for distribution in (ours, theirs):
        distribution.apply_masking(masks.numpy())
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.mode(), theirs.mode())
    assert masks.gather(1, ours.sample().unsqueeze(1)).all()


def test_columns_cover_every_field_once():
    for block in TABLE:
        spans = sorted((span.start, span.stop) for span in columns(block, DIMS).values())
        assert spans[0][0] == 0
        assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))


def test_discount_is_by_simulated_time():
    seconds = iter([0.0, 10.0, 5.0])
    adapter = ServingSB3VecEnv(1, SHORT)
    buffer = TimedRolloutBuffer(
        3,
        adapter.observation_space,
        adapter.action_space,
        elapsed_s=lambda: np.array([next(seconds)]),
        horizon_s=10.0,
        trace_s=np.inf,
        gae_lambda=1.0,
        gamma=1.0,
    )
    buffer.reset()
    seen = adapter.reset()
    for reward in (-1.0, -2.0, -4.0):
        nothing = torch.zeros(1)
        buffer.add(seen, np.zeros((1, 1)), np.array([reward]), np.zeros(1), nothing, nothing)
    buffer.compute_returns_and_advantage(torch.tensor([[-8.0]]), np.array([False]))
    last = -4.0 - 8.0 * np.exp(-0.5)
    np.testing.assert_allclose(
        buffer.returns[:, 0], [-1 - 2 + np.exp(-1) * last, -2 + np.exp(-1) * last, last], rtol=1e-6
    )


def test_features_of_chosen_observations_are_those_of_the_observations_chosen():
    """What an update takes once for all epochs; the first observations have nothing waiting, later ones do."""
    env = ServingVectorEnv(6, SHORT)
    seen, _ = env.reset(seed=1)
    for _ in range(8):
        seen, *_ = env.step(np.where(seen[MASK_KEY][:, 0] == 1, 0, first_legal_dispatch(seen[MASK_KEY])))
    extractor = EntityExtractor(env.single_observation_space, DIMS, 0)
    batch = {block: torch.as_tensor(values).float() for block, values in seen.items()}
    chosen = torch.tensor([4, 1, 5, 1])
    halves = [extractor({block: values[rows] for block, values in batch.items()}) for rows in (slice(4), slice(4, 6))]
    taken = Entities.joined(halves).take(chosen).tensors()
    expected = extractor({block: values[chosen] for block, values in batch.items()}).tensors()
    assert len(expected["requests"]) > 0 and taken.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(value, taken[name]), name


# ---------------------------------------------------------------- configuration and files


def test_yaml_and_dataclass_have_the_same_values():
    file = Path(__file__).parents[2] / "conf" / "agent" / "maskable_ppo.yaml"
    values = yaml.safe_load(file.read_text())
    values["learning_rate"] = float(values["learning_rate"])
    assert build(AgentConfig, values) == AgentConfig()
    assert set(values) == {field.name for field in dataclasses.fields(AgentConfig)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"agent": {"policy": "cnn"}}, "agent.policy is 'cnn'"),
        ({"agent": {"net_arch": [64, 64]}}, "agent.net_arch"),
        ({"agent": {"gamma": 1.5}}, "agent.gamma is 1.5"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"agent": {"imitation": {"steps": 0}}}, "agent.imitation.steps is 0"),
        ({"agent": {"improvement": {"width": 1}}}, "agent.improvement.width is 1"),
        ({"agent": {"improvement": {"worlds": -1}}}, "agent.improvement.worlds is -1"),
        ({"agent": {"improvement": {"cautions": [-1.0]}}}, "agent.improvement.cautions is"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        build(TrainConfig, values)


@pytest.mark.parametrize("name", ["missing.zip", "text.zip", "policy.pt"])
def test_what_is_no_checkpoint_is_refused(tmp_path, name):
    (tmp_path / "text.zip").write_text("no zip file")
    (tmp_path / "policy.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=name) as caught:
        read_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_layout_differences_are_named():
    now = layout_signature(DIMS)
    assert layout_difference(now, layout_signature(DIMS)) == ""
    other = layout_signature(dataclasses.replace(DIMS, Q=20))
    other["fields"]["gpus"] = [*other["fields"]["gpus"][1:], "watts"]
    text = layout_difference(other, now)
    assert "size Q is 20 in the checkpoint, 16 here" in text
    assert "fields of gpus only in the checkpoint: watts" in text
    assert "fields of gpus only here: present" in text
