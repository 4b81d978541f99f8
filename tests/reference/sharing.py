"""R19, R26: fixed times that are stretched; disks and links, shared by their transfers max-min fairly, each capped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .clock import Alarm, Clock


@dataclass(eq=False)
class Wait:
    """The fixed time of a stage or a restore, on a GPU where it takes `stretch` times as long."""

    left: float  # seconds left at `since`, if nothing stretched them
    gpu: int
    order: int  # of the event at its end (R2)
    index: int
    at_end: Callable[[], None]
    since: float
    stretch: float = 0.0
    alarm: Alarm | None = None


@dataclass(eq=False)
class Waits:
    waits: list[Wait] = field(default_factory=list)

    def start(self, clock: Clock, seconds: float, gpu: int, order: int, index: int, at_end: Callable[[], None]) -> None:
        """The wait gets its end when time next moves on (R5)."""
        self.waits.append(Wait(seconds, gpu, order, index, at_end, clock.now))

    def stretch(self, clock: Clock, stretches: Sequence[float]) -> None:
        """R19: move the ends of the waits on GPUs whose stretch has changed."""
        for wait in self.waits:
            stretch = stretches[wait.gpu]
            if wait.alarm is not None and wait.stretch == stretch:
                continue
            if wait.alarm is not None:
                wait.alarm.cancel()
                wait.left = max(0.0, wait.left - (clock.now - wait.since) / wait.stretch)
            wait.since, wait.stretch = clock.now, stretch
            end = clock.now + wait.left * stretch
            wait.alarm = clock.set(end, wait.order, wait.index, lambda w=wait: self._end(w))

    def _end(self, wait: Wait) -> None:
        self.waits.remove(wait)
        wait.at_end()


@dataclass(eq=False)
class Transfer:
    left: float  # bytes left at `since`
    cap: float  # where nothing slows it (R19)
    gpu: int  # whose operation or restore it is part of
    order: int  # of the event at its end (R2)
    index: int
    at_end: Callable[[], None]
    since: float
    rate: float = 0.0
    alarm: Alarm | None = None


@dataclass(eq=False)
class Resource:
    rate: float  # bytes/s
    transfers: list[Transfer] = field(default_factory=list)

    def start(
        self, clock: Clock, size: int, cap: float, gpu: int, order: int, index: int, at_end: Callable[[], None]
    ) -> None:
        """The transfer gets its rate when time next moves on (R5)."""
        self.transfers.append(Transfer(float(size), cap, gpu, order, index, at_end, clock.now))

    def share(self, clock: Clock, stretches: Sequence[float]) -> None:
        """Compute the shares anew, caps lowered by R19, and move the ends of the transfers whose share has changed."""
        caps = [transfer.cap / stretches[transfer.gpu] for transfer in self.transfers]
        for transfer, rate in zip(self.transfers, fair_shares(self.rate, caps), strict=True):
            if transfer.alarm is not None and transfer.rate == rate:
                continue
            if transfer.alarm is not None:
                transfer.alarm.cancel()
            transfer.left = max(0.0, transfer.left - transfer.rate * (clock.now - transfer.since))
            transfer.since, transfer.rate = clock.now, rate
            end = clock.now + transfer.left / rate
            transfer.alarm = clock.set(end, transfer.order, transfer.index, lambda t=transfer: self._end(t))

    def _end(self, transfer: Transfer) -> None:
        self.transfers.remove(transfer)
        transfer.at_end()


def fair_shares(rate: float, caps: list[float]) -> list[float]:
    """Max-min fair: the smallest caps are served first, what they leave is split evenly among the others."""
    shares = [0.0] * len(caps)
    left, count = rate, len(caps)
    for i in sorted(range(count), key=lambda i: caps[i]):
        shares[i] = min(caps[i], left / count)
        left -= shares[i]
        count -= 1
    return shares
