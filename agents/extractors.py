"""From the observation in plain units to network input: values squashed, rows that hold nothing left out."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from mmsched_env.observation import BLOCKS, block_dtype, block_shape, block_width
from mmsched_env.sim.state import Dims

FINE = ("token_s", "step_s", "level_step_s", "arrivals_per_s")
"""fields whose typical values are hundredths; they are multiplied by 100 before squashing"""


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
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        return squash(rows * self.scale)


@dataclass(frozen=True)
class Entities:
    """A batch's observation as a scorer wants it; N rows are the present ones of all B observations."""

    request_at: Tensor
    """(N,) row b Q + q of each waiting request"""
    requests: Tensor
    """(N, F)"""
    request_model: Tensor
    """(N,) row b M + m of its model"""
    pairs: Tensor
    """(N, G, F)"""
    finish: Tensor
    """(N, G, K) expected time to finish, the last fields of `pairs`"""
    instance_at: Tensor
    """(N',) row b I + i of each instance"""
    instances: Tensor
    """(N', F)"""
    instance_model: Tensor
    """(N',) row b M + m"""
    idle: Tensor
    """(N', 1) 1 where nothing is seated on the instance"""
    speedup: Tensor
    """(N', K) how much faster each level decodes, in powers of ten of the step's hundredths; 0: no such level"""
    gpus: Tensor
    """(B, G, F)"""
    models: Tensor
    """(B, M, F)"""
    whole: Tensor
    """(B, F)"""


class EntityExtractor(BaseFeaturesExtractor):
    """The observation's present rows, squashed: `Entities`. Queues are short, so most rows need no work at all.

    The pairs get one more field per level, the expected seconds to finish (load + prefill + predicted tokens left x
    time per token): a product is what a network of few layers finds hardest.
    """

    def __init__(self, observation_space: gym.spaces.Dict, dims: Dims) -> None:
        super().__init__(observation_space, features_dim=1)
        self.dims = dims
        self.squash = nn.ModuleDict({block: Squash(block, dims) for block in BLOCKS})
        self.columns = {block: columns(block, dims) for block in BLOCKS}
        self.widths = {block: block_width(block, dims) for block in BLOCKS}
        self.widths["pairs"] += dims.K

    def forward(self, observation: dict[str, Tensor]) -> Entities:
        request_at, requests, request_model = self._present("queue", observation)
        instance_at, instances, instance_model = self._present("instances", observation)
        pairs = observation["pairs"].flatten(0, 1)[request_at]
        finish = squash(self._finish(requests, pairs))
        return Entities(
            request_at=request_at,
            requests=self.squash["queue"](requests),
            request_model=request_model,
            pairs=torch.cat([self.squash["pairs"](pairs), finish], -1),
            finish=finish,
            instance_at=instance_at,
            instances=self.squash["instances"](instances),
            instance_model=instance_model,
            idle=(instances[:, self.columns["instances"]["num_seated"]] == 0).float(),
            speedup=self._speedup(self.squash["instances"](instances)),
            gpus=self.squash["gpus"](observation["gpus"]),
            models=self.squash["models"](observation["models"]),
            whole=self.squash["globals"](observation["globals"]).squeeze(1),
        )

    def _present(self, block: str, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The block's present rows of all observations: where they are, their fields, row b M + m of their model."""
        rows = observation[block]
        at = rows[..., self.columns[block]["present"]].flatten().nonzero().squeeze(1)
        chosen = rows.flatten(0, 1)[at]
        model = chosen[:, self.columns[block]["model"]].squeeze(1).long()
        return at, chosen, at // rows.shape[1] * self.dims.M + model

    def _speedup(self, instances: Tensor) -> Tensor:
        """Squashed decode time now minus that at each level (N', K)."""
        column = self.columns["instances"]
        after = instances[:, column["level_step_s"]]
        return (instances[:, column["step_s"]] - after) * (after > 0)

    def _finish(self, requests: Tensor, pairs: Tensor) -> Tensor:
        """Expected seconds until each request is finished on each GPU at each level (N, G, K)."""
        queue, pair = self.columns["queue"], self.columns["pairs"]
        left = (requests[:, queue["predicted_tokens"]] - requests[:, queue["generated_tokens"]]).clamp(min=1.0)
        start = pairs[..., pair["load_s"]] + pairs[..., pair["prefill_s"]]
        return start + left.unsqueeze(1) * pairs[..., pair["token_s"]]


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


def squash(x: Tensor) -> Tensor:
    """sign(x) log10(1 + |x|)."""
    return torch.sign(x) * torch.log1p(torch.abs(x)) * 0.4342944819
