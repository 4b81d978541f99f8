"""Networks: a plain MLP, and a scorer that rates every action with weights shared over requests, GPUs and instances."""

from __future__ import annotations

from typing import Any

import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from mmsched_env.action import ActionLayout
from mmsched_env.observation import BLOCKS
from mmsched_env.sim.state import NUM_SCOPES, Dims

from .distribution import MaskedCategorical
from .extractors import Entities, EntityExtractor, FlatExtractor

PREEMPT, OFFLOAD = -8.0, -10.0
"""their first logits; drawn as often as the rest, they undo all work and no episode ever ends"""
IDLE = 3.0
"""added to PREEMPT for an idle instance: no work is undone"""
SPEED = 5.0
"""a fresh scorer's weight of an OFFLOAD's speed-up: a random one slows the model down for the rest of the episode"""
EAGERNESS = 20.0
"""a fresh scorer's weight of a DISPATCH's expected time to finish: uniform choices load models onto CPUs, a request then
takes minutes, and the queue is lost before anything can be learned"""
PATIENCE = 1.8
"""the expected time to finish at which a fresh scorer likes DISPATCH as well as WAIT: log10(1 + 60 s)"""


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
    instance and the requests' pairs with its GPU; WAIT from the summary. Weights are shared over rows, so what is
    learned about one GPU or queue slot holds for all of them. A fresh scorer dispatches where a request is expected to
    finish soonest, and learns from there.
    """

    first_logits: Tensor

    def __init__(self, extractor: EntityExtractor, hidden: int) -> None:
        super().__init__()
        self.dims = dims = extractor.dims
        self.embed = nn.ModuleDict({block: nn.Linear(extractor.widths[block], hidden) for block in BLOCKS})
        self.gpu_from_instances = nn.Linear(hidden, hidden, bias=False)
        self.pair_from_request = nn.Linear(hidden, hidden, bias=False)
        self.pair_from_gpu = nn.Linear(hidden, hidden, bias=False)
        self.instance_hidden = nn.Linear(hidden, hidden, bias=False)
        self.instance_from_demand = nn.Linear(hidden, hidden, bias=False)
        self.summary = nn.Linear(4 * hidden, hidden)
        self.critic = nn.Sequential(nn.Linear(4 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.rate_pair = nn.Linear(hidden, dims.K)
        self.rate_instance = nn.Linear(hidden, NUM_SCOPES + dims.K)
        self.rate_waiting = nn.Linear(hidden, 1)
        for layer in (self.rate_pair, self.rate_instance, self.rate_waiting):
            nn.init.orthogonal_(layer.weight, 0.01)
            nn.init.zeros_(layer.bias)
        self.eagerness = nn.Parameter(torch.tensor(EAGERNESS))
        self.speed = nn.Parameter(torch.tensor(SPEED))
        self.register_buffer("first_logits", first_logits(dims), persistent=False)
        self.latent_dim_pi = dims.A
        self.latent_dim_vf = hidden

    def forward(self, seen: Entities) -> tuple[Tensor, Tensor]:
        requests, gpus, instances, whole = self._embed(seen)
        return self._logits(seen, requests, gpus, instances, whole), self.critic(whole)

    def forward_actor(self, seen: Entities) -> Tensor:
        return self._logits(seen, *self._embed(seen))

    def forward_critic(self, seen: Entities) -> Tensor:
        value: Tensor = self.critic(self._embed(seen)[-1])
        return value

    def _embed(self, seen: Entities) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Requests (N, h), GPUs (B, G, h), instances (N', h) and the whole (B, 4 h)."""
        d = self.dims
        batch = len(seen.gpus)
        models = self.embed["models"](seen.models)
        gpus = self.embed["gpus"](seen.gpus)
        of_model = models.flatten(0, 1)
        requests = torch.relu(self.embed["queue"](seen.requests) + of_model[seen.request_model])
        gpu_at = seen.instance_at // d.S  # row b G + g
        instances = self.embed["instances"](seen.instances) + of_model[seen.instance_model] + gpus.flatten(0, 1)[gpu_at]
        instances = torch.relu(instances)
        on_gpu = instances.new_zeros(batch * d.G, instances.shape[1]).index_add(0, gpu_at, instances)
        gpus = torch.relu(gpus + self.gpu_from_instances(on_gpu).view(batch, d.G, -1))
        waiting = requests.new_zeros(batch, requests.shape[1]).index_add(0, seen.request_at // d.Q, requests) / d.Q
        whole = torch.relu(self.embed["globals"](seen.whole))
        return requests, gpus, instances, torch.cat([waiting, gpus.mean(1), torch.relu(models).mean(1), whole], 1)

    def _logits(self, seen: Entities, requests: Tensor, gpus: Tensor, instances: Tensor, whole: Tensor) -> Tensor:
        d = self.dims
        batch = len(gpus)
        summary = torch.relu(self.summary(whole))
        request = self.pair_from_request(requests + summary[seen.request_at // d.Q])
        gpu = self.pair_from_gpu(gpus)[seen.request_at // d.Q]
        pairs = torch.relu(self.embed["pairs"](seen.pairs) + request.unsqueeze(1) + gpu)  # (N, G, h)
        dispatch = self.rate_pair(pairs) + self.eagerness * (PATIENCE - seen.finish)  # (N, G, K)
        demand = pairs.new_zeros(batch, *pairs.shape[1:]).index_add(0, seen.request_at // d.Q, pairs) / d.Q
        wanted = self.instance_from_demand(demand).flatten(0, 1)[seen.instance_at // d.S]
        instance = self.instance_hidden(instances + summary[seen.instance_at // d.I]) + wanted
        change = self.rate_instance(torch.relu(instance)) + torch.cat(
            [IDLE * seen.idle.expand(-1, NUM_SCOPES), self.speed * seen.speedup], 1
        )
        change = _spread(change, seen.instance_at, batch, d.I)  # (B, I, scopes + K)
        parts = [
            self.rate_waiting(summary),
            _spread(dispatch.flatten(1), seen.request_at, batch, d.Q).flatten(1),
            change[..., :NUM_SCOPES].flatten(1),
            change[..., NUM_SCOPES:].flatten(1),
        ]
        return torch.cat(parts, 1) + self.first_logits


class ScorerPolicy(MaskableActorCriticPolicy):
    """sb3-contrib's masked actor-critic with a `Scorer`, whose actor's output is the logits themselves."""

    def _build_mlp_extractor(self) -> None:
        assert isinstance(self.net_arch, dict) and isinstance(self.features_extractor, EntityExtractor)
        self.mlp_extractor = Scorer(self.features_extractor, self.net_arch["pi"][0])  # type: ignore[assignment]

    def _build(self, lr_schedule: Schedule) -> None:
        self._build_mlp_extractor()
        self.action_dist = MaskedCategorical(self.mlp_extractor.latent_dim_pi)
        self.action_net = nn.Identity()
        self.value_net = nn.Linear(self.mlp_extractor.latent_dim_vf, 1)
        nn.init.orthogonal_(self.value_net.weight)
        nn.init.zeros_(self.value_net.bias)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]


class MlpPolicy(MaskableActorCriticPolicy):
    """sb3-contrib's masked actor-critic on the flattened observation."""

    def _build(self, lr_schedule: Schedule) -> None:
        assert isinstance(self.features_extractor, FlatExtractor)
        self.action_dist = MaskedCategorical(self.features_extractor.dims.A)
        super()._build(lr_schedule)
        assert isinstance(self.action_net, nn.Linear)
        with torch.no_grad():
            self.action_net.bias.copy_(first_logits(self.features_extractor.dims))


def policy_arguments(
    policy: str, net_arch: tuple[int, ...], dims: Dims
) -> tuple[type[MaskableActorCriticPolicy], dict[str, Any]]:
    """Policy class and its keyword arguments for `MaskablePPO`."""
    classes: dict[str, tuple[type[MaskableActorCriticPolicy], type[BaseFeaturesExtractor]]] = {
        "scorer": (ScorerPolicy, EntityExtractor),
        "mlp": (MlpPolicy, FlatExtractor),
    }
    policy_class, extractor = classes[policy]
    widths = list(net_arch)
    return policy_class, {
        "net_arch": {"pi": widths, "vf": widths},
        "activation_fn": nn.ReLU,
        "features_extractor_class": extractor,
        "features_extractor_kwargs": {"dims": dims},
    }


def _spread(rows: Tensor, at: Tensor, batch: int, count: int) -> Tensor:
    """Rows (N, F) at b count + i -> (batch, count, F), zero where there is none."""
    return rows.new_zeros(batch * count, rows.shape[1]).index_copy(0, at, rows).view(batch, count, -1)
