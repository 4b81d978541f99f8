"""Sizes that follow from a model's shape alone: parameters, bytes, arithmetic. No timing in here."""

from __future__ import annotations

from dataclasses import dataclass

from mmsched_env.errors import ConfigError

BITS_PER_WEIGHT = {
    "f16": 16.0,
    "q8_0": 8.5,
    "q6_k": 6.5625,
    "q5_k": 5.5,
    "q4_k": 4.5,
    "q4_0": 4.5,
    "iq4_xs": 4.25,
    "mxfp4": 4.25,
}
"""GGUF block layouts: bits of a block with its scales, over the weights in it."""


@dataclass(frozen=True)
class Recipe:
    """Which block type each tensor gets in one llama.cpp quantisation."""

    base: str
    important: str
    """attention value and FFN down projection in the layers that `important_layer` picks"""
    head: str
    embedding: str
    experts: str = ""
    """routed experts, where they are not stored as `base` and `important` say"""


RECIPES = {
    "f16": Recipe("f16", "f16", "f16", "f16"),
    "q8_0": Recipe("q8_0", "q8_0", "q8_0", "q8_0"),
    "q6_k": Recipe("q6_k", "q6_k", "q6_k", "q6_k"),
    "q5_k_m": Recipe("q5_k", "q6_k", "q6_k", "q5_k"),
    "q4_k_m": Recipe("q4_k", "q6_k", "q6_k", "q4_k"),
    "q4_0": Recipe("q4_0", "q4_0", "q6_k", "q4_0"),
    "iq4_xs": Recipe("iq4_xs", "iq4_xs", "q6_k", "iq4_xs"),
    "mxfp4": Recipe("q8_0", "q8_0", "q8_0", "q8_0", experts="mxfp4"),
}


@dataclass(frozen=True)
class Experts:
    """A mixture-of-experts FFN: `active` of `count` gated FFNs of width `Architecture.ffn` per token, chosen by a router.

    Every token also passes the shared expert, if there is one.
    """

    count: int
    active: int
    shared_ffn: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.count:
            raise ConfigError(f"experts.active is {self.active}; accepted: 1 to experts.count={self.count}")


@dataclass(frozen=True)
class LinearAttention:
    """Layers that keep a state of fixed size instead of a KV cache (gated delta net); all others attend."""

    layers: int
    key_heads: int
    value_heads: int
    head_dim: int

    def weights(self, hidden: int) -> int:
        """Matrix weights of one such layer's mixer: queries and keys, values and gates, two scalars a head, output."""
        inputs = 2 * self.key_heads * self.head_dim + 2 * self.value_heads * self.head_dim + 2 * self.value_heads
        return hidden * (inputs + self.value_heads * self.head_dim)


@dataclass(frozen=True)
class Architecture:
    """Shape of a decoder-only transformer with grouped-query attention and a gated FFN, or a mixture of them."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    """width of the FFN, or of one expert"""
    vocab: int
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    attention_gate: bool = False
    experts: Experts | None = None
    linear: LinearAttention | None = None

    @property
    def attention_layers(self) -> int:
        """Layers with a KV cache."""
        return self.layers - (self.linear.layers if self.linear else 0)

    def attending(self, layers: int) -> int:
        """How many of the first `layers` attend: of each group of layers the last one does (Qwen3.5, Qwen3-Next)."""
        return layers * self.attention_layers // self.layers

    @property
    def num_experts(self) -> int:
        """Experts of a layer, 0 in a dense model."""
        return self.experts.count if self.experts else 0

    @property
    def layer_weights(self) -> float:
        """Matrix weights of one layer, experts apart: what every token multiplies with and a decode step reads."""
        return self._important_weights + self._base_weights

    @property
    def _important_weights(self) -> float:
        return self._per_layer(self.hidden * self.kv_heads * self.head_dim, 0) + self.hidden * self._every_token_ffn

    @property
    def _base_weights(self) -> float:
        heads = 2 * self.heads + self.kv_heads + (self.heads if self.attention_gate else 0)
        linear = self.linear.weights(self.hidden) if self.linear else 0
        return self._per_layer(self.hidden * self.head_dim * heads, linear) + 2 * self.hidden * self._every_token_ffn

    @property
    def _every_token_ffn(self) -> int:
        return self.experts.shared_ffn if self.experts else self.ffn

    def _per_layer(self, attention: int, linear: int) -> float:
        """Mean over the layers of what an attention layer and a linear one have."""
        if self.linear is None:
            return attention
        return (attention * self.attention_layers + linear * self.linear.layers) / self.layers

    @property
    def _expert_weights(self) -> int:
        return 3 * self.hidden * self.ffn

    @property
    def _router_weights(self) -> int:
        return self.hidden * self.num_experts

    @property
    def _layer_vectors(self) -> int:
        bias = self.head_dim * (self.heads + 2 * self.kv_heads) if self.qkv_bias else 0
        return 2 * self.hidden + bias + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def params(self) -> int:
        """All parameters, a tied embedding counted once."""
        tables = 1 if self.tied_embeddings else 2
        layer = self.layer_weights + self._layer_vectors + self._router_weights
        experts = self.num_experts * self._expert_weights
        return round(self.layers * (layer + experts) + tables * self.vocab * self.hidden + self.hidden)

    @property
    def kv_layer_bytes(self) -> int:
        """F16 key and value of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * 2

    @property
    def layer_flops(self) -> float:
        """Arithmetic of one token through one layer, attention scores and experts apart."""
        return 2 * (self.layer_weights + self._router_weights)

    @property
    def expert_flops(self) -> int:
        """Arithmetic of one token through the experts of one layer that it is sent to."""
        return 2 * self.experts.active * self._expert_weights if self.experts else 0

    @property
    def attention_flops(self) -> int:
        """Arithmetic of one layer per (query, key) pair: scores, then the weighted sum of values."""
        return 4 * self.heads * self.head_dim

    def layer_bytes(self, quant: str) -> float:
        """Mean bytes of one layer, experts apart. Vectors and the router are F32."""
        base, important = self._bits(quant)
        matrices = self._base_weights * base + self._important_weights * important
        return matrices / 8 + (self._layer_vectors + self._router_weights) * 4

    def expert_bytes(self, quant: str) -> float:
        """Mean bytes of one expert of one layer: two thirds of the base type, the down projection of the finer one."""
        recipe = RECIPES[quant]
        if recipe.experts:
            return self._expert_weights * BITS_PER_WEIGHT[recipe.experts] / 8
        base, important = self._bits(quant)
        return self._expert_weights / 3 * (2 * base + important) / 8

    def _bits(self, quant: str) -> tuple[float, float]:
        """Bits per weight of the base type, and mean over layers of the matrices that some layers store more finely."""
        recipe = RECIPES[quant]
        share = _important_layers(self.layers) / self.layers
        important = share * BITS_PER_WEIGHT[recipe.important] + (1 - share) * BITS_PER_WEIGHT[recipe.base]
        return BITS_PER_WEIGHT[recipe.base], important

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
    return sum(important_layer(i, layers) for i in range(layers))


def important_layer(i: int, layers: int) -> bool:
    """Does llama.cpp's mixed quantisation store layer i more finely? First and last eighth, every third between."""
    eighth = layers // 8
    return i < eighth or i >= 7 * layers // 8 or (i - eighth) % 3 == 2
