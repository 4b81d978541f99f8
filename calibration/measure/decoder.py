"""A decoder-only transformer in plain torch: random weights in a catalogue model's shapes, layers where they are put.

Nothing but its speed means anything. Matrices are F16 or BF16, as `transformers` would run them; grouped-query attention is
torch's own kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmsched_env.costmodel.shapes import Architecture
from mmsched_env.errors import ConfigError

POOL = 1 << 22
"""random values drawn, then repeated"""


@dataclass
class Layer:
    """Weights of one layer, all on one device. Queries, keys and values are one matrix, gate and up another."""

    norm: Tensor
    qkv: Tensor
    out: Tensor
    ffn_norm: Tensor
    gate_up: Tensor
    down: Tensor

    def copy(self, device: torch.device) -> Layer:
        """A copy in any case: on the CPU a load is a copy of memory too."""
        return Layer(**{name: _copied(tensor, device) for name, tensor in vars(self).items()})

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in vars(self).values())


@dataclass
class Weights:
    """A model: its layers, its input table (always on the host) and its head."""

    layers: list[Layer]
    embedding: Tensor
    head: Tensor

    @property
    def num_bytes(self) -> int:
        return sum(layer.num_bytes for layer in self.layers) + self.head.nbytes


def random_weights(arch: Architecture, dtype: torch.dtype) -> Weights:
    """Random weights on the host.

    Raises
    ------
    ConfigError
        An architecture that is not supported.
    """
    if arch.experts or arch.linear or arch.attention_gate:
        raise ConfigError("backend=torch builds dense models without linear attention; accepted: another model")
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0)) / arch.hidden**0.5
    pool = pool.to(dtype)

    def matrix(rows: int, columns: int) -> Tensor:
        values = torch.empty(rows * columns, dtype=dtype)
        for start in range(0, len(values), POOL):
            part = values[start : start + POOL]
            part.copy_(pool[: len(part)])
        return values.view(rows, columns)

    queries, keys = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    ones = torch.ones(arch.hidden, dtype=dtype)
    layers = [
        Layer(
            norm=ones.clone(),
            qkv=matrix(queries + 2 * keys, arch.hidden),
            out=matrix(arch.hidden, queries),
            ffn_norm=ones.clone(),
            gate_up=matrix(2 * arch.ffn, arch.hidden),
            down=matrix(arch.hidden, arch.ffn),
        )
        for _ in range(arch.layers)
    ]
    head = matrix(arch.vocab, arch.hidden)
    return Weights(layers, head if arch.tied_embeddings else matrix(arch.vocab, arch.hidden), head)


class Decoder:
    """Weights in place, and the KV caches of some sequences beside their layers.

    Parameters
    ----------
    layers, head
        Wherever they are to be computed: the first `stay` layers on the host, the others on one device, the head on either.
    """

    def __init__(self, arch: Architecture, layers: list[Layer], head: Tensor, embedding: Tensor, stay: int = 0) -> None:
        self.arch, self.layers, self.head, self.embedding, self.stay = arch, layers, head, embedding, stay
        self.caches: list[tuple[Tensor, Tensor]] = []

    def allocate(self, batch: int, length: int) -> None:
        """Fresh caches of `length` tokens for `batch` sequences: (batch, KV heads, length, head width) a layer."""
        shape = (batch, self.arch.kv_heads, length, self.arch.head_dim)
        self.caches = []
        for layer in self.layers:
            keys = torch.randn(shape, dtype=layer.qkv.dtype, device=layer.qkv.device)
            self.caches.append((keys, keys.clone()))

    @torch.inference_mode()
    def run(self, tokens: Tensor, depth: int, on_device: Callable[[Tensor, int], Tensor] | None = None) -> Tensor:
        """Logits of the last of `tokens` (batch, n), which are put into the caches from `depth` on.

        Parameters
        ----------
        on_device
            In place of the method: the same, recorded.
        """
        hidden = self._through(0, self.stay, F.embedding(tokens, self.embedding), depth)
        if self.stay < len(self.layers):
            hidden = (on_device or self.on_device)(hidden, depth)
        return hidden if self.head_on_device else F.linear(hidden[:, -1].cpu(), self.head)

    @property
    def head_on_device(self) -> bool:
        """Or what a head that stays on the host is given comes from there."""
        return self.stay < len(self.layers) and self.head.device == self.layers[-1].qkv.device

    def on_device(self, hidden: Tensor, depth: int) -> Tensor:
        """What is computed on the device, all that a CUDA graph can record: logits where the head is there, else hidden states."""
        hidden = hidden.to(self.layers[-1].qkv.device, non_blocking=True)
        hidden = self._through(self.stay, len(self.layers), hidden, depth)
        return F.linear(hidden[:, -1], self.head) if self.head_on_device else hidden

    def _through(self, first: int, end: int, hidden: Tensor, depth: int) -> Tensor:
        for layer, cache in zip(self.layers[first:end], self.caches[first:end], strict=True):
            hidden = self._layer(layer, cache, hidden, depth)
        return hidden

    def _layer(self, layer: Layer, cache: tuple[Tensor, Tensor], hidden: Tensor, depth: int) -> Tensor:
        arch = self.arch
        batch, count, _ = hidden.shape
        widths = [arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim, arch.kv_heads * arch.head_dim]
        normed = F.rms_norm(hidden, (arch.hidden,), layer.norm)
        parts = torch.split(F.linear(normed, layer.qkv), widths, dim=-1)
        query, key, value = (part.view(batch, count, -1, arch.head_dim).transpose(1, 2) for part in parts)
        keys, values = (whole[:, :, : depth + count] for whole in cache)
        keys[:, :, depth:] = key
        values[:, :, depth:] = value
        # Rotary positions cost a few element-wise kernels that fused engines do not show; they are left out.
        mixed = F.scaled_dot_product_attention(
            query, keys, values, is_causal=count > 1 and depth == 0, enable_gqa=arch.heads != arch.kv_heads
        )
        hidden = hidden + F.linear(mixed.transpose(1, 2).reshape(batch, count, -1), layer.out)
        gate, up = F.linear(F.rms_norm(hidden, (arch.hidden,), layer.ffn_norm), layer.gate_up).chunk(2, dim=-1)
        return hidden + F.linear(F.silu(gate) * up, layer.down)


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True, copy=True)
