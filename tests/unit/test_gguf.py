"""Random-weight GGUF files: the architecture's exact shapes, sizes and block types."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from mmsched_env.calibration import gguf as writer  # noqa: E402
from mmsched_env.costmodel.profile import ModelProfile, load_model  # noqa: E402
from mmsched_env.costmodel.shapes import Architecture  # noqa: E402
from mmsched_env.errors import ConfigError  # noqa: E402

TINY = Architecture(2, 256, 4, 2, 64, 512, 1400, tied_embeddings=True)


def tiny(quant: str = "q8_0", **changes: object) -> ModelProfile:
    arch = dataclasses.replace(TINY, **changes)  # type: ignore[arg-type]
    return ModelProfile(f"tiny-{quant}", quant, arch, None, arch.params, "assumed", "a test")


@pytest.mark.parametrize("name", ["smollm2-135m-q8_0", "qwen2.5-0.5b-q4_0", "llama-3.2-1b-f16", "qwen3-0.6b-q8_0"])
def test_tensors_have_the_published_number_of_weights(name: str) -> None:
    model = load_model(name)
    weights = sum(int(np.prod(tensor.shape)) for tensor in writer.tensors_of(model.architecture, model.quant))
    assert weights == pytest.approx(model.published_params, rel=1e-3)


@pytest.mark.parametrize("name", ["llama-3.2-1b-q4_k_m", "llama-3.2-1b-q8_0", "llama-3-8b-q4_k_m", "qwen2.5-3b-f16"])
def test_bytes_are_those_of_the_cost_model(name: str) -> None:
    model = load_model(name)
    size = sum(tensor.num_bytes for tensor in writer.tensors_of(model.architecture, model.quant))
    assert size == pytest.approx(model.file_bytes, rel=0.01)


@pytest.mark.parametrize("quant", ["f16", "q8_0", "q4_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs"])
def test_file_holds_finite_weights_of_the_right_spread(quant: str, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(writer.write_random(tmp_path / "m.gguf", tiny(quant)))
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    assert len(by_name) == 2 * 9 + 2
    matrix = by_name["blk.0.ffn_gate.weight"]
    assert list(matrix.shape) == [256, 512]  # GGUF tells the row length first
    values = gguf.quants.dequantize(matrix.data, matrix.tensor_type).astype(np.float32)
    assert np.isfinite(values).all()
    assert values.std() == pytest.approx(1 / 16, rel=0.1)
    assert abs(values.mean()) < 0.2 / 16


def test_rows_that_fit_no_block_fall_back_as_llama_cpp_does() -> None:
    tensors = {t.name: t.type.name for t in writer.tensors_of(dataclasses.replace(TINY, hidden=96), "q4_k_m")}
    assert tensors["blk.0.attn_q.weight"] == "Q5_0"
    assert tensors["token_embd.weight"] == "Q8_0"  # tied: the head's Q6_K


def test_the_same_seed_gives_the_same_bytes_and_a_whole_file_is_kept(tmp_path: Path) -> None:
    one, two = (writer.write_random(tmp_path / f"{n}.gguf", tiny(), seed=3).read_bytes() for n in "ab")
    other = writer.write_random(tmp_path / "c.gguf", tiny(), seed=4)
    assert one == two != other.read_bytes()
    stamp = other.stat().st_mtime_ns
    writer.write_random(other, tiny(), seed=4)
    assert other.stat().st_mtime_ns == stamp


def test_stub_vocabulary_has_as_many_different_tokens_as_the_real_one() -> None:
    tokens = writer.stub_tokens(49152)
    assert len(set(tokens)) == len(tokens) == 49152


def test_stub_merges_are_as_many_as_the_real_ones_and_never_apply() -> None:
    """A merge of two letters could be the first step of others; parts of four letters are never there to be merged."""
    merges = writer.stub_merges(49152)
    assert len(set(merges)) == len(merges) == 48900
    assert {tuple(map(len, merge.split(" "))) for merge in merges} == {(4, 4)}


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_no_room_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    with pytest.raises(ConfigError, match=r"needs 0\.\d\d GB, 0\.00 GB are free; accepted: models=FOLDER") as caught:
        writer.write_random(tmp_path / "m.gguf", tiny())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["qwen3-30b-a3b-q4_k_m", "qwen2.5-vl-7b-q4_k_m", "qwen3.5-4b-q4_k_m"])
def test_architectures_that_cannot_be_written_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="accepted: dense text models"):
        writer.write_random(tmp_path / "m.gguf", load_model(name))
