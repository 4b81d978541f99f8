"""The measuring run: order, resuming, disturbance, rows, and profiles that give back known rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf")

from mmsched_env.calibration import schema
from mmsched_env.calibration.measure import command, laws, profiles, results, runner
from mmsched_env.calibration.measure.backend import Figure, ServerDied
from mmsched_env.calibration.measure.disturbance import Disturbance, Watch
from mmsched_env.calibration.measure.points import (
    ALL,
    BESIDE,
    BESIDE_DEVICE,
    BESIDE_LOAD,
    PRESETS,
    SERVING,
    Point,
    Preset,
    alone,
    beside,
    preset_of,
    serving_points,
)
from mmsched_env.calibration.measure.rows import IN_SCHEMA, Figures, figures, rows, slowdowns
from mmsched_env.costmodel import roofline
from mmsched_env.costmodel.profile import PROFILES, load_gpu, load_host, load_model
from mmsched_env.errors import ConfigError

MODELS = ("smollm2-135m-q8_0", "qwen2.5-0.5b-q8_0", "smollm2-360m-q8_0")
TINY = PRESETS["tiny"]
RULES = runner.Rules(tries=3, max_foreign=0.1, seed=1)
QUIET = Disturbance(1.0, 0.0, 0.0, 0.0)
BUSY = Disturbance(1.0, 0.5, 0.0, 0.0)


class Fake:
    """A backend that takes 1 s for everything, and dies at the `dies_at`-th measurement."""

    engine, version, gpu, gpu_mem_bytes, pids = "fake", "1", schema.CPU_ONLY, None, ()
    operations = SERVING | BESIDE

    def __init__(self, dies_at: int = 0) -> None:
        self.done: list[Point] = []
        self.loaded = 0
        self._dies_at = dies_at

    def prepare(self, model: str) -> int:
        return 1

    def loads(self, model: str, preset: Preset) -> Iterable[Point]:
        return [Point(model, "load", tier=tier, mode="read") for tier in ("disk", "page_cache")]

    def load(self, point: Point) -> tuple[Figure, Fake]:
        self.loaded += 1
        return self.measure(point), self

    def measure(self, point: Point) -> Figure:
        self.done.append(point)
        if len(self.done) == self._dies_at:
            raise ServerDied("the server process ended with status 9")
        return Figure(1.0, 100)

    def unload(self) -> Figure:
        self.loaded -= 1
        return Figure(1.0)

    def copies(self, preset: Preset) -> Iterable[Point]:
        return ()

    def copy(self, point: Point) -> Figure:
        raise AssertionError

    def close(self) -> None:
        pass


def go(backend: Fake, folder: Path, seed: int = 1) -> results.Results:
    kept = results.Results(folder, {"seed": seed})
    runner.Run(backend, MODELS[:2], TINY, dataclasses.replace(RULES, seed=seed), kept).go()
    return kept


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "stop", lambda self: QUIET)


def test_every_point_is_measured_once_a_round_and_all_is_unloaded(tmp_path: Path) -> None:
    backend = Fake()
    kept = go(backend, tmp_path)
    counts = {(s.round, s.point) for s in kept.samples}
    assert len(counts) == len(kept.samples)
    for model in MODELS[:2]:
        decode = Point(model, "decode", tokens=TINY.steps, depth=32)
        assert {s.round for s in kept.samples if s.point == decode} == set(range(1, TINY.rounds + 1))
    assert backend.loaded == 0


def test_the_probe_is_of_a_model_wholly_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With layers on the host it would take minutes."""
    loads = [Point(MODELS[0], "load", tier="page_cache", mode="read", n_gpu_layers=layers) for layers in (ALL, 15, 0)]
    monkeypatch.setattr(Fake, "loads", lambda self, model, preset: loads)
    backend = Fake()
    runner.Run(backend, MODELS[:1], TINY, RULES, results.Results(tmp_path, {})).probe(runner.BEFORE)
    assert backend.done[0] == loads[0]


def test_after_its_minutes_no_model_is_loaded_and_a_later_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Fake()
    monkeypatch.setattr(runner.time, "monotonic", lambda: float(len(backend.done)))  # a second a measurement

    def run(minutes: float) -> results.Results:
        kept = results.Results(tmp_path, {})
        runner.Run(backend, MODELS[:2], TINY, RULES, kept, minutes=minutes).go()
        return kept

    some = len([sample for sample in run(0.75).samples if sample.round >= 0])
    every = [sample for sample in run(1e9).samples if sample.round >= 0]
    assert 10 < some < len(every) == len({(sample.round, sample.point) for sample in every})
    assert backend.loaded == 0


