"""What happens beside the updates: the scheduler's own figures, progress lines, checkpoints and a clean end."""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from .validation import Validator

FIGURES = (
    "p50_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
    "weighted_mean_e2e_ms",
    "slo_attainment",
    "request_goodput",
    "loads_per_100",
    "preemptions",
    "offloads",
    "gpu_busy_share",
)
"""of `mmsched_env.metrics.summary`; they go to TensorBoard as scheduler/<name>"""


class SchedulerMetrics(BaseCallback):
    """Means over the last `window` finished training episodes, beside SB3's own rollout/ep_rew_mean."""

    def __init__(self, window: int = 100) -> None:
        super().__init__()
        self.episodes: deque[dict[str, Any]] = deque(maxlen=window)

    def _on_step(self) -> bool:
        for i in np.flatnonzero(self.locals["dones"]):
            self.episodes.append(self.locals["infos"][i])
        return True

    def _on_rollout_end(self) -> None:
        for name in FIGURES:
            value = self.mean(name)
            if np.isfinite(value):
                self.logger.record(f"scheduler/{name}", value)
        if self.episodes:
            truncated = float(np.mean([info["TimeLimit.truncated"] for info in self.episodes]))
            self.logger.record("scheduler/truncated_share", truncated)

    def mean(self, name: str) -> float:
        """Mean of a metric over the window, NaN before the first episode has ended."""
        values = [info["metrics"][name] for info in self.episodes]
        values = [value for value in values if np.isfinite(value)]
        return float(np.mean(values)) if values else float("nan")


class Validations(BaseCallback):
    """Validates after the update that passes each multiple of `every` steps, and before the first; calls `keep` after the
    best so far.

    TensorBoard gets validation/score (mean E2E over the rule's, geometric mean over scenarios: 1 is the rule's line),
    each scenario's ratio, and the policy's and the rule's mean figures.
    """

    def __init__(
        self,
        validator: Validator,
        every: int,
        keep: Callable[[], object],
        network_of: Callable[[BaseAlgorithm], MaskableActorCriticPolicy],
    ) -> None:
        super().__init__()
        self.validator = validator
        self.network_of = network_of
        self.every = every
        self.keep = keep
        self.best = float("inf")
        """the least score so far; a run that goes on is given that of before"""

    def _on_training_start(self) -> None:
        self.next = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps >= self.next:
            self.next = (self.model.num_timesteps // self.every + 1) * self.every
            self.validate(self.model)

    def _on_training_end(self) -> None:
        self.validate(self.model)

    def _on_step(self) -> bool:
        return True

    def validate(self, model: BaseAlgorithm, label: str = "") -> None:
        """Run the policy as it is, and keep it if it is the best so far."""
        found = self.validator(self.network_of(model))
        for at, ratio in enumerate(found.ratios):
            model.logger.record(f"validation/ratio_{at}", float(ratio))
        for name in FIGURES:
            model.logger.record(f"validation/{name}", float(np.nanmean(found.ours[name])))
            model.logger.record(f"validation_line/{name}", float(np.nanmean(found.line[name])))
        model.logger.record("validation/score", found.score)
        model.logger.dump(model.num_timesteps)
        ratios = ", ".join(f"{ratio:.3f}" for ratio in found.ratios)
        label = label or f"{model.num_timesteps:,} steps"
        print(
            f"validation, {label}: {found.score:.4f} of {self.validator.rule} ({ratios})", file=sys.stderr, flush=True
        )
        if found.score < self.best:
            self.best = found.score
            self.keep()


class Progress(BaseCallback):
    """A line on stderr every few seconds; on a terminal it is overwritten in place."""

    def __init__(self, metrics: SchedulerMetrics, total_steps: int, every_s: float = 10.0) -> None:
        super().__init__()
        self.metrics = metrics
        self.total_steps = total_steps
        self.terminal = sys.stderr.isatty()
        self.every_s = 1.0 if self.terminal else every_s

    def _on_training_start(self) -> None:
        self.started = self.last = time.monotonic()
        self.first_step = self.model.num_timesteps

    def _on_rollout_end(self) -> None:
        if time.monotonic() - self.last >= self.every_s:
            self._line("\r" if self.terminal else "\n")

    def _on_training_end(self) -> None:
        self._line("\n")

    def _on_step(self) -> bool:
        return True

    def _line(self, end: str) -> None:
        self.last = time.monotonic()
        done = self.model.num_timesteps
        rate = (done - self.first_step) / max(1e-9, self.last - self.started)
        left = max(0, self.total_steps - done) / rate if rate > 0 else 0.0
        text = f"{done:,} of {self.total_steps:,} steps, {rate:,.0f}/s, {left // 60:.0f} min {left % 60:02.0f} s left"
        if self.metrics.episodes:
            returns = np.mean([info["episode"]["r"] for info in self.metrics.episodes])
            text += f"; return {returns:,.0f}, SLO attainment {self.metrics.mean('slo_attainment'):.0%}"
        print(f"{text:<100}", end=end, file=sys.stderr, flush=True)


class Checkpoints(BaseCallback):
    """Calls `save` after the update that passes each multiple of `every` steps, and ends training on request."""

    def __init__(self, save: Callable[[], object], every: int) -> None:
        super().__init__()
        self.save = save
        self.every = every
        self.stop_signal: int | None = None

    def _on_training_start(self) -> None:
        self.next = (self.model.num_timesteps // self.every + 1) * self.every

    def _on_rollout_start(self) -> None:  # the update is over: weights and step count belong together
        if self.model.num_timesteps >= self.next:
            self.next = (self.model.num_timesteps // self.every + 1) * self.every
            self.save()

    def _on_step(self) -> bool:
        return self.stop_signal is None

    @contextmanager
    def watching_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end training at the next step; a second one acts as usual."""
        before: dict[int, Any] = {}

        def stop(number: int, _: FrameType | None) -> None:
            self.stop_signal = number
            for code, handler in before.items():
                signal.signal(code, handler)

        try:
            for code in (int(signal.SIGINT), int(signal.SIGTERM)):
                before[code] = signal.signal(code, stop)
        except ValueError:  # not in the main thread: someone else handles signals
            pass
        try:
            yield
        finally:
            for code, handler in before.items():
                signal.signal(code, handler)
