"""Networks: a plain MLP, and a scorer that rates every action with weights shared over requests, GPUs and instances."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from mmsched_env.action import ActionLayout
from mmsched_env.observation import BLOCKS
from mmsched_env.sim.state import NUM_SCOPES, Dims

from .distribution import MaskedCategorical
from .estimates import FIELDS, sums
from .extractors import Entities, EntityExtractor, FlatExtractor

TRUST = 3.0
"""a fresh scorer's weight of the first adviser's action"""
UNASKED = -30.0
"""logit of a PREEMPT or OFFLOAD that no adviser proposes: each alone looks harmless to a rollout in which a rule decides from
then on, and a policy that has learned so takes a request off and lets it in again every few milliseconds"""
PREEMPT, OFFLOAD = -8.0, -10.0
"""their first logits without advisers; drawn as often as the rest, they undo all work and no episode ever ends"""
IDLE = 3.0
"""added to PREEMPT for an idle instance: no work is undone"""
SPEED = 5.0
"""a fresh scorer's weight of an OFFLOAD's speed-up: a random one slows the model down for the rest of the episode"""
EAGERNESS = 20.0
"""a fresh scorer's weight of a DISPATCH's expected time to finish: uniform choices load models onto CPUs, a request then
takes minutes, and the queue is lost before anything can be learned"""
PATIENCE = 1.8
"""the expected time to finish at which a fresh scorer likes DISPATCH as well as WAIT: log10(1 + 60 s)"""
MANY = 16.0
"""requests by which the sum over the queue is divided"""


def first_logits(dims: Dims) -> Tensor:
    """(A,) logits a fresh policy starts from."""
    layout = ActionLayout(dims)
    logits = torch.zeros(dims.A)
    logits[layout.preempt_at :] = PREEMPT
    logits[layout.offload_at :] = OFFLOAD
    return logits


class Scorer(nn.Module):
    """Logits (B, A) and value features (B, hidden) from one vector per model, request, GPU and instance.

    A request knows its model; an instance its model and GPU; a GPU its instances; everyone a summary of the whole.
    DISPATCH (q, g, k) is rated from request q, GPU g and the estimates for the pair; PREEMPT and OFFLOAD from the
    instance and the requests that want its GPU, each by how well it rates there; WAIT from the summary. Weights are
    shared over rows and sizes read off the input, so one set of weights serves any number of GPUs, models and queue
    slots. A fresh scorer does what its first adviser would do, or, without one, dispatches where a request is expected to
    finish soonest; it learns from there.
    """

    def __init__(self, extractor: EntityExtractor, hidden: int) -> None:
        super().__init__()
        levels = extractor.levels
        self.embed = nn.ModuleDict({block: nn.Linear(extractor.widths[block], hidden) for block in BLOCKS})
        self.gpu_from_instances = nn.Linear(hidden, hidden, bias=False)
        self.pair_from_request = nn.Linear(hidden, hidden, bias=False)
        self.pair_from_gpu = nn.Linear(hidden, hidden, bias=False)
        self.instance_hidden = nn.Linear(hidden, hidden, bias=False)
        self.instance_from_demand = nn.Linear(hidden, hidden, bias=False)
        self.summary = nn.Linear(4 * hidden, hidden)
        self.critic = nn.Sequential(nn.Linear(4 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.rate_pair = nn.Linear(hidden, levels)
        self.rate_instance = nn.Linear(hidden, NUM_SCOPES + levels)
        self.rate_waiting = nn.Linear(hidden, 1)
        for layer in (self.rate_pair, self.rate_instance, self.rate_waiting):
            nn.init.orthogonal_(layer.weight, 0.01)
            nn.init.zeros_(layer.bias)
        self.alone = float(extractor.advisers == 0)
        eagerness = torch.zeros(len(FIELDS))
        eagerness[FIELDS.index("cost")] = -EAGERNESS * self.alone
        self.eagerness = nn.Parameter(eagerness)
        self.speed = nn.Parameter(torch.tensor(SPEED * self.alone))
        if extractor.advisers:
            self.trust = nn.Parameter(TRUST * (torch.arange(extractor.advisers) == 0))
            self.waiting_from_advice = nn.Linear(extractor.advisers, hidden, bias=False)

    def forward(self, seen: Entities) -> tuple[Tensor, Tensor]:
        requests, gpus, instances, whole = self._embed(seen)
        return self._logits(seen, requests, gpus, instances, whole), self.critic(whole)

    def forward_actor(self, seen: Entities) -> Tensor:
        return self._logits(seen, *self._embed(seen))

    def forward_critic(self, seen: Entities) -> Tensor:
        value: Tensor = self.critic(self._embed(seen)[-1])
        return value

    def _embed(self, seen: Entities) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Requests (N, h), GPUs (B, G, h), instances (B, G, S, h) and the whole (B, 4 h)."""
        models = self.embed["models"](seen.models)
        gpus = self.embed["gpus"](seen.gpus)
        batch, num_models = models.shape[:2]
        of_model = models.flatten(0, 1)  # row b M + m
        first = torch.arange(batch, device=models.device) * num_models
        of_request = of_model[first[seen.request_env] + seen.request_model]
        # in place: what is large is limited by memory, and a new result is a pass more through it
        requests = self.embed["queue"](seen.requests).add_(of_request).relu_()
        of_instance = of_model[first.view(-1, 1, 1) + seen.instance_model].add_(gpus.unsqueeze(2))
        instances = self.embed["instances"](seen.instances).add_(of_instance).relu_()
        on_gpu = (instances * seen.instance_present).sum(2)
        gpus = torch.relu(gpus + self.gpu_from_instances(on_gpu))
        waiting = sums(requests, seen.request_env, batch)
        parts = [
            waiting / MANY,
            _mean(gpus, seen.gpu_present),
            _mean(torch.relu(models), seen.model_present),
            torch.relu(self.embed["globals"](seen.whole)),
        ]
        return requests, gpus, instances, torch.cat(parts, 1)

    def _logits(self, seen: Entities, requests: Tensor, gpus: Tensor, instances: Tensor, whole: Tensor) -> Tensor:
        batch, num_gpus = gpus.shape[:2]
        summary = torch.relu(self.summary(whole))
        request = self.pair_from_request(requests + summary[seen.request_env])
        pair_gpu = seen.request_env[seen.pair_request] * num_gpus + seen.pair_gpu  # row b G + g
        gpu = self.pair_from_gpu(gpus).flatten(0, 1)
        pairs = self.embed["pairs"](seen.pairs).add_(request[seen.pair_request]).add_(gpu[pair_gpu]).relu_()  # (P, h)
        eager = EAGERNESS * PATIENCE * self.alone
        dispatch = self.rate_pair(pairs) + eager + seen.estimates @ self.eagerness  # (P, K)
        demand = _attend(dispatch.amax(-1), pairs, pair_gpu, batch * num_gpus).view_as(gpus)
        # what all instances of a GPU have in common goes through the layer once
        common = self.instance_hidden(summary).unsqueeze(1) + self.instance_from_demand(demand)
        change = self.rate_instance(self.instance_hidden(instances).add_(common.unsqueeze(2)).relu_())
        preempt = self.alone * (PREEMPT + IDLE * seen.idle) + change[..., :NUM_SCOPES]
        offload = self.alone * OFFLOAD + self.speed * seen.speedup + change[..., NUM_SCOPES:]
        if seen.advice is not None and seen.advised is not None:
            unasked = UNASKED * (1 - seen.advised)
            preempt, offload = preempt + unasked[..., :NUM_SCOPES], offload + unasked[..., NUM_SCOPES:]
            summary = torch.relu(summary + self.waiting_from_advice((seen.advice == 0).float()))
        parts = [
            self.rate_waiting(summary),
            sums(dispatch, seen.pair_at, batch * seen.num_queue * num_gpus).view(batch, -1),
            preempt.flatten(1),
            offload.flatten(1),
        ]
        logits = torch.cat(parts, 1)
        return logits if seen.advice is None else logits.scatter_add(1, seen.advice, self.trust.expand(batch, -1))


