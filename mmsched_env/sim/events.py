"""Event codes and the layout of the event log: one row an event, in the order they happened."""

from __future__ import annotations

import numpy as np

ARRIVE = 0
DISPATCH = 1
START = 2  # joined the batch: prefill or decoding begins
FIRST_TOKEN = 3
FINISH = 4
PREEMPT = 5  # request taken off its instance; value = context tokens whose KV is kept in host RAM (0: none)
SAVE_END = 6  # request's KV is in host RAM
RESTORE_START = 7
RESTORE_END = 8
LOAD_START = 9
LOAD_END = 10
UNLOAD_START = 11  # instance preempted: save (if any) and unload begin
UNLOAD_END = 12
RESIZE_START = 13  # value = new level
RESIZE_END = 14
BUSY_START = 15  # instance starts iterating (request: the one in prefill)
BUSY_END = 16  # logged when time next moves on: after what ended the iterations

DROP = 17  # value = flow time charged beyond now, times weight
LOAD_FAILED = 18  # the true footprint does not fit; value = bytes it would take. UNLOAD_START follows

NAMES = (
    "arrive",
    "dispatch",
    "start",
    "first_token",
    "finish",
    "preempt",
    "save_end",
    "restore_start",
    "restore_end",
    "load_start",
    "load_end",
    "unload_start",
    "unload_end",
    "resize_start",
    "resize_end",
    "busy_start",
    "busy_end",
    "drop",
    "load_failed",
)

EVENT = np.dtype(
    [
        ("time_s", "f8"),
        ("value", "f8"),
        ("kind", "i4"),
        ("request", "i4"),  # -1: none
        ("instance", "i4"),  # gpu * slots + slot, -1: none
        ("model", "i4"),  # -1: none
        ("level", "i4"),  # -1: none
        ("seq", "i4"),  # running number
    ],
    align=True,
)
