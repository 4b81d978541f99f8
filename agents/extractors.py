"""From the observation in plain units to network input: values squashed, rows that hold nothing left out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from mmsched_env.observation import BLOCKS, MASK_KEY, block_dtype, block_shape, block_width
from mmsched_env.sim.state import NUM_SCOPES, Dims

from .estimates import FIELDS, GpuState, Rows, estimates
from .estimates import log1p10 as squash
from .learner import ADVICE_KEY

FINE = ("token_s", "step_s", "level_step_s", "arrivals_per_s")
"""fields whose typical values are hundredths; they are multiplied by 100 before squashing"""
HIDDEN = ("time_s", "model", "host")
"""fields a network does not get as numbers: the clock, which would tie a policy to the length of its training episodes,
and indices, which mean something else in every cluster"""


class Squash(nn.Module):
    """Rows of one block (..., F), each value x as sign(x) log10(1 + |x|): seconds, tokens, gigabytes become 0 .. 3."""

    scale: Tensor

    def __init__(self, block: str, dims: Dims) -> None:
        super().__init__()
        self.columns = columns(block, dims)
        scale = torch.ones(block_width(block, dims))
        for name in FINE:
            if name in self.columns:
                scale[self.columns[name]] = 100.0
        for name in HIDDEN:
            if name in self.columns:
                scale[self.columns[name]] = 0.0
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        return squash(rows * self.scale)


OF_REQUESTS = ("request_env", "request_slot", "requests", "request_model")
OF_PAIRS = ("pair_request", "pair_gpu", "pairs")


@dataclass(frozen=True)
class Entities:
    """A batch of B observations as a scorer wants it: N waiting requests and P pairs of one with a GPU that is there, as most
    of the queue's rows hold nothing; GPUs, their instances and models in whole."""

    num_queue: int
    """Q of the layout"""
    request_env: Tensor
    """(N,) which observation each waiting request is of, ascending"""
    request_slot: Tensor
    """(N,) its row of the queue"""
    requests: Tensor
    """(N, F)"""
    request_model: Tensor
    """(N,)"""
    pair_request: Tensor
    """(P,) row n of its request"""
    pair_gpu: Tensor
    """(P,)"""
    pairs: Tensor
    """(P, F + K (E + R)) with E estimates and R pieces of advice for each level"""
    instances: Tensor
    """(B, G, S, F + 1 + (2 + K) R)"""
    instance_present: Tensor
    """(B, G, S, 1)"""
    instance_model: Tensor
    """(B, G, S)"""
    idle: Tensor
    """(B, G, S, 1) 1 where nothing is seated on the instance"""
    speedup: Tensor
    """(B, G, S, K) how much faster each level decodes, in powers of ten of the step's hundredths; 0: no such level"""
    gpus: Tensor
    """(B, G, F)"""
    gpu_present: Tensor
    """(B, G, 1)"""
    models: Tensor
    """(B, M, F)"""
    model_present: Tensor
    """(B, M, 1)"""
    whole: Tensor
    """(B, F)"""
    advised: Tensor | None
    """(B, G, S, 2 + K) 1 at the changes of an instance that some rule would make now"""
    advice: Tensor | None
    """(B, R) the action that each of R rules would take; in `pairs` and `instances` too"""

    @property
    def estimates(self) -> Tensor:
        """(P, K, E) see estimates.py; fields of `pairs`."""
        levels, advisers = self.speedup.shape[-1], 0 if self.advice is None else self.advice.shape[1]
        first = self.pairs.shape[1] - levels * (len(FIELDS) + advisers)
        return self.pairs[:, first : first + levels * len(FIELDS)].reshape(-1, levels, len(FIELDS))

    @property
    def pair_at(self) -> Tensor:
        """(P,) row (b Q + q) G + g."""
        slot = self.request_env * self.num_queue + self.request_slot
        return slot[self.pair_request] * self.gpus.shape[1] + self.pair_gpu

    def tensors(self) -> dict[str, Tensor]:
        """All there are, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def take(self, at: Tensor) -> Entities:
        """Those of the observations `at` (B',), in that order."""
        request, request_env = _rows_of(self.request_env, at, len(self.gpus))
        pair, pair_env = _rows_of(self.request_env[self.pair_request], at, len(self.gpus))
        rows = dict.fromkeys(OF_REQUESTS, request) | dict.fromkeys(OF_PAIRS, pair)
        taken: dict[str, Any] = {name: value[rows.get(name, at)] for name, value in self.tensors().items()}
        moved = _counts(request_env, len(at))[1] - _counts(self.request_env, len(self.gpus))[1][at]
        taken |= {"request_env": request_env, "pair_request": taken["pair_request"] + moved[pair_env]}
        return replace(self, **taken)

    @staticmethod
    def joined(parts: Sequence[Entities]) -> Entities:
        """Those of one batch after those of another."""
        envs = itertools.accumulate((len(part.gpus) for part in parts), initial=0)
        requests = itertools.accumulate((len(part.requests) for part in parts), initial=0)
        moved = [
            part.tensors() | {"request_env": part.request_env + env, "pair_request": part.pair_request + request}
            for part, env, request in zip(parts, envs, requests, strict=False)
        ]
        joined: dict[str, Any] = {name: torch.cat([part[name] for part in moved]) for name in moved[0]}
        return replace(parts[0], **joined)


class EntityExtractor(BaseFeaturesExtractor):
    """The observation's present rows, squashed, with the estimates a rule would make of them and what `advisers` rules would
    do: `Entities`.

    Sizes are read off the observation; only the numbers of levels K and of advisers R are the network's own.
    """

    def __init__(self, observation_space: gym.spaces.Dict, dims: Dims, advisers: int) -> None:
        super().__init__(observation_space, features_dim=1)
        self.levels = dims.K
        self.advisers = advisers
        self.squash = nn.ModuleDict({block: Squash(block, dims) for block in BLOCKS})
        self.columns = {block: columns(block, dims) for block in BLOCKS}
        self.widths = {block: block_width(block, dims) for block in BLOCKS}
        self.widths["pairs"] += dims.K * (len(FIELDS) + advisers)
        self.widths["instances"] += 1 + (NUM_SCOPES + dims.K) * advisers

    def forward(self, observation: dict[str, Tensor]) -> Entities:
        num_queue, num_gpus = observation["pairs"].shape[1:3]
        num_slots = observation["instances"].shape[1] // num_gpus
        queue = self.columns["queue"]
        request_at = observation["queue"][..., queue["present"]].flatten().nonzero().squeeze(1)  # row b Q + q
        requests = observation["queue"].flatten(0, 1)[request_at]
        env = request_at // num_queue
        there = observation["gpus"][..., self.columns["gpus"]["present"]]  # (B, G, 1)
        pair = there.squeeze(-1)[env].flatten().nonzero().squeeze(1)  # row n G + g
        pair_request = pair // num_gpus
        gpu = pair - pair_request * num_gpus
        pair_at = request_at[pair_request] * num_gpus + gpu
        pairs = observation["pairs"].flatten(0, 2)[pair_at]
        mask = observation[MASK_KEY].unsqueeze(-1)  # (B, A, 1)
        sizes = (num_queue, num_gpus, num_slots)
        legal, unloads = (self._by_row(mask, part, sizes).flatten(1) for part in ("pairs", "instances"))
        state, keep_value = self._gpu_state(observation, unloads[:, 0])
        estimated, _ = estimates(
            Rows(requests, queue),
            Rows(pairs, self.columns["pairs"]),
            state,
            legal[pair_at],
            pair_request,
            env[pair_request] * num_gpus + gpu,
            env,
            mask.shape[0],
        )
        rows = observation["instances"]
        instances = rows.reshape(rows.shape[0], num_gpus, num_slots, rows.shape[2])
        squashed = self.squash["instances"](instances)
        of_pairs = [self.squash["pairs"](pairs), estimated.flatten(1)]
        of_instances = [squashed, squash(keep_value).view_as(squashed[..., :1])]
        advice = advised = None
        if self.advisers:
            advice = observation[ADVICE_KEY].long()
            at_actions = _advised(observation[ADVICE_KEY], mask)
            of_pairs.append(self._by_row(at_actions, "pairs", sizes).flatten(1)[pair_at])
            changes = self._by_row(at_actions, "instances", sizes).view(*instances.shape[:3], -1, self.advisers)
            of_instances.append(changes.flatten(3))
            advised = changes.amax(-1)
        named = Rows(instances, self.columns["instances"])
        return Entities(
            num_queue=num_queue,
            request_env=env,
            request_slot=request_at - env * num_queue,
            requests=self.squash["queue"](requests),
            request_model=requests[:, queue["model"]].squeeze(1).long(),
            pair_request=pair_request,
            pair_gpu=gpu,
            pairs=torch.cat(of_pairs, -1),
            instances=torch.cat(of_instances, -1),
            instance_present=named["present"].unsqueeze(-1),
            instance_model=named["model"].long(),
            idle=(named["num_seated"] == 0).float().unsqueeze(-1),
            speedup=self._speedup(squashed),
            gpus=self.squash["gpus"](observation["gpus"]),
            gpu_present=there,
            models=self.squash["models"](observation["models"]),
            model_present=observation["models"][..., self.columns["models"]["present"]],
            whole=self.squash["globals"](observation["globals"]).squeeze(1),
            advised=advised,
            advice=advice,
        )

    def _gpu_state(self, observation: dict[str, Tensor], unloads: Tensor) -> tuple[GpuState, Tensor]:
        """All GPUs (B G) with their instances, and what keeping each of these is worth (B I, 1); `unloads` (B I,) are legal."""
        rows = observation["instances"]
        by_gpu = rows.reshape(rows.shape[0] * observation["gpus"].shape[1], -1, rows.shape[2])
        instances = Rows(by_gpu, self.columns["instances"])
        arrivals = observation["models"][..., self.columns["models"]["arrivals_per_s"]].squeeze(-1)  # (B, M)
        model = instances["model"].long()
        rates = arrivals.gather(1, model.reshape(arrivals.shape[0], -1)).view_as(model)
        gpus = Rows(observation["gpus"].flatten(0, 1), self.columns["gpus"])
        num_gpus = observation["gpus"].shape[1]
        state = GpuState(instances, gpus, rates, unloads.view_as(model), num_gpus)
        return state, state.keep_value().reshape(-1, 1)

    def _by_row(self, values: Tensor, block: str, sizes: tuple[int, int, int]) -> Tensor:
        """Values of actions (B, A, n) as those of each pair (B Q G, K, n) or of each instance (B I, scopes + K, n)."""
        queue, gpus, slots = sizes
        batch, _, width = values.shape
        preempt_at = 1 + queue * gpus * self.levels
        if block == "pairs":
            return values[:, 1:preempt_at].reshape(batch * queue * gpus, self.levels, width)
        offload_at = preempt_at + gpus * slots * NUM_SCOPES
        preempt = values[:, preempt_at:offload_at].reshape(batch * gpus * slots, NUM_SCOPES, width)
        offload = values[:, offload_at:].reshape(batch * gpus * slots, self.levels, width)
        return torch.cat([preempt, offload], 1)

    def _speedup(self, instances: Tensor) -> Tensor:
        """Squashed decode time now minus that at each level (..., K)."""
        column = self.columns["instances"]
        after = instances[..., column["level_step_s"]]
        return (instances[..., column["step_s"]] - after) * (after > 0)


def _advised(actions: Tensor, mask: Tensor) -> Tensor:
    """(B, A, R), 1 at the actions (B, R) advised; mask (B, A, 1)."""
    return (actions.unsqueeze(1) == torch.arange(mask.shape[1], device=mask.device).view(1, -1, 1)).float()


def _counts(env: Tensor, envs: int) -> tuple[Tensor, Tensor]:
    """How many rows each of `envs` observations has, and which is its first; `env` (N,) is that of each row, ascending."""
    count = torch.bincount(env, minlength=envs)
    return count, count.cumsum(0) - count


def _rows_of(env: Tensor, at: Tensor, envs: int) -> tuple[Tensor, Tensor]:
    """The rows of the observations `at` (B',), and which of these each belongs to."""
    count, first = _counts(env, envs)
    owner = torch.repeat_interleave(count[at])
    return torch.arange(len(owner), device=at.device) + (first[at] - _counts(owner, len(at))[1])[owner], owner


class FlatExtractor(BaseFeaturesExtractor):
    """Everything as one vector (B, D) for a plain MLP, model indices as one-hot rows."""

    def __init__(self, observation_space: gym.spaces.Dict, dims: Dims) -> None:
        rows = {block: int(torch.tensor(block_shape(block, dims)).prod()) for block in BLOCKS}
        size = sum(rows[block] * block_width(block, dims) for block in BLOCKS) + (dims.Q + dims.I) * dims.M
        super().__init__(observation_space, features_dim=size)
        self.dims = dims
        self.squash = nn.ModuleDict({block: Squash(block, dims) for block in BLOCKS})
        self.columns = {block: columns(block, dims) for block in ("queue", "instances")}

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        parts = [self.squash[block](observation[block]).flatten(1) for block in BLOCKS]
        for block, column in self.columns.items():
            rows = observation[block]
            one_hot = nn.functional.one_hot(rows[..., column["model"]].squeeze(-1).long(), self.dims.M)
            parts.append((one_hot * rows[..., column["present"]]).flatten(1))
        return torch.cat(parts, 1)


def columns(block: str, dims: Dims) -> dict[str, slice]:
    """Field name -> its columns in a row of the block."""
    fields = block_dtype(block, dims).fields
    assert fields is not None
    return {name: slice(at // 4, (at + kind.itemsize) // 4) for name, (kind, at, *_) in fields.items()}
