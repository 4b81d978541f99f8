"""GGUF files of random weights in a real architecture's exact shapes: speed measured with no download.

llama.cpp's speed depends on shapes, block types and how many different scales the blocks have, not on the values: shuffling every block
of a real model changed nothing beyond the noise of its timings (docs/measuring.md). Blocks are random bytes with random scales
that keep the activations finite, written directly: no float copy, nothing to quantise.
"""

from __future__ import annotations

import itertools
import math
import shutil
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from mmsched_env.costmodel.profile import ModelProfile
from mmsched_env.costmodel.shapes import RECIPES, Architecture, important_layer
from mmsched_env.errors import ConfigError

FALLBACK = {Type.Q6_K: Type.Q8_0, Type.Q5_K: Type.Q5_1, Type.Q4_K: Type.Q5_0, Type.IQ4_XS: Type.IQ4_NL}
"""llama.cpp's choice for rows that are no multiple of a K block of 256 weights"""

SCALES: dict[Type, tuple[tuple[int, float], ...]] = {
    Type.Q8_0: ((0, 1.0),),
    Type.Q4_0: ((0, 1.0),),
    Type.Q4_1: ((0, 1.0), (2, -7.5)),
    Type.Q5_0: ((0, 1.0),),
    Type.Q5_1: ((0, 1.0), (2, -15.5)),
    Type.Q4_K: ((0, 1.0), (2, 7.5)),
    Type.Q5_K: ((0, 1.0), (2, 15.5)),
    Type.Q6_K: ((208, 1.0),),
    Type.IQ4_NL: ((0, 1.0),),
    Type.IQ4_XS: ((0, 1.0),),
}
"""block type -> (offset in a block, relative value) of its F16 scales; the second one centres the weights on zero"""

SCALE_SPREAD = 0.29
"""standard deviation of the logarithm of a block's scale within a tensor: mean of the released SmolLM2-135M's. Where scales are looked up in a table, as in builds for many processors,
blocks that all had one decode a third faster"""

POOL_BYTES = 8 << 20
"""random bytes drawn for each block type, then repeated: enough that no cache holds them"""

NOT_MERGED = 252
"""entries of SmolLM2's vocabulary that are no merges: bytes and names"""

TOKEN_LETTERS, MERGE_LETTERS = 7, 8
"""of the fillers: SmolLM2's tokens have 7.5 bytes in the mean and its merges 8.5 with the blank; a load takes time for each letter"""

SPREAD = 0x9E3779B1
"""has no divisor in common with 26, so that its multiples are different words"""

ROPE_BASE = 10000.0
CONTEXT = 32768
EPSILON = 1e-5


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file; `rows` is 0 for a vector."""

    name: str
    rows: int
    columns: int
    type: Type

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, self.columns) if self.rows else (self.columns,)

    @property
    def num_bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * size


def write_random(path: Path, model: ModelProfile, seed: int = 0) -> Path:
    """Write `model` with random weights to `path` in one step; the same seed gives the same bytes.

    Parameters
    ----------
    path
        The file; a file that is there already, whole (the right size), is left as it is.
    model
        A dense text model of the catalogue.
    seed
        Of the random blocks.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ConfigError
        An architecture that is not supported, no room on the disk, or a folder that cannot be written.
    """
    return write_tensors(path, model, list(tensors_of(model.architecture, model.quant)), seed)


def write_tensors(path: Path, model: ModelProfile, tensors: list[Tensor], seed: int = 0) -> Path:
    """The same with tensors of the caller's block types. Raises ConfigError."""
    family = family_of(model)
    size = sum(tensor.num_bytes for tensor in tensors)
    if path.exists() and path.stat().st_size >= size:
        return path
    temporary = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _require_room(path, size + 128 * model.architecture.vocab)
        _write(temporary, model, family, tensors, np.random.default_rng(seed))
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; accepted: a folder with room") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def family_of(model: ModelProfile) -> str:
    """llama.cpp's name of the architecture. Raises ConfigError for one that is not supported."""
    arch = model.architecture
    if arch.experts or arch.linear or arch.attention_gate or model.vision:
        raise ConfigError(
            f"model {model.name} cannot be written as GGUF; accepted: dense text models without linear attention"
        )
    if model.quant == "mxfp4":
        raise ConfigError(f"model {model.name}: quantisation mxfp4 is one of experts; accepted: another quantisation")
    return "qwen3" if arch.qk_norm else "qwen2" if arch.qkv_bias else "llama"


