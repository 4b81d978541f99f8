"""Rounds of samples in random order, redone where the machine was disturbed, kept as they end."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .backend import Backend, Figure, Instance
from .disturbance import Disturbance, Watch
from .points import BESIDE, Point, Preset, serving_points
from .results import Results, Sample

BEFORE, AFTER, AFTER_RUNS = -1, -2, -3
"""rounds of the probes: around the measurement, and after a replay's real runs"""
PROBES = 3
"""samples of a probe, whose median counts"""


@dataclass(frozen=True)
class Rules:
    """When a sample is done again."""

    tries: int
    max_foreign: float
    """cores used by other processes"""
    seed: int
    pause_s: float = 0.0
    """before a load"""


class Run:
    """Everything a preset asks of a backend and some models, without what `results` has already.

    Parameters
    ----------
    progress
        Called with the point that is measured next, before each sample.
    minutes
        After which no model is loaded any more: what has been measured by then is what there is.
    """

    def __init__(
        self,
        backend: Backend,
        models: Iterable[str],
        preset: Preset,
        rules: Rules,
        results: Results,
        progress: Callable[[Point], None] = lambda point: None,
        minutes: float = math.inf,
    ) -> None:
        self.backend, self.models, self.preset, self.rules, self.results = backend, list(models), preset, rules, results
        self._progress = progress
        self._end = time.monotonic() + 60 * minutes
        self._done = results.done()

    def wanted(self) -> list[tuple[int, Point]]:
        """(round, point) of every sample, those that are done too."""
        first = [(0, load) for model in self.models for load in self.backend.loads(model, self.preset)]
        return first + [(number, point) for number in self._rounds()[1:] for point in self._points()]

    def go(self) -> None:
        """Measure what is missing. Raises ServerDied; what has ended by then is kept."""
        if not self._missing():
            return
        self.probe(BEFORE)
        for number in self._rounds():
            rng = np.random.default_rng([self.rules.seed, number])
            for point in _shuffled(rng, self.backend.copies(self.preset) if number else ()):
                self._sample(number, point, partial(self.backend.copy, point))
            for model in _shuffled(rng, self.models):
                self._model(number, rng, model)
        self.probe(AFTER)

    def _rounds(self) -> range:
        return range(self.preset.rounds + 1)  # 0: loads alone, the first of a process are slower

    def _points(self) -> Iterator[Point]:
        yield from self.backend.copies(self.preset)
        for model in self.models:
            loads = list(self.backend.loads(model, self.preset))
            yield from loads
            for layers in dict.fromkeys(load.n_gpu_layers for load in loads):
                yield from self._serving(model, layers)
                yield from self._unload(model, layers)

    def _serving(self, model: str, layers: int) -> list[Point]:
        points = serving_points(model, self.preset, layers)
        return [point for point in points if point.operation in self.backend.operations]

    def _unload(self, model: str, layers: int) -> list[Point]:
        return [Point(model, "unload", n_gpu_layers=layers)] if "unload" in self.backend.operations else []

    def _missing(self) -> bool:
        return any(key not in self._done for key in self.wanted())

    def _model(self, number: int, rng: np.random.Generator, model: str) -> None:
        """Every load of the model; what is measured of it loaded, after the last load of each residency."""
        loads = list(self.backend.loads(model, self.preset))
        last = {load.n_gpu_layers: load for load in loads}
        for load in _shuffled(rng, loads):
            if time.monotonic() > self._end:
                return
            serve = number > 0 and last[load.n_gpu_layers] == load
            points = self._serving(model, load.n_gpu_layers) if serve else []
            unload = self._unload(model, load.n_gpu_layers) if serve else []
            if all((number, point) in self._done for point in [load, *points, *unload]):
                continue
            instance = self._load(number, load)
            if points:
                instance.measure(points[0])  # thrown away: what it touches first it reads slowly
            for point in _shuffled(rng, points):
                self._sample(number, point, partial(instance.measure, point))
            if not any(self._sample(number, point, instance.unload, tries=1) for point in unload):
                instance.unload()

    def _load(self, number: int, point: Point) -> Instance:
        loaded: list[Instance] = []

        def load() -> Figure:
            if loaded:
                loaded.pop().unload()
                time.sleep(self.rules.pause_s)
            figure, instance = self.backend.load(point)
            loaded.append(instance)
            return figure

        if (number, point) not in self._done:
            time.sleep(self.rules.pause_s)
        if not self._sample(number, point, load):
            load()
        return loaded[0]

    def _sample(self, number: int, point: Point, measure: Callable[[], Figure], tries: int = 0) -> bool:
        """Measure and keep one sample, unless there is one; False then."""
        if (number, point) in self._done:
            return False
        self._progress(point)
        best: tuple[Figure, Disturbance] | None = None
        attempts = 0
        while attempts < (tries or self.rules.tries):
            attempts += 1
            watch = Watch(lambda: self.backend.pids)
            figure = measure()
            around = watch.stop()
            if best is None or around.waited <= best[1].waited:
                best = figure, around
            if number == 0 or not self._disturbed(point, around):
                break
        assert best
        self._keep(number, point, *best, attempts)
        return True

    def _keep(self, number: int, point: Point, figure: Figure, around: Disturbance, tries: int) -> None:
        sample = Sample(
            number,
            point,
            figure.seconds,
            figure.size_bytes,
            round(around.foreign_cores, 3),
            round(around.steal, 4),
            round(around.waited, 4),
            tries,
            self._disturbed(point, around),
        )
        self.results.add(sample)
        self._done.add((number, point))

    def _disturbed(self, point: Point, around: Disturbance) -> bool:
        return around.over(self.rules.max_foreign, shared=point.operation in BESIDE)

    def probe(self, number: int) -> None:
        """The same few figures of the first model before and after everything: has the machine changed?"""
        if not self.models:
            return
        loads = list(self.backend.loads(self.models[0], self.preset))
        load = [one for one in loads if one.n_gpu_layers == loads[0].n_gpu_layers][-1]
        points = [
            Point(load.model, "prefill", tokens=max(self.preset.prompts)),
            Point(load.model, "decode", tokens=self.preset.steps),
        ]
        if all((number, point) in self._done for point in points):
            return
        instance = self.backend.load(load)[1]
        for point in points:
            instance.measure(point)  # thrown away: the first of a process is slower
            self._sample(number, point, partial(_median, instance, point))
        instance.unload()


def _median(instance: Instance, point: Point) -> Figure:
    return Figure(statistics.median(instance.measure(point).seconds for _ in range(PROBES)))


def _shuffled(rng: np.random.Generator, things: Iterable[Any]) -> list[Any]:
    items = list(things)
    return [items[i] for i in rng.permutation(len(items))]


def drift(samples: Iterable[Sample], after: int = AFTER) -> float | None:
    """How much slower the machine was after than before, relative; None without both probes."""
    probes = {(sample.round, sample.point): sample.seconds for sample in samples if sample.round < 0}
    ratios = [
        probes[after, point] / probes[BEFORE, point]
        for number, point in probes
        if number == BEFORE and (after, point) in probes
    ]
    return statistics.mean(ratios) - 1 if ratios else None