def test_order_is_random_and_the_seeds_own(tmp_path: Path) -> None:
    orders = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        backend = Fake()
        (tmp_path / name).mkdir()
        go(backend, tmp_path / name, seed)
        orders.append([str(point) for point in backend.done])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


@pytest.mark.parametrize("dies_at", [1, 5, 17, 40])
def test_a_server_that_dies_costs_no_sample_that_had_ended(dies_at: int, tmp_path: Path) -> None:
    with pytest.raises(ServerDied):
        go(Fake(dies_at), tmp_path)
    before = results.read(tmp_path / results.NAME)[1]
    with (tmp_path / results.NAME).open("a") as file:
        file.write('{"round": 1, "point": {"mo')  # cut off as it was written
    kept = go(Fake(), tmp_path)
    assert kept.samples[: len(before)] == before
    keys = [(s.round, s.point) for s in kept.samples]
    assert len(keys) == len(set(keys))
    assert set(keys) == {(s.round, s.point) for s in go_elsewhere(tmp_path).samples}
    assert results.read(tmp_path / results.NAME)[1] == kept.samples


def go_elsewhere(folder: Path) -> results.Results:
    other = folder / "whole"
    other.mkdir()
    return go(Fake(), other)


def test_disturbed_samples_are_taken_again_and_the_last_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = iter([BUSY, QUIET] * 1000)
    monkeypatch.setattr(Watch, "stop", lambda self: next(around))
    kept = go(Fake(), tmp_path)
    measured = [s for s in kept.samples if s.round >= 1 and s.point.operation != "unload"]
    assert {s.tries for s in measured} <= {1, 2}
    assert any(s.tries == 2 for s in measured)
    assert not any(s.disturbed for s in measured)


def test_what_waits_for_its_own_neighbour_is_not_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "stop", lambda self: Disturbance(1.0, 0.0, 0.0, 0.5))
    disturbed = {s.point.operation: s.disturbed for s in go(Fake(), tmp_path).samples if s.round >= 1}
    assert disturbed["decode"]
    assert not any(disturbed[operation] for operation in BESIDE)


def test_a_backend_is_asked_only_for_what_it_can_measure(tmp_path: Path) -> None:
    backend = Fake()
    backend.operations = frozenset({"prefill", "decode"})
    kept = go(backend, tmp_path)
    assert {s.point.operation for s in kept.samples} == {"load", "prefill", "decode"}
    assert backend.loaded == 0


