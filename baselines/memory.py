"""What a rule remembers from one decision to the next: facts it has observed, and counters made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsched_env.sim.state import Dims

from .view import part

FIELDS = (
    # name, shape letters, type, meaning
    ("seed", "", "i8", "of the episode, for rules that draw"),
    ("seats", "", "f8", "requests that an instance runs side by side at most"),
    ("gpus", "", "f8", "GPUs there are"),
    ("model", "I", "i4", "model of each instance slot at the last look; -1: empty"),
    ("uses", "I", "f8", "requests dispatched to the instance since it was loaded, at the last look"),
    ("idle", "I", "i1", "1: it was idle at the last look"),
    ("used_s", "I", "f8", "when it was last seen to have got a request"),
    ("since_s", "I", "f8", "when its model was first seen there"),
    ("ready_s", "I", "f8", "when it was first seen ready since it was not; inf: it is not"),
    (
        "run",
        "I",
        "i1",
        "at the last look it had had its requests for 1: less, 2: more than the seconds of bringing it back; 0: it had none",
    ),
    (
        "hurried",
        "M",
        "f8",
        "times in a row that the model was put out with its requests before these seconds were over",
    ),
    ("priority", "I", "f8", "greedy-dual: clock at its last use + uses * reload seconds / GB"),
    ("clock", "G", "f8", "greedy-dual: the priority of what was unloaded last"),
    ("served", "M", "f8", "weighted tokens of the requests a fair rule has let in"),
    ("queued", "M", "f8", "waiting requests at the last look of a fair rule"),
    ("next_use_s", "M", "f8", "time of the next arrival; inf: unknown, as it is to all but the clairvoyant bound"),
)


def new_memory(dims: Dims, num_envs: int, seed: int) -> NDArray[np.void]:
    """Memories at the start of an episode, (num_envs,)."""
    sizes = dims.sizes()
    spec = [(name, kind, tuple(sizes[letter] for letter in shape)) for name, shape, kind, _ in FIELDS]
    memory = np.zeros(num_envs, np.dtype(spec, align=True)).view(np.recarray)
    memory["seed"] = seed
    memory["seats"] = dims.B
    memory["model"] = -1
    memory["next_use_s"] = np.inf
    return memory


@part
def remember(view):  # type: ignore[no-untyped-def]
    """Take down what has changed since the last look; done before every decision."""
    memory = view.memory
    now = view.whole[0].time_s
    slots = view.instances.shape[0] // view.gpus.shape[0]
    for i in range(view.instances.shape[0]):
        row = view.instances[i]
        model = int(row.model) if row.present > 0.0 else -1
        if memory.idle[i] == 1 and (model != memory.model[i] or row.leaving > 0.0):  # unloaded to make room
            memory.clock[i // slots] = max(memory.clock[i // slots], memory.priority[i])
        if memory.run[i] > 0 and (model != memory.model[i] or row.leaving > 0.0):
            put_out = memory.model[i]
            memory.hurried[put_out] = memory.hurried[put_out] + 1.0 if memory.run[i] == 1 else 0.0
        if model != memory.model[i]:
            memory.model[i] = model
            memory.uses[i] = 0.0
            memory.since_s[i] = now
        if row.uses > memory.uses[i]:
            memory.used_s[i] = now
            memory.priority[i] = memory.clock[i // slots] + row.uses * row.reload_s / max(row.gpu_gb, 1e-3)
        memory.uses[i] = row.uses
        if row.ready == 0.0:
            memory.ready_s[i] = np.inf
        elif memory.ready_s[i] == np.inf:
            memory.ready_s[i] = now
        runs = model >= 0 and row.ready > 0.0 and row.num_seated > 0.0 and row.leaving == 0.0
        ran_s = now - max(memory.used_s[i], memory.ready_s[i])
        memory.run[i] = 0 if not runs else 1 if ran_s < row.unload_s + row.reload_s else 2
        memory.idle[i] = 1 if model >= 0 and row.ready > 0.0 and row.num_seated == 0.0 and row.draining == 0.0 else 0
    memory.gpus = 0.0
    for g in range(view.gpus.shape[0]):
        memory.gpus += view.gpus[g].present


def copies(memory: NDArray[np.void], count: int) -> Any:
    """[count] memories that start as the one given, (1,)."""
    return np.repeat(memory, count).view(np.recarray)
