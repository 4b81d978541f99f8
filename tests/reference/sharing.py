"""R26: disks and links, shared by their transfers max-min fairly, each transfer capped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .clock import Alarm, Clock


@dataclass(eq=False)
class Transfer:
    left: float  # bytes left at `since`
    cap: float
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

    def start(self, clock: Clock, size: int, cap: float, order: int, index: int, at_end: Callable[[], None]) -> None:
        """The transfer gets its rate when time next moves on (R5)."""
        self.transfers.append(Transfer(float(size), cap, order, index, at_end, clock.now))

    def share(self, clock: Clock) -> None:
        """Compute the shares anew and move the ends of the transfers whose share has changed."""
        for transfer, rate in zip(self.transfers, fair_shares(self.rate, [t.cap for t in self.transfers]), strict=True):
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
