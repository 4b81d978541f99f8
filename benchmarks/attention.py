"""The usual network for such observations, to compare the scorer's cost with: a transformer over rows, and a flat head over all actions.

Every waiting request (with its pairs), instance, GPU and model is a token; two encoder layers; the mean over what is there goes into
SB3's own heads, which know each of the hundreds of actions by its index alone. Its weights depend on all padded sizes.
"""

from __future__ import annotations

import gymnasium as gym
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from mmsched_env.agents.extractors import Squash
from mmsched_env.observation import block_width
from mmsched_env.sim.state import Dims

TOKENS = ("queue", "instances", "gpus", "models")
WIDTH, HEADS, LAYERS = 64, 4, 2
PRESENT = 0
"""column of a row that says whether it holds anything"""


class AttentionExtractor(BaseFeaturesExtractor):
    """(B, 2 WIDTH) features of a batch of observations of sizes `dims`."""

    def __init__(self, observation_space: gym.spaces.Dict, dims: Dims) -> None:
        super().__init__(observation_space, 2 * WIDTH)
        self.squash = nn.ModuleDict({block: Squash(block, dims) for block in (*TOKENS, "pairs", "globals")})
        widths = {block: block_width(block, dims) for block in TOKENS}
        widths["queue"] += dims.G * block_width("pairs", dims)
        self.embed = nn.ModuleDict({block: nn.Linear(width, WIDTH) for block, width in widths.items()})
        self.whole = nn.Linear(block_width("globals", dims), WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        rows = {block: self.squash[block](observations[block]) for block in (*TOKENS, "pairs", "globals")}
        pairs = rows["pairs"].reshape(*rows["queue"].shape[:2], -1)
        rows["queue"] = torch.cat([rows["queue"], pairs], dim=-1)
        tokens = torch.cat([self.embed[block](rows[block]) for block in TOKENS], dim=1)
        absent = torch.cat([observations[block][:, :, PRESENT] == 0 for block in TOKENS], dim=1)
        seen = self.encoder(tokens, src_key_padding_mask=absent).masked_fill(absent[..., None], 0.0)
        mean = seen.sum(1) / (~absent).sum(1, keepdim=True).clamp(min=1)
        return torch.cat([mean, self.whole(rows["globals"].flatten(1))], dim=-1)