def test_a_preset_keeps_to_the_seats_and_the_context() -> None:
    whole, small = preset_of("full", 8, 100_000), preset_of("full", 2, 600)
    assert whole == PRESETS["full"]
    assert small.batches == (1, 2)
    assert (small.prompts, small.depths) == ((32, 64, 128, 256, 512), (0, 128, 512))


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = go(Fake(), tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(ConfigError, match=r"samples.jsonl: cannot be written: No space left on device; accepted: a"):
        kept.add(kept.samples[0])


def test_disturbance_is_judged_by_its_thresholds() -> None:
    assert not Disturbance(1.0, 0.09, 0.0, 0.0).over(0.1)
    assert Disturbance(1.0, 0.11, 0.0, 0.0).over(0.1)
    assert not Disturbance(0.1, 0.5, 0.0, 0.0).over(0.1)  # too short to tell by ticks of 10 ms
    assert Disturbance(0.1, 0.0, 0.0, 0.03).over(0.1)
    assert Disturbance(1.0, 0.0, 0.02, 0.0).over(0.1)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with (
        results.locked(tmp_path),
        pytest.raises(ConfigError, match="another run measures into it; accepted: another folder"),
        results.locked(tmp_path),
    ):
        pass


def test_other_settings_do_not_go_on_in_a_folder(tmp_path: Path) -> None:
    go(Fake(), tmp_path)
    with pytest.raises(ConfigError, match="was measured with seed=1, not 2; accepted: the same, or another out="):
        results.Results(tmp_path, {"seed": 2})


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / results.NAME).write_text('{"seed": 1}\nnonsense\n')
    with pytest.raises(ConfigError, match="line 2 is no sample"):
        results.Results(tmp_path, {"seed": 1})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("preset=huge", "unknown preset 'huge'"),
        ("backend=vllm", "unknown backend 'vllm'"),
        ("tries=0", "tries is 0; accepted: a number >= 1"),
        ("cores=[9999]", "cores is .9999.; accepted: of"),
        ("models=[]", "models is ..; accepted: at least one"),
        ("seats=two", "seats is 'two'; accepted: a whole number"),
        ("colour=red", "unknown configuration key 'colour'"),
        ("quick", "argument 'quick' is no setting; accepted: key=value"),
    ],
)
def test_settings_that_cannot_be_used(argument: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        command.main([argument, f"out={tmp_path}/out"])
    assert not (tmp_path / "out").exists()


COMMON: dict[str, Any] = {
    "gpu": schema.CPU_ONLY,
    "num_gpus": 0,
    "host": "a box",
    "engine": "llama.cpp CPU",
    "date": "2026-11-24",
    "source": "a test",
    "ubatch": 512,
}


def test_rows_are_in_the_schemas_units(tmp_path: Path) -> None:
    found = figures(
        results.Sample(n, point, seconds, 1000, 0.0, 0.0, 0.0, 1, False)
        for n, seconds in ((1, 2.0), (2, 4.0), (3, 3.0))
        for point in (
            Point(MODELS[0], "decode", tokens=8, depth=100, batch=2),
            Point(MODELS[0], "prefill", tokens=60),
            Point(MODELS[0], "load", tier="disk", mode="read"),
        )
    )
    decode, load, prefill = rows(found, COMMON, {MODELS[0]: 144})
    assert (decode.value, decode.unit, decode.depth, decode.batch) == (pytest.approx(2 / 3), "tokens/s", 100, 2)
    assert decode.spread == pytest.approx(decode.value / 3)
    assert (prefill.value, prefill.unit, prefill.tokens) == (pytest.approx(20.0), "tokens/s", 60)
    assert (load.value, load.unit, load.tier, load.size_bytes) == (3.0, "s", "disk", 1000)
    assert (decode.model, decode.quant, decode.num_layers) == ("smollm2-135m", "Q8_0", 30)
    schema.write(tmp_path / "m.csv", [decode, load, prefill])
    assert schema.read(tmp_path / "m.csv") == [decode, load, prefill]


def test_samples_that_stayed_disturbed_count_only_where_there_is_no_other() -> None:
    point = Point(MODELS[0], "prefill", tokens=60)

    def samples(*pairs: tuple[float, bool]) -> list[Figures]:
        return figures(results.Sample(i + 1, point, s, 0, 0, 0, 0, 1, d) for i, (s, d) in enumerate(pairs))

    assert samples((1.0, False), (9.0, True))[0].seconds == 1.0
    both = samples((1.0, True), (9.0, True))[0]
    assert (both.seconds, both.disturbed) == (5.0, 2)


def test_slowdowns_compare_with_the_same_alone() -> None:
    found = [
        Figures(alone(MODELS[0], TINY, "decode"), 0.010, 0.0, 3, 0, 0),
        Figures(beside(MODELS[0], TINY, "decode_beside_load"), 0.021, 0.0, 3, 0, 0),
        Figures(beside(MODELS[0], TINY, "decode_beside_device"), 0.012, 0.0, 3, 0, 0),
        Figures(beside(MODELS[1], TINY, "decode_beside_load"), 0.021, 0.0, 3, 0, 0),  # not measured alone
    ]
    assert slowdowns(found, BESIDE_LOAD) == [pytest.approx(1.1)]
    assert slowdowns(found, BESIDE_DEVICE) == [pytest.approx(0.2)]


def test_sums_are_predicted_by_the_mean_of_all_samples() -> None:
    point = Point(MODELS[0], "prefill", tokens=60)
    taken = ((1, 1.0, False), (2, 1.1, False), (3, 3.0, True))
    samples = [results.Sample(n, point, seconds, 0, 0, 0, 0, 1, bad) for n, seconds, bad in taken]
    assert figures(samples)[0].seconds == pytest.approx(1.05)
    mean = figures(samples, for_sums=True)[0]
    assert (mean.seconds, mean.repeats) == (pytest.approx(1.7), 3)


RATES = {
    "read": 15e9,
    "kv": 2e9,
    "flops": 7e10,
    "pairs": 2e11,
    "load": 9e8,
    "vocab": 2e-6,
    "fixed": 1e-3,
    "copy": 4e9,
    "share": 1.1,
    "interference": 0.2,
}


def synthetic() -> list[Figures]:
    """Figures that follow the cost model exactly."""
    found = []

    def add(point: Point, seconds: float, size: int = 0) -> None:
        found.append(Figures(point, seconds, 0.0, 3, size, 0))

    for name in MODELS:
        model = load_model(name)
        arch = model.architecture
        side = roofline.sides(model, roofline.units(model))[0]
        weights = (side.read + side.head) / RATES["read"]
        token = arch.layers * arch.kv_layer_bytes
        for depth in (0, 256, 768):
            add(Point(name, "decode", tokens=8, depth=depth), weights + (depth + 4) * token / RATES["kv"])
        grown = 3 * side.read / RATES["read"] + side.head / RATES["read"] + 2 * 4 * token / RATES["kv"]
        add(Point(name, "decode", tokens=8, batch=2), grown)
        for n in (32, 128, 384):
            work = arch.layers * (
                arch.layer_flops * n / RATES["flops"] + arch.attention_flops * n**2 / 2 / RATES["pairs"]
            )
            add(Point(name, "prefill", tokens=n), weights + work)
        warm = RATES["vocab"] * arch.vocab + model.file_bytes / RATES["load"]
        add(Point(name, "load", tier="page_cache", mode="read"), warm, model.file_bytes)
        add(Point(name, "load", tier="disk", mode="read"), warm + model.file_bytes / 3e9, model.file_bytes)
        add(Point(name, "unload"), 0.005 + model.file_bytes / 8e9)
        for operation in ("save", "restore"):
            for tokens in (128, 384):
                size = tokens * token
                add(Point(name, operation, tokens=tokens, tier="ram"), RATES["fixed"] + size / RATES["copy"], size)
        by_point = {one.point: one.seconds for one in found}
        for operation in BESIDE:
            slow = RATES["interference"] if operation in BESIDE_DEVICE else RATES["share"]
            grid = dataclasses.replace(PRESETS["quick"], steps=8)
            add(beside(name, grid, operation), (1 + slow) * by_point[alone(name, grid, operation)])
    return found


def test_profile_gives_back_the_rates_that_made_its_figures(tmp_path: Path) -> None:
    found = synthetic()
    paths = profiles.write(tmp_path, profiles.Device("a-core", 2 * 10**9), rows(found, COMMON, {}), found, "a test")
    assert [path.parent.name for path in paths] == ["gpus", "hosts"]
    gpu, host = load_gpu("a-core", tmp_path / "profiles"), load_host("a-core", tmp_path / "profiles")
    near = lambda value: pytest.approx(value, rel=0.02)  # noqa: E731
    assert gpu.read["q8_0"].value == near(RATES["read"])
    assert gpu.kv_read.value == near(RATES["kv"])
    assert gpu.batch.value[1] == (2.0, near(3.0))
    assert gpu.attention.value == near(RATES["pairs"])
    assert gpu.load.value == near(RATES["load"])
    assert gpu.vocab_s.value == near(RATES["vocab"])
    assert gpu.save.value == near(RATES["copy"])
    assert gpu.copy_s.value == near(RATES["fixed"])
    assert gpu.unload_s.value == near(0.005)
    assert host.disk_load.value == near(3e9)
    assert gpu.capacity.value == 2e9
    assert (gpu.operation_share.value, host.interference.value) == (near(RATES["share"]), near(RATES["interference"]))
    assert max(error.worst for error in gpu.errors.values()) < 0.02


HOST = {"read": 1e10, "kv": 1e9, "flops": 2e10, "stream": 1e8, "hybrid": 1e-3, "only": 2e-3, "grows": 1.5}


def offloaded(streams: bool) -> list[Figures]:
    """Figures of a device that leaves layers to its host, which computes a prompt's part of them or copies them to the device."""
    found = synthetic()
    for name in MODELS:
        model = load_model(name)
        whole = roofline.units(model)
        for layers in (whole // 2, 0):
            here, there = roofline.sides(model, layers)
            kv_here, kv_there = roofline.kv_bytes(model, layers)
            base = HOST["hybrid"] if layers else HOST["only"]
            device = (here.read + here.head) / RATES["read"] + base
            rest = there.head / HOST["read"]
            for depth, batch in ((0, 1), (768, 1), (0, 4)):
                context = batch * (depth + 4)
                kv = context * (kv_here / RATES["kv"] + kv_there / HOST["kv"])
                grown = there.read / HOST["read"] * (HOST["grows"] if batch > 1 else 1.0)
                grown += here.read / RATES["read"] * (6 if batch > 1 else 0)  # the device's: 3 at 2, and on in a line
                point = Point(name, "decode", tokens=8, depth=depth, batch=batch, n_gpu_layers=layers)
                found.append(Figures(point, device + rest + grown + kv, 0.0, 3, 0, 0))
            step = device + (0.0 if streams else rest + there.read / HOST["read"])
            work = 64 * here.flops / RATES["flops"]
            work += (
                64 * there.flops / RATES["flops"] + there.read / HOST["stream"]
                if streams
                else 64 * there.flops / HOST["flops"]
            )
            point = Point(name, "prefill", tokens=64, n_gpu_layers=layers)
            found.append(Figures(point, step + work, 0.0, 3, 0, 0))
    return found


@pytest.mark.parametrize("streams", [False, True])
def test_a_host_that_takes_layers_gets_rates_of_its_own(streams: bool) -> None:
    gpu, host = profiles.make(profiles.Device("a-gpu", 2 * 10**9, streams), offloaded(streams), "a test")
    near = lambda value: pytest.approx(value, rel=0.03)  # noqa: E731
    assert (host.read.value, gpu.read["q8_0"].value) == (near(HOST["read"]), near(RATES["read"]))
    assert (gpu.hybrid_s.value, gpu.cpu_only_s.value) == (near(HOST["hybrid"]), near(HOST["only"]))
    assert host.batch.value == ((1.0, 1.0), (4.0, near(HOST["grows"])))
    if streams:
        assert (gpu.stream.value, gpu.stream_min_tokens.value) == (near(HOST["stream"]), 32)
        layer = load_model(MODELS[0])
        each = layer.architecture.layer_flops / layer.layer_bytes
        assert host.compute.value == pytest.approx(HOST["read"] * each / ((HOST["grows"] - 1) / 3), rel=0.1)
        assert host.compute.provenance == "predicted"
    else:
        assert (host.compute.value, gpu.stream_min_tokens.value) == (near(HOST["flops"]), profiles.NEVER)


def test_loads_from_page_locked_memory_are_what_a_gpu_is_judged_by() -> None:
    found = [one for one in synthetic() if one.point.operation != "load"]
    for name in MODELS:
        size = load_model(name).file_bytes
        for mode, rate in (("pageable", 5e9), ("pinned", 25e9)):
            found.append(Figures(Point(name, "load", tier="ram", mode=mode), size / rate, 0.0, 3, size, 0))
    gpu, _ = profiles.make(profiles.Device("a-gpu", 2 * 10**9), found, "a test")
    assert gpu.load.value == pytest.approx(25e9, rel=0.01)


def test_with_layers_on_the_host_less_is_measured() -> None:
    whole, part = (list(serving_points(MODELS[0], PRESETS["gpu"], layers)) for layers in (ALL, 15))
    assert {point.n_gpu_layers for point in part} == {15}
    assert {point.operation for point in part} == {"prefill", "decode", "footprint"}
    assert len(part) == 5 < len(whole)


def test_decode_of_a_new_model_is_predicted_from_the_profile(tmp_path: Path) -> None:
    found = [one for one in synthetic() if one.point.model != MODELS[2]]
    fit = laws.fit_decode(found)
    left = next(one for one in synthetic() if one.point == Point(MODELS[2], "decode", tokens=8, depth=256))
    predicted = fit.seconds(laws.decode_terms(load_model(MODELS[2]), ALL, 260))
    assert predicted == pytest.approx(left.seconds, rel=0.02)


SHIPPED = PROFILES.parent / "measured"


@pytest.mark.parametrize("name", sorted(path.name for path in SHIPPED.iterdir() if path.is_dir()))
def test_shipped_profiles_are_what_their_samples_give(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ram = int(load_host(name).ram.value)
    monkeypatch.setattr(profiles.machine, "ram_bytes", lambda: ram)
    found = figures(results.read(SHIPPED / name / results.NAME)[1])
    measured = schema.read(SHIPPED / name / command.SAVED)
    one = measured[0]
    device = profiles.Device(
        name, round(one.gpu_mem_gb * 1e9) if one.gpu_mem_gb else None, bool(one.num_gpus) and one.engine == "llama.cpp"
    )
    paths = profiles.write(tmp_path, device, measured, found, one.source)
    for path in paths:
        assert (PROFILES / path.parent.name / path.name).read_bytes() == path.read_bytes()
    assert [row.value for row in measured] == [
        pytest.approx(_value(one)) for one in found if one.point.operation in IN_SCHEMA
    ]


def _value(one: Figures) -> float:
    tokens = {"decode": one.point.batch, "prefill": one.point.tokens}.get(one.point.operation)
    return one.seconds if tokens is None else tokens / one.seconds
