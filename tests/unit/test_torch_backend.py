"""The torch backend on the CPU: shapes, residencies, and the figures it gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")

from mmsched_env.calibration import schema  # noqa: E402
from mmsched_env.calibration.measure import command, torch_backend  # noqa: E402
from mmsched_env.calibration.measure.decoder import Decoder, random_weights  # noqa: E402
from mmsched_env.calibration.measure.points import Point  # noqa: E402
from mmsched_env.costmodel.profile import load_gpu  # noqa: E402
from mmsched_env.costmodel.shapes import Architecture  # noqa: E402
from mmsched_env.errors import ConfigError, MmschedError  # noqa: E402

ARCH = Architecture(3, 64, 4, 2, 16, 96, 300, tied_embeddings=True)
MODEL = "smollm2-135m-f16"


@pytest.fixture
def backend() -> Iterator[torch_backend.Torch]:
    one = torch_backend.Torch([0], "bfloat16", context=64, ubatch=16)
    yield one
    one.close()


def test_weights_are_those_of_the_shape() -> None:
    weights = random_weights(ARCH, torch.bfloat16)
    layer = weights.layers[0]
    matrices = sum(t.numel() for t in (layer.qkv, layer.out, layer.gate_up, layer.down))
    assert matrices == ARCH.layer_weights
    assert weights.head.shape == (300, 64)
    assert weights.head is weights.embedding


def test_decoding_with_a_cache_gives_what_one_pass_gives() -> None:
    """The split into prompt and steps, and the growing cache, change nothing but the time."""
    torch.manual_seed(0)
    weights = random_weights(ARCH, torch.float32)
    tokens = torch.arange(7)[None]

    def fresh() -> Decoder:
        decoder = Decoder(ARCH, weights.layers, weights.head, weights.embedding)
        decoder.allocate(1, 7)
        return decoder

    whole = fresh().run(tokens, 0)
    steps = fresh()
    steps.run(tokens[:, :4], 0)
    for at in range(4, 7):
        last = steps.run(tokens[:, at : at + 1], at)
    torch.testing.assert_close(last, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stay", [0, 1, 3])
def test_where_layers_are_changes_nothing(stay: int) -> None:
    """Layers before `stay` are the host's, the others what a GPU would replay."""
    weights = random_weights(ARCH, torch.float32)
    tokens = torch.arange(7)[None]
    whole = Decoder(ARCH, weights.layers, weights.head, weights.embedding)
    split = Decoder(ARCH, weights.layers, weights.head, weights.embedding, stay)
    results = []
    for decoder in (whole, split):
        torch.manual_seed(1)
        decoder.allocate(1, 7)
        results.append(decoder.run(tokens, 0))
    torch.testing.assert_close(results[0], results[1])


def test_a_load_is_a_copy_and_counts_its_bytes(backend: torch_backend.Torch) -> None:
    point = next(iter(backend.loads(MODEL, command.preset_of("tiny", 4, 2048))))
    figure, instance = backend.load(point)
    assert figure.size_bytes == pytest.approx(2 * 134_515_008, rel=0.01)
    assert instance.measure(Point(MODEL, "save", tokens=10)).size_bytes == 10 * 30 * 2 * 3 * 64 * 2
    assert instance.measure(Point(MODEL, "footprint")).size_bytes == figure.size_bytes
    assert instance._decoder.layers[0].qkv.data_ptr() != backend.in_host_memory(MODEL).layers[0].qkv.data_ptr()
    instance.unload()


def test_an_out_of_memory_is_one_line(backend: torch_backend.Torch, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(*args: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(Decoder, "allocate", burst)
    instance = backend.load(next(iter(backend.loads(MODEL, command.preset_of("tiny", 4, 2048)))))[1]
    with pytest.raises(MmschedError, match="the GPU has no memory for 'smollm2-135m-f16 prefill tokens=16'") as caught:
        instance.measure(Point(MODEL, "prefill", tokens=16))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("dtype=int8", "dtype is int8; accepted: float16, bfloat16"),
        ("models=[smollm2-135m-q8_0]", "computes in 16 bits; accepted: ...-f16"),
        ("models=[qwen2.5-vl-7b-f16]", "accepted: a text model|unknown model profile"),
    ],
)
def test_what_torch_cannot_do(argument: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        command.main(["backend=torch", "preset=tiny", f"out={tmp_path}/o", "cores=[0]", argument])


@pytest.mark.slow
def test_measure_on_the_cpu_writes_a_profile(tmp_path: Path) -> None:
    settings = ["backend=torch", "preset=tiny", f"models=[{MODEL}]", f"out={tmp_path}", "tries=1", "cores=[0]"]
    assert command.main([*settings, "dtype=bfloat16", "name=a-core"]) == 0
    assert {row.engine for row in schema.read(tmp_path / command.SAVED)} == {"torch CPU"}
    assert load_gpu("a-core", tmp_path / "profiles").read["f16"].value > 1e8