class RememberingPolicy(MaskableActorCriticPolicy):
    """sb3-contrib's masked actor-critic that keeps what its features extractor made of the observations it decided on last."""

    decided_on: Any = None

    def remember(self, obs: Any) -> Any:
        """What is made of observations before anything learned, as if they were decided on."""
        self.decided_on = self.extract_features(obs)
        return self.decided_on

    def forward(self, obs: Any, deterministic: bool = False, action_masks: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (B,), their values (B, 1) and log probabilities (B,)."""
        latent_pi, latent_vf = self.mlp_extractor(self.remember(obs))
        distribution = self._get_action_dist_from_latent(latent_pi)
        distribution.apply_masking(action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.value_net(latent_vf), distribution.log_prob(actions)


class ScorerPolicy(RememberingPolicy):
    """sb3-contrib's masked actor-critic with a `Scorer`, whose actor's output is the logits themselves."""

    def _build_mlp_extractor(self) -> None:
        assert isinstance(self.net_arch, dict) and isinstance(self.features_extractor, EntityExtractor)
        self.mlp_extractor = Scorer(self.features_extractor, self.net_arch["pi"][0])  # type: ignore[assignment]

    def _build(self, lr_schedule: Schedule) -> None:
        self._build_mlp_extractor()
        assert isinstance(self.action_space, gym.spaces.Discrete) and isinstance(self.net_arch, dict)
        self.action_dist = MaskedCategorical(int(self.action_space.n))
        self.action_net = nn.Identity()
        self.value_net = nn.Linear(self.net_arch["vf"][0], 1)
        nn.init.orthogonal_(self.value_net.weight)
        nn.init.zeros_(self.value_net.bias)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]


class MlpPolicy(RememberingPolicy):
    """sb3-contrib's masked actor-critic on the flattened observation."""

    def _build(self, lr_schedule: Schedule) -> None:
        assert isinstance(self.features_extractor, FlatExtractor)
        self.action_dist = MaskedCategorical(self.features_extractor.dims.A)
        super()._build(lr_schedule)
        assert isinstance(self.action_net, nn.Linear)
        with torch.no_grad():
            self.action_net.bias.copy_(first_logits(self.features_extractor.dims))


ADVISED = ("scorer",)
"""networks that take advice"""
FIXED_SIZES = {"scorer": "K", "mlp": "QGHMSBK"}
"""sizes of the layout that a network's weights depend on"""


@contextmanager
def cautious(policy: nn.Module, caution: float) -> Iterator[None]:
    """The policy with `caution` more on the logit of its first adviser's action: it departs from advice only where it is surer.

    It does nothing for a policy without advisers.
    """
    trust = getattr(policy.mlp_extractor, "trust", None)
    if trust is None:
        yield
        return
    before = trust.detach().clone()
    with torch.no_grad():
        trust[0] += caution
    try:
        yield
    finally:
        with torch.no_grad():
            trust.copy_(before)


def policy_arguments(
    policy: str, net_arch: tuple[int, ...], dims: Dims, advisers: int
) -> tuple[type[MaskableActorCriticPolicy], dict[str, Any]]:
    """Policy class and its keyword arguments for `MaskablePPO`."""
    classes: dict[str, tuple[type[MaskableActorCriticPolicy], type[BaseFeaturesExtractor]]] = {
        "scorer": (ScorerPolicy, EntityExtractor),
        "mlp": (MlpPolicy, FlatExtractor),
    }
    policy_class, extractor = classes[policy]
    widths = list(net_arch)
    sizes = {"dims": dims, "advisers": advisers} if policy in ADVISED else {"dims": dims}
    return policy_class, {
        "net_arch": {"pi": widths, "vf": widths},
        "activation_fn": nn.ReLU,
        "features_extractor_class": extractor,
        "features_extractor_kwargs": sizes,
    }


def _mean(rows: Tensor, present: Tensor) -> Tensor:
    """Mean (B, h) over the rows (B, n, h) that are there (B, n, 1)."""
    return (rows * present).sum(1) / present.sum(1).clamp(min=1.0)


def _attend(score: Tensor, rows: Tensor, at: Tensor, count: int) -> Tensor:
    """Means (count, h) of the rows (P, h) that belong to each place `at` (P,), weighted by the softmax of their scores (P,);
    zero where there is none."""
    highest = score.detach().new_full((count,), -torch.inf).scatter_reduce(0, at, score.detach(), "amax")
    weight = torch.exp(score - highest[at])
    total = sums(weight, at, count)
    return sums(rows * (weight / total[at]).unsqueeze(-1), at, count)
