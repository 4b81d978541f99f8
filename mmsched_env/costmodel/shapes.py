"""Sizes that follow from a model's shape alone: parameters, bytes, arithmetic. No timing in here."""

from __future__ import annotations

from dataclasses import dataclass

BITS_PER_WEIGHT = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5, "q4_k": 4.5, "q5_k": 5.5, "q6_k": 6.5625}
"""GGUF block layouts: bytes of a block with its scales, over the weights in it."""


@dataclass(frozen=True)
class Recipe:
    """Which block type each tensor gets in one llama.cpp quantisation."""

    base: str
    important: str
    """attention value and FFN down projection in the layers that `_important_layers` picks"""
    head: str
    embedding: str


RECIPES = {
    "f16": Recipe("f16", "f16", "f16", "f16"),
    "q8_0": Recipe("q8_0", "q8_0", "q8_0", "q8_0"),
    "q4_0": Recipe("q4_0", "q4_0", "q6_k", "q4_0"),
    "q4_k_m": Recipe("q4_k", "q6_k", "q6_k", "q4_k"),
    "q5_k_m": Recipe("q5_k", "q6_k", "q6_k", "q5_k"),
}


@dataclass(frozen=True)
class Architecture:
    """Shape of a decoder-only transformer with grouped-query attention and a gated FFN."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def layer_weights(self) -> int:
        """Matrix weights of one layer: what a token multiplies with and a decode step reads."""
        return self._important_weights + self._base_weights

    @property
    def _important_weights(self) -> int:
        return self.hidden * self.kv_heads * self.head_dim + self.hidden * self.ffn

    @property
    def _base_weights(self) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + self.kv_heads)
        return attention + 2 * self.hidden * self.ffn

    @property
    def _layer_vectors(self) -> int:
        bias = self.head_dim * (self.heads + 2 * self.kv_heads) if self.qkv_bias else 0
        return 2 * self.hidden + bias + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def params(self) -> int:
        """All parameters, a tied embedding counted once."""
        tables = 1 if self.tied_embeddings else 2
        return (
            self.layers * (self.layer_weights + self._layer_vectors) + tables * self.vocab * self.hidden + self.hidden
        )

    @property
    def kv_layer_bytes(self) -> int:
        """F16 key and value of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * 2

    @property
    def layer_flops(self) -> int:
        """Arithmetic of one token through one layer, attention scores apart."""
        return 2 * self.layer_weights

    @property
    def attention_flops(self) -> int:
        """Arithmetic of one layer per (query, key) pair: scores, then the weighted sum of values."""
        return 4 * self.heads * self.head_dim

    def layer_bytes(self, quant: str) -> float:
        """Mean bytes of one layer."""
        recipe = RECIPES[quant]
        share = _important_layers(self.layers) / self.layers
        important = share * BITS_PER_WEIGHT[recipe.important] + (1 - share) * BITS_PER_WEIGHT[recipe.base]
        matrices = self._base_weights * BITS_PER_WEIGHT[recipe.base] + self._important_weights * important
        return matrices / 8 + self._layer_vectors * 4

    def head_bytes(self, quant: str) -> float:
        """The output projection, read once a step even when it shares its weights with the embedding."""
        return self.vocab * self.hidden * BITS_PER_WEIGHT[RECIPES[quant].head] / 8

    def embedding_bytes(self, quant: str) -> float:
        """The input table where it is a tensor of its own: kept in host RAM, one row read per token."""
        return 0.0 if self.tied_embeddings else self.vocab * self.hidden * BITS_PER_WEIGHT[RECIPES[quant].embedding] / 8


@dataclass(frozen=True)
class Vision:
    """Shape of a ViT image encoder with gated FFN whose output merges `patches_per_token` patches."""

    layers: int
    hidden: int
    ffn: int
    patch_values: int
    patches_per_token: int

    def params(self, out_hidden: int) -> int:
        """Encoder and merger (two dense layers into the language model's width)."""
        merged = self.hidden * self.patches_per_token
        block = 4 * self.hidden**2 + 3 * self.hidden * self.ffn + 7 * self.hidden + 2 * self.ffn
        merger = self.hidden + merged**2 + merged + merged * out_hidden + out_hidden
        return self.patch_values * self.hidden + self.layers * block + merger

    def token_flops(self, out_hidden: int) -> int:
        """Arithmetic per image token, attention between patches left out (small beside the matrices)."""
        merged = self.hidden * self.patches_per_token
        matrices = self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.ffn)
        return 2 * (self.patches_per_token * matrices + merged**2 + merged * out_hidden)


def _important_layers(layers: int) -> int:
    """Layers that llama.cpp's mixed quantisations store more finely: first and last eighth, every third between."""
    eighth = layers // 8
    return sum(i < eighth or i >= 7 * layers // 8 or (i - eighth) % 3 == 2 for i in range(layers))