def tensors_of(arch: Architecture, quant: str) -> Iterator[Tensor]:
    """Tensors of a dense model in the block types that llama.cpp's quantisation gives them."""
    recipe = RECIPES[quant]
    embedding = recipe.head if arch.tied_embeddings else recipe.embedding
    yield _matrix("token_embd", arch.vocab, arch.hidden, embedding)
    queries, keys = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    for layer in range(arch.layers):
        important = recipe.important if important_layer(layer, arch.layers) else recipe.base
        block = f"blk.{layer}"
        yield _vector(f"{block}.attn_norm", arch.hidden)
        yield _matrix(f"{block}.attn_q", queries, arch.hidden, recipe.base)
        yield _matrix(f"{block}.attn_k", keys, arch.hidden, recipe.base)
        yield _matrix(f"{block}.attn_v", keys, arch.hidden, important)
        yield _matrix(f"{block}.attn_output", arch.hidden, queries, recipe.base)
        if arch.qkv_bias:
            for name, width in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
                yield Tensor(f"{block}.{name}.bias", 0, width, Type.F32)
        if arch.qk_norm:
            yield _vector(f"{block}.attn_q_norm", arch.head_dim)
            yield _vector(f"{block}.attn_k_norm", arch.head_dim)
        yield _vector(f"{block}.ffn_norm", arch.hidden)
        yield _matrix(f"{block}.ffn_gate", arch.ffn, arch.hidden, recipe.base)
        yield _matrix(f"{block}.ffn_up", arch.ffn, arch.hidden, recipe.base)
        yield _matrix(f"{block}.ffn_down", arch.hidden, arch.ffn, important)
    yield _vector("output_norm", arch.hidden)
    if not arch.tied_embeddings:
        yield _matrix("output", arch.vocab, arch.hidden, recipe.head)


def _matrix(name: str, rows: int, columns: int, quant: str) -> Tensor:
    kind = Type[quant.upper()]
    if columns % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = FALLBACK.get(kind, Type.F16)
    if columns % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = Type.F16
    return Tensor(f"{name}.weight", rows, columns, kind)


def _vector(name: str, width: int) -> Tensor:
    return Tensor(f"{name}.weight", 0, width, Type.F32)


def _write(path: Path, model: ModelProfile, family: str, tensors: list[Tensor], rng: np.random.Generator) -> None:
    writer = gguf.GGUFWriter(path, family)
    _describe(writer, model)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, _stored_shape(tensor), _stored_dtype(tensor), tensor.num_bytes, raw_dtype=_raw_type(tensor)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    pools = {kind: Pool(kind, rng) for kind in sorted({t.type for t in tensors if t.rows})}
    for tensor in tensors:
        writer.write_tensor_data(pools[tensor.type].data(tensor) if tensor.rows else _vector_data(tensor))
    writer.close()


def _stored_shape(tensor: Tensor) -> tuple[int, ...]:
    """What the writer expects: bytes in place of weights along the rows of quantised tensors."""
    if tensor.type in SCALES:
        return gguf.quant_shape_to_byte_shape(tensor.shape, tensor.type)
    return tensor.shape


def _stored_dtype(tensor: Tensor) -> np.dtype[Any]:
    plain = {Type.F32: np.float32, Type.F16: np.float16}
    return np.dtype(plain.get(tensor.type, np.uint8))


def _raw_type(tensor: Tensor) -> Type | None:
    return tensor.type if tensor.type in SCALES else None


def _vector_data(tensor: Tensor) -> NDArray[np.float32]:
    """Norms of one, biases of zero."""
    return np.full(tensor.shape, 0.0 if tensor.name.endswith(".bias") else 1.0, np.float32)


class Pool:
    """Random blocks of one type, repeated as often as a tensor needs."""

    def __init__(self, kind: Type, rng: np.random.Generator) -> None:
        self.kind = kind
        if kind == Type.F16:
            self.floats = rng.standard_normal(POOL_BYTES // 2, np.float32)
            return
        size = gguf.GGML_QUANT_SIZES[kind][1]
        self.blocks = rng.integers(0, 256, (POOL_BYTES // size, size), np.uint8)
        self.factors = np.exp(SCALE_SPREAD * rng.standard_normal(len(self.blocks)))
        self._set_scales(1.0)
        self.unit_spread = float(gguf.quants.dequantize(self.blocks[:4096], kind).std())

    def data(self, tensor: Tensor) -> NDArray[np.generic]:
        """The tensor's bytes: weights of standard deviation 1 / sqrt(columns), as trained ones have."""
        spread = 1 / math.sqrt(tensor.columns)
        if self.kind == Type.F16:
            return np.resize((self.floats * spread).astype(np.float16), tensor.shape)
        self._set_scales(spread / self.unit_spread)
        return np.resize(self.blocks, (tensor.rows, tensor.num_bytes // tensor.rows))

    def _set_scales(self, scale: float) -> None:
        for at, relative in SCALES[self.kind]:
            scales = (scale * relative * self.factors).astype(np.float16)
            self.blocks[:, at : at + 2] = scales[:, None].view(np.uint8)


def _describe(writer: gguf.GGUFWriter, model: ModelProfile) -> None:
    arch = model.architecture
    writer.add_name(model.name)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(arch.hidden)
    writer.add_block_count(arch.layers)
    writer.add_feed_forward_length(arch.ffn)
    writer.add_head_count(arch.heads)
    writer.add_head_count_kv(arch.kv_heads)
    writer.add_key_length(arch.head_dim)
    writer.add_value_length(arch.head_dim)
    writer.add_rope_dimension_count(arch.head_dim)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(arch.vocab)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    tokens = stub_tokens(arch.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (arch.vocab - 2) + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(stub_merges(arch.vocab))
    writer.add_bos_token_id(arch.vocab - 2)
    writer.add_eos_token_id(arch.vocab - 1)
    writer.add_add_bos_token(False)


def stub_tokens(vocab: int) -> list[str]:
    """As many tokens as the real vocabulary has (a load reads them all): ASCII, fillers as long as words are, begin and end of text.

    No bytes beyond ASCII: a server keeps half a character back until its other half comes.
    """
    shown = [chr(b) for b in range(33, 127)]
    hidden = [chr(256 + b) for b in range(33)]  # GPT-2's letters for what cannot be printed
    fillers = itertools.islice(_words(TOKEN_LETTERS), vocab - 2 - len(shown) - len(hidden))
    return [*shown, *hidden, *fillers, "<begin>", "<end>"]


def stub_merges(vocab: int) -> list[str]:
    """As many merges as a vocabulary grown from bytes has, which a load reads too; none of them applies to any text."""
    made = (f"{word[:4]} {word[4:]}" for word in _words(MERGE_LETTERS))
    return list(itertools.islice(made, max(1, vocab - NOT_MERGED)))


def _words(letters: int) -> Iterator[str]:
    """Different words of so many letters, in no order."""
    base = len(string.ascii_lowercase)
    for i in range(base**letters):
        number = i * SPREAD % base**letters
        yield "".join(string.ascii_lowercase[number // base**at % base] for at in range(letters))


def _require_room(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise ConfigError(
            f"{path}: needs {size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; accepted: models=FOLDER with room"
        )
